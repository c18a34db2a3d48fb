#include "transport/service_new_objects.h"

#include <algorithm>
#include <charconv>
#include <future>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "transport/base/log.h"
#include "transport/service_session.h"
#include "transport/service_store.h"
#include "transport/stage_upload.h"

namespace e2bfs::transport {

namespace {

// Of one command. envd logs its arguments, and the shell copies the list of them for each object.
constexpr size_t kObjectsOfOneCommand = 400;
constexpr size_t kArgumentBytesOfOneCommand = size_t{96} << 10;
constexpr size_t kListingsAtOnce = 8;

// A step of a command: what is to be made, or (kSet) a directory that gets its attributes, if any, and is told of.
struct Step {
  enum class Kind { kMake, kSet };
  Kind kind = Kind::kMake;
  std::string path;                 // absolute
  const NewObject* object = nullptr;  // null: a directory that was there before
  size_t index = 0;                 // of the row, or of the directories that were there
  size_t argument_bytes() const { return EncodeArgument(path).size() + (object ? EncodeArgument(object->target).size() : 0) + 150; }
};

class RowMaker {
 public:
  RowMaker(ServiceSession& session, const std::vector<NewObject>& objects, const OpContext& ctx)
      : session_(session), objects_(objects), ctx_(ctx), paths_(objects.size()), stats_(objects.size()) {
    made_.objects.resize(objects.size());
  }

  Result<MadeObjects> Make() {
    if (auto staged = StageContents(); !staged) return Forward(staged.error());
    auto done = MakeAll();
    if (!stage_.empty()) session_.DiscardStageFile(stage_);
    if (!done) return Forward(done.error());
    Complete();
    return std::move(made_);
  }

 private:
  Result<void> StageContents() {
    std::string bytes;
    for (const NewObject& object : objects_) {
      if (object.type != FileType::kRegular) continue;
      auto content = ContentOf(object);
      if (!content) return Forward(content.error());
      bytes += *content;
    }
    if (bytes.empty()) return {};
    StorePiece piece;
    piece.extents = {{0, static_cast<int64_t>(bytes.size())}};
    staged_bytes_ = piece.bytes();
    HeldSource source(bytes);
    auto staged = StageContent(session_, piece, source, ctx_);
    if (!staged) return Forward(staged.error());
    stage_ = std::move(*staged);
    return {};
  }

  Result<void> MakeAll() {
    std::vector<std::string> used;
    for (const NewObject& object : objects_) {
      if (!object.made_in) used.push_back(JoinPath(object.directory.path, object.name));
    }
    auto held = session_.path_locks().Use(std::move(used), ctx_);
    if (!held) return Forward(held.error());
    std::vector<Step> making, setting;
    for (size_t i = 0; i < objects_.size(); ++i) making.push_back({Step::Kind::kMake, Locate(i), &objects_[i], i});
    if (auto ran = RunAll(making); !ran) return ran;
    for (size_t i = objects_.size(); i-- > 0;) {  // what is in a directory comes after it
      if (objects_[i].type == FileType::kDirectory && !made_.objects[i].error) setting.push_back({Step::Kind::kSet, making[i].path, &objects_[i], i});
    }
    old_stats_.resize(old_.size());
    for (size_t i = 0; i < old_.size(); ++i) {
      auto path = session_.Absolute(old_[i]);
      if (path) setting.push_back({Step::Kind::kSet, *path, nullptr, i});
    }
    return RunAll(setting);
  }

  // Its absolute path; empty, with the error noted, where it cannot be made.
  std::string Locate(size_t index) {
    const NewObject& object = objects_[index];
    Name name{object.directory, object.name};
    if (object.made_in) name.parent = {paths_[*object.made_in], {}};
    auto absolute = session_.Locate(name, nullptr);
    const int wrong = object.type == FileType::kSymlink ? CheckLinkText(object.target) : 0;
    if (absolute && wrong != 0) absolute = Errno(wrong, "link text");
    if (absolute && object.made_in && made_.objects[*object.made_in].error) absolute = Errno(ENOENT, object.name);
    if (!absolute) {
      made_.objects[index].error = absolute.error();
      return {};
    }
    paths_[index] = JoinPath(name.parent.path, object.name);
    if (!object.made_in && std::find(old_.begin(), old_.end(), object.directory.path) == old_.end()) old_.push_back(object.directory.path);
    return std::move(*absolute);
  }

