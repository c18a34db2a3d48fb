#include "transport/syscall/channel.h"

#include <fmt/core.h>

#include <algorithm>
#include <csignal>
#include <random>

#include "transport/base/log.h"
#include "transport/base/waiting.h"

namespace e2bfs::transport::syscall {
namespace {

using std::chrono::milliseconds;

// Unanswered bytes towards the server: less than a pipe holds, since a full one blocks even envd's own calls for it.
constexpr size_t kWindowBytes = size_t{48} << 10;
constexpr size_t kLowWaterBytes = 8;                   // at the front of a request's body
constexpr milliseconds kSignalTime{5'000};
constexpr milliseconds kLeaveTime{2'000};
constexpr size_t kLongestWord = 300;                    // of the server's standard error, in the log
constexpr milliseconds kFirstWait{50}, kLongestWait{2'000};
constexpr int kStartTries = 3;                         // of a server that ends while it starts
constexpr std::chrono::hours kLongTime{1};
constexpr milliseconds kLookTime{100};                  // between two looks at a way in, when something is waited for
constexpr size_t kCancelsOfFrame = 512;
constexpr int kServersOfRequest = 2;                   // it has lost so many: it is what they die of
constexpr std::chrono::seconds kEarly{10};             // a server that ends sooner was no good
constexpr milliseconds kLongestRest{1'000};            // before another is started, then

std::string RandomBytes(size_t count) {
  std::random_device device;
  std::string bytes;
  while (bytes.size() < count) bytes.push_back(char(device()));
  return bytes;
}

std::string Hex(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  return text;
}

constexpr char kLabelVariable[] = "E2BFS_SERVER";

// The template's environment could stop perl, or send it into a debugger.
std::map<std::string, std::string> ServerEnvironment(const std::string& label) {
  return {{"PERL5OPT", ""}, {"PERL5LIB", ""}, {"PERL_UNICODE", ""}, {"LC_ALL", "C"}, {kLabelVariable, label}};
}

bool IsFinal(const Error& error) {
  return error.kind == ErrorKind::kNotRunning || error.kind == ErrorKind::kUnauthorized || error.kind == ErrorKind::kErrno ||
         error.kind == ErrorKind::kBadRequest || error.kind == ErrorKind::kLocal;
}

bool FitsFrame(const std::vector<Call>& calls) {
  size_t bytes = kFrameHeaderBytes + kLowWaterBytes + 3;
  for (const Call& call : calls) bytes += 5 + call.arguments.size();
  return bytes <= kMaxRequestBytes;
}

Result<ServerFacts> DecodeFacts(const Outcomes& outcomes) {
  if (outcomes.empty()) return Failure(ErrorKind::kProtocol, EIO, "the syscall server said nothing of itself");
  if (outcomes[0].errno_value != 0) return Errno(outcomes[0].errno_value, "the mounted directory");
  Fields fields(outcomes[0].result);
  ServerFacts facts;
  facts.pid = fields.U32();
  facts.actor.uid = fields.U32();
  facts.actor.gid = fields.U32();
  const uint32_t groups = fields.U32();
  for (uint32_t i = 0; i < groups && fields.ok(); ++i) facts.actor.groups.push_back(fields.U32());
  facts.user = std::string(fields.Text());
  facts.home = std::string(fields.Text());
  facts.root = std::string(fields.Text());
  facts.perl_version = std::string(fields.Text());
  facts.clock_seconds = fields.I64();
  auto root = DecodeAttributes(fields, facts.actor);
  if (!root || !fields.ended() || !facts.root.starts_with('/')) {
    return Failure(ErrorKind::kProtocol, EIO, "what the syscall server says of itself makes no sense");
  }
  facts.root_attributes = std::move(*root);
  return facts;
}

}  // namespace

const char kServerLoader[] =
    "alarm 60;binmode STDIN;my$h='';while(length$h<24){sysread(STDIN,$h,24-length$h,length$h)||exit 1}"
    "our$ID=pack'H16',$h;my$n=hex substr$h,16;my$p='';"
    "while(length$p<$n){sysread(STDIN,$p,$n-length$p,length$p)||exit 1}alarm 0;eval$p;print STDERR$@;exit 1";

struct Channel::Request {
  uint64_t number = 0;
  Effect effect = Effect::kNone;
  std::string operations;  // the body without its low-water mark
  size_t calls = 0;
  bool queued = true;   // waits in queue_
  bool sent = false;    // at least once
  uint64_t low = 0;     // the low-water mark that went with it
  int servers_lost = 0;  // while it was the first that they had not answered
  bool finished = false;
  bool gave_way = false;  // to another long answer: to be asked again
  size_t answer_bytes = 0;
  Outcomes outcomes;
  uint32_t server_pid = 0;  // whose they are
  std::optional<Error> error;
  std::condition_variable_any answered;  // with the channel's mutex
  std::function<void(Result<Outcomes>)> done;
  bool posted = false;
  std::optional<std::weak_ptr<void>> owner;  // of a posted one

  bool wanted() const { return !posted || (done && !(owner && owner->expired())); }
  size_t frame_bytes() const { return kFrameHeaderBytes + kLowWaterBytes + operations.size(); }
  Result<Outcomes> TakeResult() {
    if (error) return Forward(*error);
    return std::move(outcomes);
  }
};

Channel::Channel(std::shared_ptr<envd::Client> client, ChannelOptions options, Reopen reopen, News news)
    : client_(std::move(client)), options_(std::move(options)), reopen_(std::move(reopen)), news_(std::move(news)) {}

Result<std::unique_ptr<Channel>> Channel::Open(std::shared_ptr<envd::Client> client, ChannelOptions options, Reopen reopen, News news,
                                               const OpContext& ctx) {
  std::unique_ptr<Channel> channel(new Channel(std::move(client), std::move(options), std::move(reopen), std::move(news)));
  if (auto started = channel->StartServer(ctx); !started) return Forward(started.error());
  {
    Lock lock(channel->mutex_);
    channel->state_ = State::kReady;
  }
  return channel;
}

void Channel::Begin() {
  keeper_ = std::jthread([this](std::stop_token stop) { Run(stop); });
  watch_ = std::jthread([this](std::stop_token stop) { Watch(stop); });
}

Channel::~Channel() {
  watch_.request_stop();
  if (watch_.joinable()) watch_.join();
  if (!keeper_.joinable()) return;  // never opened
  {
    Lock lock(mutex_);
    leaving_ = true;  // nothing is begun any more
    if (state_ == State::kReady) {
      controls_.push_back(EncodeFrame(server_id_, next_number_++, EncodeLeave()));
      SendQueued(lock);
      changed_.wait_for(lock, kLeaveTime, [this] { return process_ended_ || state_ != State::kReady; });
    }
    state_ = State::kClosed;
    // Before the cancelling: whatever the keeper puts in their place then, it does not wait for.
    keeper_.request_stop();
    for (const auto& output : {output_, trial_output_}) {
      if (output) output->Cancel();
    }
    for (const auto& input : {input_, trial_input_}) {
      if (input) input->Cancel();
    }
    changed_.notify_all();
  }
  keeper_.join();
  Lock lock(mutex_);
  FinishAll(lock, Failure(ErrorKind::kCancelled, EIO, "the mount ends").value(), [](const Request&) { return true; });
}

ServerFacts Channel::facts() const {
  Lock lock(mutex_);
  return facts_;
}

uint32_t Channel::server_pid() const {
  Lock lock(mutex_);
  return facts_.pid;
}

ChannelCounts Channel::counts() const {
  Lock lock(mutex_);
  return counts_;
}

// --- sending

uint64_t Channel::LowWater() const { return in_flight_.empty() ? next_number_ - 1 : in_flight_.begin()->first - 1; }

void Channel::Enqueue(Lock& lock, const std::shared_ptr<Request>& request, const std::vector<Call>& calls) {
  request->operations = EncodeOperations(0, calls).substr(kLowWaterBytes);
  request->calls = calls.size();
  request->number = next_number_++;
  if (in_flight_.empty()) quiet_since_ = Clock::now();
  in_flight_.emplace(request->number, request);
  queue_.push_back(request->number);
  ++counts_.requests;
  active_ = true;
  if (!alert_) WakeWatch();
  if (state_ == State::kReady) {
    SendQueued(lock);
  } else {
    changed_.notify_all();
  }
}

// One message of StreamInput at a time, which envd gives to the server as a whole or not at all.
std::string Channel::NextBatch() {
  std::string batch;
  while (!controls_.empty() && batch.size() + controls_.front().size() <= kMaxRequestBytes) {
    batch += controls_.front();
    controls_.pop_front();
  }
  while (!queue_.empty()) {
    Request& request = *in_flight_.at(queue_.front());
    const size_t bytes = request.frame_bytes();
    if (!batch.empty() && batch.size() + bytes > kMaxRequestBytes) break;
    if (unanswered_bytes_ > 0 && unanswered_bytes_ + bytes > kWindowBytes) break;
    std::string body;
    request.low = LowWater();
    for (int shift = 56; shift >= 0; shift -= 8) body.push_back(char(request.low >> shift));
    batch += EncodeFrame(server_id_, request.number, body.append(request.operations));
    request.sent = true;
    request.queued = false;
    in_pipe_.emplace_back(request.number, bytes);
    unanswered_bytes_ += bytes;
    queue_.pop_front();
  }
  return batch;
}

void Channel::SendQueued(Lock& lock) {
  if (sending_) return;
  sending_ = true;
  while (state_ == State::kReady) {
    const std::string batch = NextBatch();
    if (batch.empty()) break;
    const std::shared_ptr<envd::InputStream> input = input_;
    lock.unlock();
    // The connection takes more than our window ahead, so this never waits; and where it fails, nobody is asked why: the time is over.
    auto written = input->Write(batch, OpContext{Clock::now(), {}, ServiceClass::kStream, {}});
    lock.lock();
    if (!written) {
      log::Debug("syscall", "sending to the server: {}", ToString(written.error()));
      if (input == input_) LoseWayLocked();
      break;
    }
  }
  sending_ = false;
  if (state_ != State::kReady) changed_.notify_all();
}

void Channel::LoseWay(const Error& why) {
  Lock lock(mutex_);
  if (state_ == State::kReady) log::Info("syscall", "the way to the server is lost: {}", ToString(why));
  LoseWayLocked();
}

void Channel::LoseWayLocked() {
  if (state_ != State::kReady) return;
  state_ = State::kLost;
  output_->Cancel();  // nothing more comes, and whoever sends is told
  input_->Cancel();
  changed_.notify_all();
}

void Channel::WakeWatch() {
  woken_ = true;
  tick_.notify_all();
}

void Channel::AskEcho(Lock& lock, const char* why) {
  echo_asked_ = Clock::now();
  controls_.push_back(EncodeFrame(server_id_, next_number_++, EncodeEcho(0, why)));
  SendQueued(lock);
}

// Looks after the way: echoes are asked for when nothing was heard, and a way without them is lost.
void Channel::Watch(std::stop_token stop) {
  Lock lock(mutex_);
  while (!stop.stop_requested()) {
    const TimePoint now = Clock::now();
    TimePoint next = now + kLongTime;
    alert_ = false;
    // Whoever listens does not hear that the way in is gone.
    if (trial_input_ && !trial_input_->Check()) {
      trial_output_->Cancel();
      trial_input_.reset();
      trial_output_.reset();
    }
    if (state_ == State::kReady && !in_flight_.empty() && !input_->Check()) {
      log::Info("syscall", "the way to the server is lost");
      LoseWayLocked();
    }
    if (trial_input_) next = now + kLookTime;
    if (state_ == State::kReady) {
      if (echo_asked_) {
        next = *echo_asked_ + options_.echo_timeout;
      } else if (!in_flight_.empty()) {
        next = quiet_since_ + options_.quiet_time;
      } else {
        next = heard_ + options_.pulse;
      }
      if (next <= now) {
        if (echo_asked_) {
          log::Info("syscall", "no word from the server for {} ms", std::chrono::duration_cast<milliseconds>(now - heard_).count());
          LoseWayLocked();
        } else {
          AskEcho(lock, in_flight_.empty() ? "pulse" : "quiet");
        }
        continue;
      }
      // While requests come and go, not each of them has to wake this thread.
      if (std::exchange(active_, false)) next = std::min(next, now + options_.quiet_time);
      if (!in_flight_.empty()) next = std::min(next, now + kLookTime);
      alert_ = next <= now + options_.quiet_time;
    }
    tick_.wait_until(lock, stop, next, [this] { return woken_; });
    woken_ = false;
  }
}

bool Channel::IsWanted() const {
  return std::any_of(in_flight_.begin(), in_flight_.end(), [](const auto& entry) { return entry.second->wanted(); });
}

// Nobody wants it any more. If it was sent, it may still be on its way: it is barred.
void Channel::Abandon(const Request& request) {
  if (request.sent) abandoned_.insert(request.number);
  if (request.queued) queue_.erase(std::find(queue_.begin(), queue_.end(), request.number));
}

Channel::InFlight::iterator Channel::Remove(InFlight::iterator at) {
  held_bytes_ -= at->second->answer_bytes;
  if (long_answer_ == at->second) {
    long_answer_.reset();
    turn_.notify_all();
  }
  return in_flight_.erase(at);
}

void Channel::Withdraw(Lock& lock, uint64_t number) {
  auto found = in_flight_.find(number);
  if (found == in_flight_.end()) return;
  const std::shared_ptr<Request> request = found->second;
  Abandon(*request);
  Remove(found);
  if (request->sent && state_ == State::kReady) controls_.push_back(EncodeFrame(server_id_, next_number_++, EncodeCancel(0, {number})));
  SendQueued(lock);
}

Result<Outcomes> Channel::Do(const std::vector<Call>& calls, Effect effect, const OpContext& ctx, uint32_t* server_pid) {
  if (!FitsFrame(calls)) return Failure(ErrorKind::kBadRequest, E2BIG, "a request longer than a frame");
  Lock lock(mutex_);
  if (leaving_) return Failure(ErrorKind::kCancelled, EIO, "the mount ends");
  ++counts_.round_trips;
  auto request = std::make_shared<Request>();
  request->effect = effect;
  Enqueue(lock, request, calls);
  if (auto waited = Wait(lock, *request, ctx); !waited) return Forward(waited.error());
  if (request->gave_way) {
    if (!WaitWithin(turn_, lock, ctx, [&] { return !long_answer_; })) return WaitEnded(ctx, "waiting for another long answer");
    if (leaving_) return Failure(ErrorKind::kCancelled, EIO, "the mount ends");
    long_answer_ = request = std::make_shared<Request>();
    request->effect = effect;
    Enqueue(lock, request, calls);
    if (auto waited = Wait(lock, *request, ctx); !waited) return Forward(waited.error());
  }
  if (server_pid) *server_pid = request->server_pid;
  return request->TakeResult();
}

Result<void> Channel::Wait(Lock& lock, Request& request, const OpContext& ctx) {
  while (!request.finished) {
    const TimePoint now = Clock::now();
    const bool may_stop = request.effect == Effect::kNone || !request.sent;
    if (may_stop && ctx.stop.stop_requested()) {
      Withdraw(lock, request.number);
      return Failure(ErrorKind::kCancelled, EINTR, "interrupted");
    }
    if (now >= ctx.deadline) {
      const bool unsent = !request.sent;
      Withdraw(lock, request.number);
      // What was never sent was not done: but whoever waited so long need not know.
      return Failure(ErrorKind::kTimeout, ETIMEDOUT, unsent ? "no way to the sandbox" : "no answer from the sandbox");
    }
    const TimePoint until = std::min(ctx.deadline, now + kLongTime);
    auto over = [&] { return request.finished; };
    if (may_stop) {
      request.answered.wait_until(lock, ctx.stop, until, over);
    } else {
      request.answered.wait_until(lock, until, over);
    }
  }
  return {};
}

void Channel::Post(const std::vector<Call>& calls, std::function<void(Result<Outcomes>)> done, std::optional<std::weak_ptr<void>> owner) {
  Lock lock(mutex_);
  const bool fits = FitsFrame(calls);
  if (leaving_ || !fits) {
    lock.unlock();
    if (done && fits) done(Failure(ErrorKind::kCancelled, EIO, "the mount ends"));
    if (done && !fits) done(Failure(ErrorKind::kBadRequest, E2BIG, "a request longer than a frame"));
    return;
  }
  auto request = std::make_shared<Request>();
  request->posted = true;
  request->done = std::move(done);
  request->owner = std::move(owner);
  Enqueue(lock, request, calls);
}

// --- receiving

void Channel::Take(Reply reply) {
  std::function<void(Result<Outcomes>)> done;
  Result<Outcomes> result = Outcomes{};
  Lock lock(mutex_);
  // Requests are taken from the pipe in order: whatever came before the one that is answered is out of it.
  while (!in_pipe_.empty() && in_pipe_.front().first <= reply.number) {
    unanswered_bytes_ -= in_pipe_.front().second;
    in_pipe_.pop_front();
  }
  auto found = reply.echo || reply.news ? in_flight_.end() : in_flight_.find(reply.number);
  if (found == in_flight_.end()) {  // not an answer, or whoever asked has gone
    // The last of it: once for each that was given up, whoever answers it more often.
    const bool given_up = !reply.echo && !reply.news && !reply.more && abandoned_.erase(reply.number) != 0;
    SendQueued(lock);
    lock.unlock();
    // It was done all the same, and its own events are left out of the news, since this reply says what they would.
    if (given_up) news_(nullptr);
    return;
  }
  const std::shared_ptr<Request> request = found->second;
  size_t bytes = 0;
  for (const Reply::Outcome& outcome : reply.outcomes) bytes += sizeof outcome + outcome.result.size();
  request->answer_bytes += bytes;
  held_bytes_ += bytes;
  // Of a listing, each piece is one outcome.
  if (reply.outcomes.size() > request->calls) {
    request->error = Failure(ErrorKind::kProtocol, EIO, "more outcomes than were asked for").value();
  } else if (reply.outcomes.empty()) {
    request->error = Failure(ErrorKind::kProtocol, EIO, "a reply without an outcome").value();
  } else if (request->answer_bytes > options_.answer_bytes) {
    request->error = Failure(ErrorKind::kProtocol, EFBIG, "an answer without an end").value();
  } else {
    std::move(reply.outcomes.begin(), reply.outcomes.end(), std::back_inserter(request->outcomes));
    if (reply.more) {
      if (held_bytes_ > options_.held_bytes && !long_answer_) long_answer_ = request;
      if (held_bytes_ <= options_.held_bytes || long_answer_ == request) {
        SendQueued(lock);
        return;
      }
      // What still comes of it is nobody's.
      request->gave_way = request->effect == Effect::kNone;
      request->error = Failure(request->gave_way ? ErrorKind::kUnavailable : ErrorKind::kBroken, request->gave_way ? EAGAIN : EIO,
                               "another long answer is on its way").value();
    }
  }
  if (request->error) request->outcomes.clear();
  request->finished = true;
  request->server_pid = facts_.pid;
  // The server has seen its low-water mark: nothing up to there is done any more, however late it comes.
  abandoned_.erase(abandoned_.begin(), abandoned_.upper_bound(request->low));
  if (request->queued) queue_.erase(std::find(queue_.begin(), queue_.end(), request->number));
  Remove(found);
  if (request->posted) {
    done = std::move(request->done);
    result = request->TakeResult();
  }
  const bool more_to_send = !queue_.empty() || !controls_.empty();
  lock.unlock();
  // Without the lock, which is the first thing that whoever waits wants.
  request->answered.notify_all();
  if (done) done(std::move(result));
  if (!more_to_send) return;
  lock.lock();
  SendQueued(lock);
}

// Whole replies that have come. Where they make no sense, it is not the server that we started.
void Channel::TakeReplies() {
  Result<void> sane;
  while (sane) {
    auto reply = parser_->Next();
    if (!reply) {
      sane = Forward(reply.error());
    } else if (!*reply) {
      return;
    } else if ((*reply)->news && !news_(&(*reply)->rest)) {
      sane = Failure(ErrorKind::kProtocol, EIO, "the syscall server's news make no sense");
    } else {
      Take(std::move(**reply));
    }
  }
  {
    Lock lock(mutex_);
    distrusted_ = true;
  }
  LoseWay(sane.error());
}

void Channel::OnEvent(Result<std::optional<envd::ProcessEvent>> event) {
  if (!event) {
    LoseWay(event.error());
  } else if (!*event) {
    LoseWay(Failure(ErrorKind::kBroken, EIO, "the stream of replies ended").value());
  } else if ((*event)->kind == envd::ProcessEvent::Kind::kStdout) {
    {
      Lock lock(mutex_);
      if (state_ != State::kReady) return;  // what is answered from now on is asked again
      heard_ = quiet_since_ = Clock::now();
      echo_asked_.reset();
    }
    parser_->Feed((*event)->data);
    TakeReplies();
  } else if ((*event)->kind == envd::ProcessEvent::Kind::kStderr) {
    log::Warning("syscall", "the server says: {}", (*event)->data.substr(0, kLongestWord));
  } else if ((*event)->kind == envd::ProcessEvent::Kind::kEnd) {
    {
      Lock lock(mutex_);
      process_ended_ = true;
      changed_.notify_all();
    }
    LoseWay(Failure(ErrorKind::kBroken, EIO, "the syscall server ended: " + (*event)->end.status).value());
  }
}

void Channel::Run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    std::shared_ptr<envd::ProcessStream> output;
    {
      Lock lock(mutex_);
      output = output_;
    }
    TakeReplies();  // what came behind the last one that was waited for
    output->Listen([this](Result<std::optional<envd::ProcessEvent>> event) { OnEvent(std::move(event)); });
    {
      Lock lock(mutex_);
      changed_.wait(lock, stop, [this] { return state_ != State::kReady; });
      LoseWayLocked();
    }
    output->Listen(nullptr);
    news_(nullptr);
    FindAgain(stop);
  }
}

void Channel::FinishAll(Lock& lock, const Error& error, const std::function<bool(const Request&)>& which) {
  std::vector<std::function<void(Result<Outcomes>)>> told;
  for (auto at = in_flight_.begin(); at != in_flight_.end();) {
    Request& request = *at->second;
    if (!which(request)) {
      ++at;
      continue;
    }
    Abandon(request);
    if (request.posted && request.done) told.push_back(std::move(request.done));
    request.error = error;
    request.finished = true;
    request.answered.notify_all();
    at = Remove(at);
  }
  lock.unlock();
  for (auto& done : told) done(Forward(error));
  lock.lock();
}

// --- losing and finding

void Channel::FindAgain(std::stop_token stop) {
  milliseconds wait = kFirstWait;
  int failed_starts = 0;
  const bool early = Clock::now() - server_began_ < kEarly;
  bool counted = false;
  while (!stop.stop_requested()) {
    bool new_server;
    {
      Lock lock(mutex_);
      // Nothing is tried while nobody waits.
      changed_.wait(lock, stop, [&] { return !leaving_ && !sending_ && IsWanted(); });
      if (stop.stop_requested()) return;
      new_server = process_ended_ || distrusted_;
    }
    Result<void> found;
    if (!new_server) {
      found = Reattach(stop);
      // No echo where there is a way: the process is stuck, or another listener keeps its output. As good as gone.
      const bool silent = !found && (found.error().kind == ErrorKind::kTimeout || found.error().kind == ErrorKind::kProtocol ||
                                     found.error().kind == ErrorKind::kErrno);
      if (silent && !stop.stop_requested()) {
        log::Info("syscall", "the server does not answer any more: {}", ToString(found.error()));
        new_server = true;
      }
    }
    if (new_server && !std::exchange(counted, true)) {
      early_deaths_ = early ? early_deaths_ + 1 : 0;
      // One may have been killed by somebody; several one after the other are not worth being started as fast as they end.
      Lock lock(mutex_);
      if (early_deaths_ > 1) changed_.wait_for(lock, stop, std::min(kFirstWait * (1 << std::min(early_deaths_, 8)), kLongestRest), [&] { return leaving_; });
    }
    if (new_server && !stop.stop_requested()) {
      OpContext ctx = OpContext::Within(options_.start_timeout);
      ctx.stop = stop;
      found = StartServer(ctx);
    }
    if (found) KillCondemned();
    Lock lock(mutex_);
    if (leaving_ || stop.stop_requested()) continue;
    if (found) {
      if (new_server) {
        // It works in order: most likely it ended over the first that it did not answer.
        const auto suspect = std::find_if(in_flight_.begin(), in_flight_.end(), [](const auto& entry) { return !entry.second->queued; });
        if (suspect != in_flight_.end()) ++suspect->second->servers_lost;
        FinishAll(lock, Failure(ErrorKind::kBroken, EIO, "the syscall server was lost before it answered").value(), [](const Request& request) {
          return (request.effect == Effect::kChange && request.sent) || request.servers_lost >= kServersOfRequest;
        });
        abandoned_.clear();  // the one that could have got them later is dead
      } else {
        ++counts_.reattached;
      }
      // All again, in order.
      queue_.clear();
      for (auto& [number, request] : in_flight_) {
        request->queued = true;
        request->outcomes.clear();
        held_bytes_ -= std::exchange(request->answer_bytes, 0);
        queue_.push_back(number);
      }
      in_pipe_.clear();
      unanswered_bytes_ = 0;
      controls_.clear();
      heard_ = quiet_since_ = Clock::now();
      echo_asked_.reset();
      state_ = State::kReady;
      WakeWatch();
      SendQueued(lock);
      return;
    }
    Error error = found.error();
    log::Info("syscall", "no way to the server: {}", ToString(error));
    // Whatever ends it while it starts may have passed.
    const bool ended = error.kind == ErrorKind::kErrno && error.errno_value == ENOEXEC && ++failed_starts < kStartTries;
    if (IsFinal(error) && !ended) {
      if (error.kind == ErrorKind::kErrno) error.errno_value = EIO;  // it is not the answer to what was asked
      FinishAll(lock, error, [](const Request&) { return true; });
      wait = kFirstWait;
      failed_starts = 0;
      continue;
    }
    changed_.wait_for(lock, stop, wait, [&] { return leaving_; });
    wait = std::min(2 * wait, kLongestWait);
  }
}

Result<bool> Channel::Runs(const ServerProcess& server, const OpContext& ctx) {
  auto processes = client_->ListProcesses(ctx);
  if (!processes) return Forward(processes.error());
  return std::any_of(processes->begin(), processes->end(), [&](const envd::ProcessInfo& process) {
    const auto label = process.config.environment.find(kLabelVariable);
    return process.pid == server.pid && label != process.config.environment.end() && label->second == server.label;
  });
}

Result<void> Channel::Kill(const ServerProcess& server) {
  const OpContext ctx = OpContext::Within(kSignalTime);
  auto runs = Runs(server, ctx);
  if (!runs) return Forward(runs.error());
  if (!*runs) return {};
  auto killed = client_->SendSignal({server.pid, {}}, SIGKILL, ctx);
  if (!killed && killed.error().kind != ErrorKind::kErrno) return killed;  // else it ended meanwhile
  return {};
}

void Channel::KillCondemned() {
  std::erase_if(condemned_, [&](const ServerProcess& server) { return Kill(server).has_value(); });
}

namespace {

// The reply to `number`, which is whole. ENOEXEC/kErrno: the process has ended.
Result<Reply> AwaitReply(envd::ProcessStream& output, ReplyParser& parser, uint64_t number, const OpContext& ctx) {
  while (true) {
    auto reply = parser.Next();
    if (!reply) return Forward(reply.error());
    if (*reply) {
      if ((*reply)->number != number) continue;
      if ((*reply)->more) return Failure(ErrorKind::kProtocol, EIO, "an answer in pieces to what has none");
      return std::move(**reply);
    }
    auto event = output.Next(ctx);
    if (!event) return Forward(event.error());
    if (!*event) return Failure(ErrorKind::kProtocol, EIO, "the stream of replies ended");
    if ((*event)->kind == envd::ProcessEvent::Kind::kStdout) parser.Feed((*event)->data);
    if ((*event)->kind == envd::ProcessEvent::Kind::kStderr) log::Info("syscall", "the server says: {}", (*event)->data.substr(0, kLongestWord));
    if ((*event)->kind == envd::ProcessEvent::Kind::kEnd) return Errno(ENOEXEC, "the syscall server ended: " + (*event)->end.status);
  }
}

}  // namespace

// A way that is not the channel's yet: that the one side of it is gone ends the waiting for the other.
class Channel::Trial {
 public:
  Trial(Channel& channel, std::shared_ptr<envd::InputStream> input, std::shared_ptr<envd::ProcessStream> output) : channel_(channel) {
    Lock lock(channel_.mutex_);
    channel_.trial_input_ = std::move(input);
    channel_.trial_output_ = std::move(output);
    channel_.WakeWatch();
  }
  ~Trial() {
    Lock lock(channel_.mutex_);
    channel_.trial_input_.reset();
    channel_.trial_output_.reset();
  }
  // What ended the waiting.
  static Error Explain(Error error, const OpContext& ctx) {
    if (error.kind != ErrorKind::kCancelled || ctx.stop.stop_requested()) return error;
    return Failure(ErrorKind::kBroken, EIO, "the way to the server broke").value();
  }

 private:
  Channel& channel_;
};

uint64_t Channel::TakeNumber() {
  Lock lock(mutex_);
  return next_number_++;
}

Result<void> Channel::Reattach(std::stop_token stop) {
  ServerProcess server;
  std::string id;
  std::vector<uint64_t> barred;
  {
    Lock lock(mutex_);
    server = {facts_.pid, server_label_};
    id = server_id_;
    barred.assign(abandoned_.begin(), abandoned_.end());
  }
  OpContext ctx = OpContext::Within(options_.start_timeout, ServiceClass::kStream);
  ctx.stop = stop;
  // That envd does not let us through (a rate limit) says nothing of the server.
  auto no_way = [](Error error) {
    if (error.kind == ErrorKind::kTimeout) error.kind = ErrorKind::kUnavailable;
    return Forward(std::move(error));
  };
  // Not a word to somebody else's process that has its number by now.
  auto runs = Runs(server, ctx);
  if (!runs) return no_way(runs.error());
  if (!*runs) return Errno(ESRCH, "the syscall server is gone");
  const envd::ProcessSelector selector{server.pid, {}};
  auto connected = client_->ConnectProcess(selector, ctx);
  if (!connected) return no_way(connected.error());
  auto begun = client_->StreamInput(selector, ctx);
  if (!begun) return no_way(begun.error());
  ctx.deadline = Clock::now() + options_.echo_timeout;
  const std::shared_ptr<envd::ProcessStream> output = std::move(*connected);
  const std::shared_ptr<envd::InputStream> input = std::move(*begun);
  const Trial trial(*this, input, output);
  const std::string nonce = "echo " + RandomBytes(16);
  auto parser = std::make_unique<ReplyParser>(id);
  parser->DiscardUntilEcho(nonce);
  // What was given up meanwhile, and may be on its way still, is barred before anything else.
  for (size_t i = 0; i < barred.size(); i += kCancelsOfFrame) {
    const std::vector<uint64_t> numbers(barred.begin() + ptrdiff_t(i), barred.begin() + ptrdiff_t(std::min(i + kCancelsOfFrame, barred.size())));
    if (auto sent = input->Write(EncodeFrame(id, TakeNumber(), EncodeCancel(0, numbers)), ctx); !sent) return sent;
  }
  const uint64_t number = TakeNumber();
  if (auto sent = input->Write(EncodeFrame(id, number, EncodeEcho(0, nonce)), ctx); !sent) return sent;
  if (auto echoed = AwaitReply(*output, *parser, number, ctx); !echoed) return Forward(Trial::Explain(echoed.error(), ctx));
  output->SkipProbes();  // from now on nobody may be waiting
  Lock lock(mutex_);
  input_ = input;
  output_ = output;
  parser_ = std::move(parser);
  return {};
}

Result<void> Channel::StartServer(const OpContext& context) {
  OpContext ctx = context;
  ctx.deadline = std::min(ctx.deadline, Clock::now() + options_.start_timeout);
  ctx.service_class = ServiceClass::kStream;
  ServerProcess old;
  bool old_ended;
  {
    Lock lock(mutex_);
    old = {facts_.pid, server_label_};
    old_ended = process_ended_;
  }
  const std::string label = Hex(RandomBytes(8));
  envd::StartRequest start;
  start.process.command = "/usr/bin/perl";
  start.process.arguments = {"-e", kServerLoader};
  start.process.environment = ServerEnvironment(label);
  start.stdin_open = true;
  auto started = client_->StartProcess(start, ctx);
  if (!started) return Forward(started.error());
  const std::shared_ptr<envd::ProcessStream> output = std::move(*started);
  auto first = output->Next(ctx);
  if (!first) return Forward(first.error());
  if (!*first || (*first)->kind != envd::ProcessEvent::Kind::kStart) return Failure(ErrorKind::kProtocol, EIO, "a process without a start");
  const uint32_t pid = (*first)->pid;
  auto kill_new = [&] {
    condemned_.push_back({pid, label});
    KillCondemned();
  };
  std::function<void(bool)> take_over;
  auto begin = [&]() -> Result<void> {
    auto opened = client_->StreamInput({pid, {}}, ctx);
    if (!opened) return Forward(opened.error());
    const std::shared_ptr<envd::InputStream> input = std::move(*opened);
    const Trial trial(*this, input, output);
    const std::string id = RandomBytes(kServerIdBytes);
    const std::string_view program = kServerProgram;
    if (auto sent = input->Write(fmt::format("{}{:08x}{}", Hex(id), program.size(), program), ctx); !sent) return sent;
    auto parser = std::make_unique<ReplyParser>(id);
    std::optional<Error> lost;
    auto exchange = [&](const std::vector<Call>& calls) -> Result<Outcomes> {
      Outcomes outcomes;
      size_t bytes = 0;
      for (size_t begun = 0; begun < calls.size();) {
        // As many as the pipe holds, then their answers.
        std::vector<uint64_t> numbers;
        std::string frames;
        for (; begun < calls.size() && frames.size() < kMaxRequestBytes / 2; ++begun) {
          numbers.push_back(TakeNumber());
          frames += EncodeFrame(id, numbers.back(), EncodeOperations(0, {calls[begun]}));
        }
        if (auto sent = input->Write(frames, ctx); !sent) return Forward(sent.error());
        for (const uint64_t number : numbers) {
          auto answered = AwaitReply(*output, *parser, number, ctx);
          if (!answered) return Forward(Trial::Explain(answered.error(), ctx));
          if (answered->outcomes.size() != 1) return Failure(ErrorKind::kProtocol, EIO, "not one outcome for one call");
          bytes += answered->outcomes[0].result.size();
          if (bytes > options_.answer_bytes) return Failure(ErrorKind::kProtocol, EFBIG, "an answer without an end");
          outcomes.push_back(std::move(answered->outcomes[0]));
        }
      }
      return outcomes;
    };
    auto transact = [&](const std::vector<Call>& calls) {
      auto outcomes = exchange(calls);
      if (!outcomes) lost = outcomes.error();
      return outcomes;
    };
    Arguments arguments;
    arguments.Text(options_.root).U32(static_cast<uint32_t>(options_.server_silence.count()));
    auto said = transact({{Operation::kInitialize, arguments.bytes()}});
    if (!said) return Forward(said.error());
    auto facts = DecodeFacts(*said);
    if (!facts) return Forward(facts.error());
    facts->pid = pid;  // as envd knows it
    if (old.pid != 0) {
      take_over = reopen_(old.pid, pid, transact);
      if (lost) return Forward(*lost);
      // Before anything is done by the new one: what the old one has not done by now it never does.
      for (int tries = 1; !old_ended; ++tries) {
        auto killed = Kill(old);
        if (killed) break;
        if (tries == kStartTries || ctx.stop.stop_requested()) return Forward(killed.error());
      }
    }
    if (take_over) take_over(true);
    output->SkipProbes();
    Lock lock(mutex_);
    input_ = input;
    output_ = output;
    parser_ = std::move(parser);
    server_id_ = id;
    server_label_ = label;
    facts_ = std::move(*facts);
    process_ended_ = distrusted_ = false;
    heard_ = server_began_ = Clock::now();
    ++counts_.servers;
    return {};
  };
  auto begun = begin();
  if (begun) return begun;
  if (take_over) take_over(false);
  kill_new();
  return begun;
}

}  // namespace e2bfs::transport::syscall
