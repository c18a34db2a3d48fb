// Channel: the way to the syscall server in the sandbox, kept open. Starts the server, sends requests in order, matches replies, and when
// the way or the server is lost finds it again without doing anything twice.
//
// In: one long-lived StreamInput, whose content envd does not log (SendInput's it does). Out: the Start stream, later Connect. The
// server's program comes in the same way, through a loader of a few hundred bytes.
//
//   ready ──stream lost──> lost ──somebody wants something──> Connect by pid and a fresh nonce echoed ──> ready, all in flight sent again
//                            └──no echo, or the process is gone──> a new server, which takes the open files over; the old one is killed ──> ready
//
// At most once: a repeat carries its first number, and the server keeps the replies of changes until they are acknowledged by the low-water
// mark of a later request. With a new server, a change that was sent and not answered is EIO/kBroken: it may have been done, and nobody
// repeats it. What only reads is done again. Nothing is attempted while nobody waits: a request could resume a paused sandbox.
//
// Any thread may call it. Replies are taken by the HTTP client's thread, which wakes who waits for them. One thread of the channel's own finds a
// lost way again; another asks for echoes, which keep an idle channel alive and tell that a silent one is dead.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "transport/envd/client.h"
#include "transport/syscall/frame.h"

namespace e2bfs::transport::syscall {

// server.pl, as it is.
extern const char kServerProgram[];
// Reads the server's id, the program's length and the program on its standard input, and runs it; ends when they do not come. The only text of ours
// that envd logs.
extern const char kServerLoader[];

struct ChannelOptions {
  std::string root;  // absolute, or relative to the user's home; empty: the home
  std::chrono::milliseconds start_timeout{20'000};
  // With requests waiting and nothing heard for so long, an echo is asked for; without it for echo_timeout the way is lost.
  std::chrono::milliseconds quiet_time{8'000};
  std::chrono::milliseconds echo_timeout{5'000};
  std::chrono::milliseconds pulse{45'000};          // of an idle channel: shorter than any idle timeout on the way
  std::chrono::seconds server_silence{3'600};       // after it without a word from us, the server ends itself
  size_t answer_bytes = size_t{128} << 20;          // of one listing, all pieces
  size_t held_bytes = size_t{32} << 20;             // of all answers that are not complete; beyond it, one at a time goes on
};

// What a new server says of itself.
struct ServerFacts {
  uint32_t pid = 0;
  Actor actor;
  std::string user, home, root;  // root: absolute, links resolved
  std::string perl_version;
  int64_t clock_seconds = 0;  // the sandbox's, when it said this
  Attributes root_attributes;
};

using Outcomes = std::vector<Reply::Outcome>;

enum class Effect {
  kNone,    // reads, opens, closes, or what may be done twice: sent again to a new server
  kChange,  // never done twice
};

struct ChannelCounts {
  int64_t round_trips = 0;    // requests that somebody waited for
  int64_t requests = 0;       // all
  int64_t reattached = 0;     // the same server found again
  int64_t servers = 0;        // started, the first included
};

class Channel {
 public:
  // Runs calls, each a request of its own, on a new server before anybody else does: an outcome for each, or an error when that one is lost, too.
  using Transact = std::function<Result<Outcomes>(const std::vector<Call>& calls)>;
  // A new server is there: what was open has to be opened again. What it returns is called once: with true when the new server has taken the old
  // one's place, before anybody else uses it; with false when it never will (always, where transact failed). Both called by the channel's own thread, without locks.
  using Reopen = std::function<std::function<void(bool took_over)>(uint32_t old_pid, uint32_t new_pid, const Transact& transact)>;

  // What the server says unasked: the bytes of one frame of news. Unset: some may have been lost, since the way was. Called without
  // locks by one thread at a time, mostly the HTTP client's, in order with the replies: it must not block. False: it makes no sense, and the server is replaced.
  using News = std::function<bool(const std::string* news)>;

  // Starts the server; two or three round trips. Errors: those of envd; ENOENT, ENOTDIR, EACCES (kErrno) for the root; ENOEXEC/kErrno where the
  // program does not run (no perl).
  static Result<std::unique_ptr<Channel>> Open(std::shared_ptr<envd::Client> client, ChannelOptions options, Reopen reopen, News news,
                                               const OpContext& ctx);
  // Once, before anything is asked: the callbacks may be called from now on.
  void Begin();
  // Lets the server end, if the way is open. What is in flight fails.
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // Of the server that runs now.
  ServerFacts facts() const;
  uint32_t server_pid() const;

  // Sends the calls as one request, which run in order up to the first that fails, and waits: at least one outcome, of a listing as many as there
  // are pieces. Errors: EIO/kBroken (a change that may have been done; what two servers did not outlive), EIO or EFBIG/kProtocol, ETIMEDOUT/kTimeout (ctx's deadline; a change is cancelled, but may have
  // been done), EINTR/kCancelled (ctx.stop: never of a change that was sent), ENOTCONN/kNotRunning, E2BIG/kBadRequest for a request that is too long.
  // `server_pid`: whose outcomes they are. It may be another server by now.
  Result<Outcomes> Do(const std::vector<Call>& calls, Effect effect, const OpContext& ctx, uint32_t* server_pid = nullptr);
  // Sends and does not wait; without `done`, nobody does, and a lost way is not looked for. `done` is called by the HTTP client's or the channel's thread, or by the destructor, without locks; it must not block.
  // With `owner`, a lost way is looked for only as long as that lives.
  void Post(const std::vector<Call>& calls, std::function<void(Result<Outcomes>)> done, std::optional<std::weak_ptr<void>> owner = {});

  ChannelCounts counts() const;

 private:
  struct Request;
  enum class State { kReady, kLost, kClosed };
  using Lock = std::unique_lock<std::mutex>;

  Channel(std::shared_ptr<envd::Client> client, ChannelOptions options, Reopen reopen, News news);
  using InFlight = std::map<uint64_t, std::shared_ptr<Request>>;
  void Enqueue(Lock& lock, const std::shared_ptr<Request>& request, const std::vector<Call>& calls);  // mutex_ held
  Result<void> Wait(Lock& lock, Request& request, const OpContext& ctx);  // mutex_ held; not while it waits
  InFlight::iterator Remove(InFlight::iterator at);  // mutex_ held
  void SendQueued(Lock& lock);                       // mutex_ held; not while it writes
  std::string NextBatch();                           // mutex_ held
  void LoseWay(const Error& why);
  void LoseWayLocked();                              // mutex_ held
  void AskEcho(Lock& lock, const char* why);         // mutex_ held; not while it writes
  void Abandon(const Request& request);              // mutex_ held
  void Withdraw(Lock& lock, uint64_t number);        // mutex_ held; not while it writes
  bool IsWanted() const;                             // mutex_ held
  void WakeWatch();                                  // mutex_ held
  uint64_t LowWater() const;                         // mutex_ held
  void FinishAll(Lock& lock, const Error& error, const std::function<bool(const Request&)>& which);  // mutex_ held; not while it calls `done`s

  void Run(std::stop_token stop);
  void OnEvent(Result<std::optional<envd::ProcessEvent>> event);
  void TakeReplies();
  void Take(Reply reply);
  void FindAgain(std::stop_token stop);
  Result<void> Reattach(std::stop_token stop);
  Result<void> StartServer(const OpContext& ctx);
  class Trial;
  // A server as envd knows it: by a pid, which another process may have later, and a label in the environment that it was started with.
  struct ServerProcess {
    uint32_t pid = 0;
    std::string label;
  };
  Result<bool> Runs(const ServerProcess& server, const OpContext& ctx);
  Result<void> Kill(const ServerProcess& server);  // also where it has ended
  void KillCondemned();
  uint64_t TakeNumber();
  void Watch(std::stop_token stop);

  const std::shared_ptr<envd::Client> client_;
  const ChannelOptions options_;
  const Reopen reopen_;
  const News news_;

  mutable std::mutex mutex_;  // innermost
  std::condition_variable_any changed_;   // state_, sending_, wanted; nobody waits for it while all is well
  std::condition_variable_any tick_;      // the watch's: woken_
  State state_ = State::kLost;
  std::shared_ptr<envd::InputStream> input_;
  std::shared_ptr<envd::ProcessStream> output_;
  std::string server_id_;
  std::string server_label_;
  ServerFacts facts_;
  bool process_ended_ = false;            // for sure
  bool distrusted_ = false;               // it said what makes no sense: there has to be another
  bool leaving_ = false;
  bool sending_ = false;                  // a thread is in input_->Write
  uint64_t next_number_ = 1;
  InFlight in_flight_;
  size_t held_bytes_ = 0;                 // of their answers, as far as they have come
  std::shared_ptr<Request> long_answer_;  // the one that may go on beyond options_.held_bytes
  std::condition_variable_any turn_;      // it has ended
  std::deque<uint64_t> queue_;            // of in_flight_, not sent yet; in order
  std::deque<std::string> controls_;      // echo and cancel frames, to go out first
  std::deque<std::pair<uint64_t, size_t>> in_pipe_;  // number and bytes of what was sent, and is not known to be out of the server's pipe
  size_t unanswered_bytes_ = 0;           // of in_pipe_
  std::set<uint64_t> abandoned_;          // sent and given up; not known to be barred by a low-water mark yet
  TimePoint heard_{};
  TimePoint quiet_since_{};               // the later of heard_ and when something to wait for came
  std::optional<TimePoint> echo_asked_;
  std::shared_ptr<envd::InputStream> trial_input_;    // of the way that is tried now
  std::shared_ptr<envd::ProcessStream> trial_output_;
  bool active_ = false;                   // there were requests since the watch looked
  bool alert_ = false;                    // the watch looks again soon by itself
  bool woken_ = false;
  ChannelCounts counts_;

  std::unique_ptr<ReplyParser> parser_;   // whoever listens to output_: the HTTP client's thread while the way is there, else the keeper
  std::vector<ServerProcess> condemned_;  // servers that could not be killed when they had to be
  TimePoint server_began_{};              // the keeper's, once it is there
  int early_deaths_ = 0;                  // of servers, one after the other; the keeper's
  std::jthread keeper_;                   // last: use the others
  std::jthread watch_;
};

}  // namespace e2bfs::transport::syscall