  Result<void> RunAll(const std::vector<Step>& steps) {
    for (size_t first = 0; first < steps.size();) {
      size_t end = first, bytes = 0;
      while (end < steps.size() && (end == first || (end - first < kObjectsOfOneCommand && bytes + steps[end].argument_bytes() <= kArgumentBytesOfOneCommand))) {
        bytes += steps[end++].argument_bytes();
      }
      if (auto ran = Run({steps.begin() + static_cast<ptrdiff_t>(first), steps.begin() + static_cast<ptrdiff_t>(end)}); !ran) return ran;
      first = end;
    }
    return {};
  }

  Result<void> Run(const std::vector<Step>& steps) {
    std::vector<std::string> arguments = {EncodeArgument(stage_), std::to_string(staged_bytes_), std::to_string(offset_)};
    for (const Step& step : steps) {
      arguments.push_back(EncodeArgument(step.path));
      arguments.push_back(StepArgument(step, steps));
    }
    auto answer = session_.Change(ServiceScript::kMakeObjects, std::move(arguments), ctx_.Renewed());
    if (!answer) {
      Error error = answer.error();
      if (error.message.find("E SHORT") != std::string::npos) error.kind = ErrorKind::kBroken;
      return Forward(std::move(error));
    }
    for (const Step& step : steps) {
      if (step.kind == Step::Kind::kMake) offset_ += step.object->size;
    }
    return Take(*answer, steps);
  }

  // As the script takes it apart. "x": it cannot be made.
  std::string StepArgument(const Step& step, const std::vector<Step>& steps) const {
    const bool make = step.kind == Step::Kind::kMake;
    const FileType type = step.object && make ? step.object->type : FileType::kDirectory;
    std::string parent = "-";
    if (make && made_.objects[step.index].error) parent = "x";
    if (make && parent != "x" && step.object->made_in) {
      const size_t above = *step.object->made_in;
      if (made_.objects[above].error) parent = "x";
      if (above >= steps[0].index) parent = std::to_string(above - steps[0].index);
    }
    const uint32_t permissions = step.object ? step.object->permissions : 0;
    const bool has_mode = make && type != FileType::kSymlink;
    const AttributeChange attributes = step.object && (!make || type != FileType::kDirectory) ? step.object->attributes : AttributeChange{};
    std::string argument = !make ? "s" : type == FileType::kRegular ? "f" : type == FileType::kDirectory ? "d" : "l";
    for (const std::string& field : {parent, std::to_string(make && type == FileType::kRegular ? step.object->size : 0), UmaskArgument(permissions),
                                     has_mode ? ModeBeyondCreation(permissions, type == FileType::kRegular ? 0666 : 0777) : "-", OwnerArgument(attributes),
                                     ModeArgument(attributes.permissions), ServiceTimeArgument(attributes.atime), ServiceMtimeArgument(attributes)}) {
      argument += "," + field;
    }
    return argument + "," + (type == FileType::kSymlink ? EncodeArgument(step.object->target) : "");
  }

  // What a command said: lines "F step text" of what was not made, "R step text" of refused attributes, "G number" of what is gone among those that are told of.
  Result<void> Take(const ServiceChangeAnswer& answer, const std::vector<Step>& steps) {
    std::map<size_t, int> failed, refused;
    std::set<size_t> gone;
    for (std::string_view rest = answer.messages; !rest.empty();) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      size_t number = 0;
      const char* const end = line.data() + line.size();
      if (line.size() < 3 || line[1] != ' ') return Nonsense();
      const auto [after, error] = std::from_chars(line.data() + 2, end, number);
      if (error != std::errc() || number >= steps.size()) return Nonsense();
      const int code = ErrnoFromCommandOutput(std::string_view(after, static_cast<size_t>(end - after)).substr(after == end ? 0 : 1));
      if (line[0] == 'F') failed[number] = code;
      else if (line[0] == 'R') refused.try_emplace(number, code);
      else if (line[0] == 'G') gone.insert(number);
      else return Nonsense();
    }
    size_t told = 0, next = 0;
    for (size_t i = 0; i < steps.size(); ++i) {
      const Step& step = steps[i];
      MadeObject* const object = step.object ? &made_.objects[step.index] : nullptr;
      if (failed.contains(i)) {
        if (object && !object->error) object->error = Errno(failed[i], step.object->name).value();
        continue;
      }
      if (step.kind == Step::Kind::kMake && object->error) return Nonsense();
      if (object && refused.contains(i)) refused_[step.index] = refused[i];
      if (step.kind == Step::Kind::kMake) session_.identities().Created(paths_[step.index]);
      if (step.kind == Step::Kind::kMake && step.object->type == FileType::kDirectory) continue;  // told of at last
      if (gone.contains(told++)) continue;
      if (next == answer.objects.size()) return Nonsense();
      (object ? stats_[step.index] : old_stats_[step.index]) = answer.objects[next++];
    }
    if (next != answer.objects.size()) return Nonsense();
    return {};
  }

