#include "transport/service_session.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <random>

#include "transport/base/log.h"

namespace e2bfs::transport {

namespace {

constexpr size_t kMaxServicePath = 4095;
constexpr size_t kMaxServiceOutput = size_t{4} << 20;  // of all but listings
constexpr size_t kMaxServiceListing = envd::kMaxListingBytes;
constexpr size_t kMaxChangeOutput = size_t{4} << 20;
constexpr size_t kClaimsBeforeCleaning = 32;
constexpr std::chrono::hours kStageRecheck{6};
constexpr std::chrono::seconds kStageRemovalTime{5};
constexpr int kAnswerTries = 3;
constexpr std::string_view kStagePrefix = ".e2bfs-stage-";
constexpr uint32_t kNobody = 65534;

envd::ProcessConfig ScriptProcess(ServiceScript script, std::vector<std::string> arguments) {
  envd::ProcessConfig process;
  process.command = "/bin/sh";
  process.arguments = {"-c", ServiceScriptText(script), "e2bfs"};
  for (std::string& argument : arguments) process.arguments.push_back(std::move(argument));
  process.environment = ServiceScriptEnvironment();
  return process;
}

std::string NewStageName() {
  std::random_device device;
  std::string name(kStagePrefix);
  static constexpr char kHex[] = "0123456789abcdef";
  for (int i = 0; i < 16; ++i) name += kHex[device() & 15];
  return name;
}

uint32_t NumberOfAccount(const std::string& name, const std::map<std::string, uint32_t>& accounts) {
  auto found = accounts.find(name);
  if (found != accounts.end()) return found->second;
  uint32_t number = kNobody;
  auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  bool whole = error == std::errc() && end == name.data() + name.size() && !name.empty();
  return whole ? number : kNobody;
}

// The last line that says something, for people.
std::string LastMessageLine(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  size_t newline = text.rfind('\n');
  if (newline != std::string_view::npos) text.remove_prefix(newline + 1);
  return std::string(text.substr(0, 300));
}

}  // namespace

Result<std::unique_ptr<ServiceSession>> ServiceSession::Create(std::shared_ptr<envd::Client> client, const ServiceFsOptions& options,
                                                               const OpContext& ctx) {
  std::unique_ptr<ServiceSession> session(new ServiceSession(std::move(client)));
  if (options.root.find('\0') != std::string::npos) return Errno(EINVAL, "path to mount");
  auto output = session->Ask(ServiceScript::kInitialize,
                             {EncodeArgument(options.root), options.read_only ? std::string() : NewStageName()}, ctx);
  if (!output) {
    Error error = output.error();
    if (error.kind == ErrorKind::kErrno) error.message = "path '" + options.root + "' in the sandbox: " + error.message;
    return Forward(std::move(error));
  }
  auto facts = ParseServiceFacts(*output);
  if (!facts) return Failure(ErrorKind::kProtocol, EIO, "the sandbox's first answer makes no sense");
  session->facts_ = std::move(*facts);
  session->facts_.perl &= options.use_perl;
  session->facts_.find_prints &= options.use_find;
  session->facts_.dd_bytes &= options.use_dd_bytes;
  session->stage_checked_at_ = std::chrono::system_clock::now();
  return session;
}

ServiceSession::~ServiceSession() {
  if (facts_.stage.empty()) return;
  // A request could resume a sandbox that was paused, which costs its owner; the next mount removes what is old.
  if (not_running_) {
    log::Info("service", "the sandbox does not run: staging directory {} stays", facts_.stage);
    return;
  }
  auto removed = Ask(ServiceScript::kCleanUp, {EncodeArgument(facts_.stage)}, OpContext::Within(kStageRemovalTime));
  if (!removed) log::Warning("service", "staging directory {} stays: {}", facts_.stage, ToString(removed.error()));
}

Result<std::string> ServiceSession::Absolute(const std::string& path) const {
  if (int wrong = CheckPath(path)) return Errno(wrong, "path");
  std::string absolute = JoinPath(facts_.root, path);
  if (absolute.size() > kMaxServicePath) return Errno(ENAMETOOLONG, "path in the sandbox");
  return absolute;
}

Result<std::string> ServiceSession::Locate(const Node& node) const {
  auto absolute = Absolute(node.path);
  if (absolute && !identities_.Leads(node)) return Errno(ESTALE, node.path);
  return absolute;
}

Result<std::string> ServiceSession::Locate(const Name& name, std::string* absolute_parent) const {
  if (int wrong = CheckName(name.name)) return Errno(wrong, "name");
  auto parent = Locate(name.parent);
  if (!parent) return parent;
  if (absolute_parent) *absolute_parent = *parent;
  return Absolute(JoinPath(name.parent.path, name.name));
}

bool ServiceSession::IsHidden(const std::string& absolute) const {
  if (facts_.stage.empty()) return false;
  size_t name = facts_.stage.rfind('/') + 1;
  return absolute.size() > name && absolute.compare(0, name, facts_.stage, 0, name) == 0 &&
         absolute.compare(name, kStagePrefix.size(), kStagePrefix) == 0;
}

// What is the same whatever told the rest.
Attributes ServiceSession::Finished(Attributes attributes, const std::string& path) const {
  attributes.id = identities_.IdOf(path);
  attributes.ctime = attributes.atime = attributes.mtime;
  attributes.blocks = attributes.size / 512 + (attributes.size % 512 != 0);
  attributes.link_count = 1;
  attributes.access = AccessByMode(attributes, facts_.uid, facts_.gid, facts_.groups);
  if (attributes.type == FileType::kRegular && attributes.size == 0) {
    std::string absolute = JoinPath(facts_.root, path);
    attributes.size_unreliable = absolute.rfind("/proc/", 0) == 0 || absolute.rfind("/sys/", 0) == 0;
  }
  return attributes;
}

Attributes ServiceSession::From(const envd::EntryInfo& entry, const std::string& path) const {
  Attributes attributes;
  attributes.type = entry.type;
  attributes.permissions = entry.permissions;
  attributes.size = entry.size;
  attributes.owner = entry.owner;
  attributes.group = entry.group;
  attributes.uid = NumberOfAccount(entry.owner, facts_.users);
  attributes.gid = NumberOfAccount(entry.group, facts_.group_numbers);
  attributes.mtime = entry.mtime;
  return Finished(std::move(attributes), path);
}

Attributes ServiceSession::From(const ServiceStat& stat, const std::string& path) const {
  Attributes attributes;
  attributes.type = stat.type;
  attributes.permissions = stat.permissions;
  attributes.size = stat.size;
  attributes.uid = stat.uid;
  attributes.gid = stat.gid;
  // stat(1) says UNKNOWN where envd gives the number.
  attributes.owner = facts_.users.count(stat.owner) != 0 ? stat.owner : std::to_string(stat.uid);
  attributes.group = facts_.group_numbers.count(stat.group) != 0 ? stat.group : std::to_string(stat.gid);
  attributes.mtime = stat.mtime;
  return Finished(std::move(attributes), path);
}

Result<Attributes> ServiceSession::Stat(const std::string& path, const OpContext& ctx) {
  auto absolute = Absolute(path);
  if (!absolute) return Forward(absolute.error());
  if (IsHidden(*absolute)) return Errno(ENOENT, path);
  for (int tries = 1;; ++tries) {
    FileId before = identities_.IdOf(path);
    Attributes attributes;
    if (IsUtf8Text(*absolute)) {
      auto entry = client_->Stat(*absolute, ctx);
      NoteRunning(entry ? nullptr : &entry.error());
      if (!entry) return Forward(entry.error());
      if (!entry->complete) return Failure(ErrorKind::kProtocol, EIO, "attributes without a mode");
      attributes = From(*entry, path);
    } else {
      auto output = Ask(ServiceScript::kStat, {EncodeArgument(*absolute)}, ctx);
      if (!output) return Forward(output.error());
      auto stat = ParseServiceStat(std::string_view(*output).substr(0, output->find('\n')));
      if (!stat) return Failure(ErrorKind::kProtocol, EIO, "rubbish from stat");
      attributes = From(*stat, path);
    }
    // A rename through this client meanwhile: whose attributes these are nobody knows.
    if (attributes.id == before) return attributes;
    if (tries == 3) return Errno(ESTALE, path);
  }
}

Result<Attributes> ServiceSession::Stat(const Node& node, const OpContext& ctx) {
  auto absolute = Locate(node);
  if (!absolute) return Forward(absolute.error());
  auto attributes = Stat(node.path, ctx);
  if (attributes && node.id.known() && !(attributes->id == node.id)) return Errno(ESTALE, node.path);
  return attributes;
}

Result<Attributes> ServiceSession::Complete(const ServiceStat& stat, const std::string& path, const OpContext& ctx) {
  if (!stat.nanoseconds && IsUtf8Text(JoinPath(facts_.root, path))) return Stat(path, ctx);
  return From(stat, path);
}

void ServiceSession::NoteRunning(const Error* error) {
  if (error == nullptr || error->kind == ErrorKind::kNotRunning) not_running_ = error != nullptr;
}

Result<std::string> ServiceSession::RunChange(const envd::ProcessConfig& process, const OpContext& ctx) {
  envd::StartRequest start;
  start.process = process;
  commands_.fetch_add(1, std::memory_order_relaxed);
  auto stream = client_->StartProcess(start, ctx);
  if (!stream) return Forward(stream.error());
  std::string output;
  while (true) {
    auto event = (*stream)->Next(ctx);
    if (!event) {
      Error error = event.error();
      // From here on it may have been done, whatever is said.
      bool refused = error.kind == ErrorKind::kErrno || error.kind == ErrorKind::kBadRequest || error.kind == ErrorKind::kUnauthorized ||
                     error.kind == ErrorKind::kTimeout;
      if (!refused) error.kind = ErrorKind::kBroken;
      return Forward(std::move(error));
    }
    if (!*event) return output;
    if ((*event)->kind != envd::ProcessEvent::Kind::kStdout) continue;
    output += (*event)->data;
    if (output.size() > kMaxChangeOutput) return Failure(ErrorKind::kProtocol, EIO, "more output than a change makes");
  }
}

Result<std::string> ServiceSession::Ask(ServiceScript script, std::vector<std::string> arguments, const OpContext& ctx) {
  envd::RunRequest request;
  request.process = ScriptProcess(script, std::move(arguments));
  request.max_stdout_bytes = script == ServiceScript::kList ? kMaxServiceListing : kMaxServiceOutput;
  request.repeat = Repeat::kIdempotent;
  commands_.fetch_add(1, std::memory_order_relaxed);
  auto result = client_->Run(request, ctx);
  NoteRunning(result ? nullptr : &result.error());
  if (!result) return Forward(result.error());
  if (result->Succeeded()) return std::move(result->out);
  if (!result->end.exited) return Failure(ErrorKind::kBroken, EIO, "the command was killed: " + result->end.status);
  return Errno(ErrnoFromCommandOutput(result->err), LastMessageLine(result->err));
}

Result<ServiceChangeAnswer> ServiceSession::Change(ServiceScript script, std::vector<std::string> arguments, const OpContext& ctx) {
  std::string claim, old_claims;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    claim = "c" + std::to_string(++last_stage_name_);
    if (finished_claims_.size() >= kClaimsBeforeCleaning) {
      for (const std::string& old : finished_claims_) old_claims += old + " " + old + ".r ";
      finished_claims_.clear();
    }
  }
  std::vector<std::string> all = {EncodeArgument(facts_.stage), claim, old_claims};
  all.insert(all.end(), std::make_move_iterator(arguments.begin()), std::make_move_iterator(arguments.end()));
  envd::ProcessConfig process = ScriptProcess(script, std::move(all));
  OpContext whole = ctx.Uninterruptible();
  Error last;
  for (int tries = 1; tries <= kAnswerTries; ++tries) {
    auto output = RunChange(process, whole);
    NoteRunning(output ? nullptr : &output.error());
    if (output) {
      auto answer = ParseServiceChange(*output);
      if (answer) {
        std::lock_guard<std::mutex> lock(mutex_);
        finished_claims_.push_back(claim);
        if (answer->status == 0) return std::move(*answer);
        Error error = Errno(ErrnoFromCommandOutput(answer->messages), LastMessageLine(answer->messages)).value();
        error.content_stored = std::find(answer->words.begin(), answer->words.end(), "STORED") != answer->words.end();
        error.appended = answer->appended;
        return Forward(std::move(error));
      }
      last = Error{EIO, ErrorKind::kBroken, "no answer from a change", 0, ""};
    } else {
      last = output.error();
      bool lost = last.kind == ErrorKind::kBroken || last.kind == ErrorKind::kTimeout || last.kind == ErrorKind::kProtocol;
      if (!lost) return Forward(std::move(last));
    }
    if (facts_.stage.empty() || Clock::now() >= ctx.deadline) break;
    log::Info("service", "the answer of a change was lost, asking again: {}", ToString(last));
  }
  return Forward(std::move(last));
}

Result<std::string> ServiceSession::NewStageFile(const OpContext& ctx) {
  if (facts_.stage.empty()) return Errno(EROFS, "no place for staging in the sandbox");
  bool check = false;
  std::string path;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    path = facts_.stage + "/d" + std::to_string(++last_stage_name_);
    auto now = std::chrono::system_clock::now();
    check = now - stage_checked_at_ > kStageRecheck || now < stage_checked_at_;
    if (check) stage_checked_at_ = now;
  }
  if (check) {
    // Another mount may take a directory that was not used for days for a dead one's.
    auto made = Ask(ServiceScript::kStage, {EncodeArgument(facts_.stage)}, ctx);
    if (!made) return Forward(made.error());
  }
  return path;
}

void ServiceSession::DiscardStageFile(const std::string& absolute) {
  auto discarded = Ask(ServiceScript::kDiscard, {EncodeArgument(facts_.stage), absolute.substr(absolute.rfind('/') + 1)},
                       OpContext::Within(kStageRemovalTime));
  if (!discarded) log::Debug("service", "staged file {} stays for now: {}", absolute, ToString(discarded.error()));
}

}  // namespace e2bfs::transport
