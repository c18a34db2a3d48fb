#include "transport/service_new_objects.h"

#include <algorithm>
#include <charconv>
#include <ctime>
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
    size_t asked = 0;
    auto ran = RunAll(making, &asked);
    if (!ran && asked == 0) return ran;
    if (!ran) {
      NoteUnknown(making, asked, ran.error());
      Complete();
      return {};
    }
    for (size_t i = objects_.size(); i-- > 0;) {  // what is in a directory comes after it
      if (objects_[i].type == FileType::kDirectory && !made_.objects[i].error) setting.push_back({Step::Kind::kSet, making[i].path, &objects_[i], i});
    }
    old_stats_.resize(old_.size());
    for (size_t i = 0; i < old_.size(); ++i) {
      auto path = session_.Absolute(old_[i]);
      if (path) setting.push_back({Step::Kind::kSet, *path, nullptr, i});
    }
    if (ran = RunAll(setting, &asked); !ran) log::Info("service", "new directories may lack their attributes: {}", ToString(ran.error()));
    Complete();
    return {};
  }

  // Of the steps from `first` on: what the command that failed did is not known, and no further one was run.
  void NoteUnknown(const std::vector<Step>& making, size_t first, const Error& failed) {
    log::Info("service", "some of a row of new objects may not be made: {}", ToString(failed));
    const size_t end = EndOfCommand(making, first);
    for (size_t i = first; i < making.size(); ++i) {
      std::optional<Error>& error = made_.objects[i].error;
      if (!error) error = i < end ? failed : Failure(ErrorKind::kUnavailable, EIO, "not tried after " + failed.message).value();
    }
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

  // `asked`: the steps of the commands that answered.
  Result<void> RunAll(const std::vector<Step>& steps, size_t* asked) {
    for (*asked = 0; *asked < steps.size();) {
      const size_t end = EndOfCommand(steps, *asked);
      if (auto ran = Run({steps.begin() + static_cast<ptrdiff_t>(*asked), steps.begin() + static_cast<ptrdiff_t>(end)}); !ran) return ran;
      *asked = end;
    }
    return {};
  }

  static size_t EndOfCommand(const std::vector<Step>& steps, size_t first) {
    size_t end = first, bytes = 0;
    while (end < steps.size() && (end == first || (end - first < kObjectsOfOneCommand && bytes + steps[end].argument_bytes() <= kArgumentBytesOfOneCommand))) {
      bytes += steps[end++].argument_bytes();
    }
    return end;
  }

  // An error is never kErrno, which would say that nothing was made: the shell may have died at any place.
  Result<void> Run(const std::vector<Step>& steps) {
    std::vector<std::string> arguments = {EncodeArgument(stage_), std::to_string(staged_bytes_), std::to_string(offset_)};
    for (const Step& step : steps) {
      arguments.push_back(EncodeArgument(step.path));
      arguments.push_back(StepArgument(step, steps));
    }
    auto answer = session_.Change(ServiceScript::kMakeObjects, std::move(arguments), ctx_.Renewed());
    if (!answer) {
      Error error = answer.error();
      if (error.kind == ErrorKind::kErrno) error = Failure(ErrorKind::kBroken, EIO, "a command for new objects failed: " + error.message).value();
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

  // What a command said: lines "F step text" of what was not made, "T step" of a torn file, "R step text" of refused attributes, "G number" of what is
  // gone among those that are told of. Nonsense changes nothing here.
  Result<void> Take(const ServiceChangeAnswer& answer, const std::vector<Step>& steps) {
    std::map<size_t, Error> failed;
    std::map<size_t, int> refused;
    std::set<size_t> gone;
    for (std::string_view rest = answer.messages; !rest.empty();) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      if (line.empty()) continue;  // nothing was said
      size_t number = 0;
      const char* const end = line.data() + line.size();
      if (line.size() < 3 || line[1] != ' ') return Nonsense();
      const auto [after, error] = std::from_chars(line.data() + 2, end, number);
      if (error != std::errc() || number >= steps.size()) return Nonsense();
      const int code = ErrnoFromCommandOutput(std::string_view(after, static_cast<size_t>(end - after)).substr(after == end ? 0 : 1));
      const std::string name = steps[number].object ? steps[number].object->name : std::string();
      if (line[0] == 'F') failed.try_emplace(number, Errno(code, name).value());
      else if (line[0] == 'T') failed.insert_or_assign(number, Failure(ErrorKind::kBroken, EIO, name + " is torn, and cannot be removed").value());
      else if (line[0] == 'R') refused.try_emplace(number, code);
      else if (line[0] == 'G') gone.insert(number);
      else return Nonsense();
    }
    std::vector<size_t> told;  // steps
    for (size_t i = 0; i < steps.size(); ++i) {
      const bool make = steps[i].kind == Step::Kind::kMake;
      if (failed.contains(i)) continue;
      if (make && made_.objects[steps[i].index].error) return Nonsense();
      if (!make || steps[i].object->type != FileType::kDirectory) told.push_back(i);  // new directories are told of at last
    }
    if (told.size() != answer.objects.size() + gone.size() || (!gone.empty() && *gone.rbegin() >= told.size())) return Nonsense();
    for (size_t i = 0; i < steps.size(); ++i) {
      const Step& step = steps[i];
      if (step.kind == Step::Kind::kMake) {
        std::optional<Error>& error = made_.objects[step.index].error;
        if (!failed.contains(i)) session_.identities().Created(paths_[step.index]);
        else if (!error) error = failed.at(i);
      }
      if (step.object && refused.contains(i)) refused_[step.index] = Errno(refused[i], step.object->name).value();
    }
    for (size_t i = 0, next = 0; i < told.size(); ++i) {
      const Step& step = steps[told[i]];
      if (step.object) asked_.insert(step.index);
      if (!gone.contains(i)) (step.object ? stats_[step.index] : old_stats_[step.index]) = answer.objects[next++];
    }
    return {};
  }

  static tl::unexpected<Error> Nonsense() { return Failure(ErrorKind::kProtocol, EIO, "rubbish about new objects"); }

  // All that was told, as attributes.
  void Complete() {
    AskForTimes();
    std::vector<std::string> lost;
    for (size_t i = 0; i < objects_.size(); ++i) {
      MadeObject& object = made_.objects[i];
      if (object.error) continue;
      const bool there = stats_[i] && stats_[i]->type == objects_[i].type;
      const auto listed = listed_.find(paths_[i]);
      const bool in_list = there && listed != listed_.end() && listed->second.type == objects_[i].type;
      object.attributes = in_list ? listed->second : session_.From(there ? *stats_[i] : AsMade(i), paths_[i]);
      if (there && refused_.contains(i)) object.error = refused_.at(i);
      if (asked_.contains(i)) {
        if (!there) lost.push_back(paths_[i]);
      } else if (HasAttributes(objects_[i].attributes)) {
        object.error = Failure(ErrorKind::kBroken, EIO, "the attributes of " + objects_[i].name + " may not be set").value();
      }
    }
    for (const std::string& path : lost) session_.identities().Removed(path);  // what is there now, or will be, is another one
    for (size_t i = 0; i < old_stats_.size(); ++i) {
      if (old_stats_[i] && old_stats_[i]->nanoseconds && old_stats_[i]->type == FileType::kDirectory) made_.directories.push_back(session_.From(*old_stats_[i], old_[i]));
    }
  }

  static bool HasAttributes(AttributeChange change) {
    change.size.reset();
    return !change.empty();
  }

  // Of what was made, and taken away before it was looked at.
  ServiceStat AsMade(size_t index) const {
    const NewObject& object = objects_[index];
    const ServiceFacts& facts = session_.facts();
    const AttributeChange set = asked_.contains(index) ? object.attributes : AttributeChange{};
    ServiceStat stat;
    stat.type = object.type;
    stat.permissions = object.type == FileType::kSymlink ? 0777 : set.permissions.value_or(object.permissions);
    stat.uid = set.uid.value_or(facts.uid);
    stat.gid = set.gid.value_or(facts.gid);
    stat.owner = set.uid ? std::string() : facts.user;
    stat.size = object.type == FileType::kSymlink ? static_cast<int64_t>(object.target.size()) : object.type == FileType::kRegular ? object.size : 0;
    if (set.mtime && !set.mtime->now) stat.mtime = set.mtime->value;
    else ::clock_gettime(CLOCK_REALTIME, &stat.mtime);
    return stat;
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
  std::set<size_t> asked_;          // objects that a command was to tell of, after it had set their attributes
  std::vector<std::string> old_;    // directories that were there
  std::map<size_t, Error> refused_;
  std::map<std::string, Attributes> listed_;
};

}  // namespace

Result<MadeObjects> MakeNewObjects(ServiceSession& session, const std::vector<NewObject>& objects, const OpContext& ctx) {
  if (auto sane = CheckRow(objects); !sane) return Forward(sane.error());
  if (objects.empty()) return MadeObjects{};
  return RowMaker(session, objects, ctx.Uninterruptible()).Make();
}

}  // namespace e2bfs::transport