  static tl::unexpected<Error> Nonsense() { return Failure(ErrorKind::kProtocol, EIO, "rubbish about new objects"); }

  // All that was told, as attributes.
  void Complete() {
    AskForTimes();
    for (size_t i = 0; i < objects_.size(); ++i) {
      MadeObject& object = made_.objects[i];
      if (object.error) continue;
      if (!stats_[i] || stats_[i]->type != objects_[i].type) {  // somebody took it away
        object.error = Errno(ENOENT, objects_[i].name).value();
        continue;
      }
      const auto listed = listed_.find(paths_[i]);
      object.attributes = listed != listed_.end() && listed->second.type == objects_[i].type ? listed->second : session_.From(*stats_[i], paths_[i]);
      if (refused_.contains(i)) object.error = Errno(refused_[i], objects_[i].name).value();
    }
    for (size_t i = 0; i < old_.size(); ++i) {
      if (old_stats_[i] && old_stats_[i]->nanoseconds && old_stats_[i]->type == FileType::kDirectory) made_.directories.push_back(session_.From(*old_stats_[i], old_[i]));
    }
  }

  // Where the sandbox's stat knows whole seconds only, envd tells the rest: by a listing of each directory that something was made in.
  void AskForTimes() {
    std::set<std::string> directories;
    for (size_t i = 0; i < objects_.size(); ++i) {
      if (stats_[i] && !stats_[i]->nanoseconds) directories.insert(ParentPath(paths_[i]));
    }
    std::vector<std::pair<std::string, std::future<Result<std::vector<envd::EntryInfo>>>>> asked;
    auto take = [&] {
      for (auto& [directory, answer] : asked) {
        auto entries = answer.get();
        if (!entries) log::Debug("service", "times in {}: {}", directory, ToString(entries.error()));
        for (const envd::EntryInfo& entry : entries ? *entries : std::vector<envd::EntryInfo>()) {
          const std::string path = JoinPath(directory, entry.name);
          if (entry.complete) listed_[path] = session_.From(entry, path);
        }
      }
      asked.clear();
    };
    for (const std::string& directory : directories) {
      auto absolute = session_.Absolute(directory);
      if (!absolute || !IsUtf8Text(*absolute)) continue;
      auto list = [this, path = *absolute] { return session_.client().ListDir(path, 1, ctx_); };
      try {
        asked.emplace_back(directory, std::async(std::launch::async, list));
      } catch (const std::system_error&) {
        asked.emplace_back(directory, std::async(std::launch::deferred, list));
      }
      if (asked.size() == kListingsAtOnce) take();
    }
    take();
  }

  ServiceSession& session_;
  const std::vector<NewObject>& objects_;
  OpContext ctx_;
  MadeObjects made_;
  std::string stage_;         // with all contents; empty: there are none
  int64_t staged_bytes_ = 0;
  int64_t offset_ = 0;        // in it, of the next command's
  std::vector<std::string> paths_;  // of the objects, as in RemoteFs
  std::vector<std::optional<ServiceStat>> stats_, old_stats_;
  std::vector<std::string> old_;    // directories that were there
  std::map<size_t, int> refused_;
  std::map<std::string, Attributes> listed_;
};

}  // namespace

// Bits that creation by a shell cannot give.
std::string ModeBeyondCreation(uint32_t permissions, uint32_t asked_for) {
  if ((permissions & ~asked_for) == 0) return "-";
  return ModeArgument(permissions);
}

std::string UmaskArgument(uint32_t permissions) { return ModeArgument(~permissions & 0777); }

Result<MadeObjects> MakeNewObjects(ServiceSession& session, const std::vector<NewObject>& objects, const OpContext& ctx) {
  if (auto sane = CheckRow(objects); !sane) return Forward(sane.error());
  if (objects.empty()) return MadeObjects{};
  return RowMaker(session, objects, ctx.Uninterruptible()).Make();
}

}  // namespace e2bfs::transport
