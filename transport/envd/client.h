// envd::Client: every service of the envd in one sandbox, as typed calls. The public header of this folder.
//
// Unary calls and their JSON, streams and their envelopes, files and their ranges: PROTOCOL.md 3 and 4. Errors are
// e2bfs::Error with an errno for programs and a kind for decisions (errors.h has the table). All calls block, within ctx;
// any thread may call any of them at any time.
//
// Repeats. Reads (Stat, ListDir, ListProcesses, Download's head, Health, Metrics) are repeated with backoff within ctx. Changes are repeated only when
// the server said, or the transport proved, that nothing was done (429, 503, not sent); a change whose answer was lost is
// kBroken or kTimeout: it may or may not have been done, and the caller finds out. A refused token is refreshed and the call made once
// more. A lost connection or a missed head is followed by a health probe: kNotRunning/ENOTCONN then means that the edge says that the sandbox does not run.
//
// Text. Paths, names, arguments travel as JSON strings, which are UTF-8: what is not valid UTF-8 (or holds a NUL) is EILSEQ/EINVAL before anything
// is sent. Only Download and Upload take any bytes in paths. And one bad name makes a whole ListDir fail with EIO (trap 7): error message then
// contains "UTF-8"; see IsInvalidUtf8Failure in errors.h.
#pragma once

#include <cstdint>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/context.h"
#include "transport/base/error.h"
#include "transport/envd/capabilities.h"
#include "transport/envd/types.h"
#include "transport/http/client.h"
#include "transport/retry.h"
#include "transport/sandbox_endpoint.h"

namespace e2bfs::transport::envd {

// A listing's answer may hold at most this; beyond it EIO/kProtocol (a hostile server's endless answer).
inline constexpr size_t kMaxListingBytes = size_t{64} << 20;
inline constexpr size_t kMaxListingEntries = 300'000;

class ClientCore;  // client_core.h: what all calls share

// Output of a process as it comes. One thread at a time; Cancel from any. Destruction drops the request: the process goes on, its
// output from then on is lost unless another listens. Connected and not read, it stops the output for all listeners after about 3 MiB.
class ProcessStream {
 public:
  virtual ~ProcessStream() = default;
  // The next event; keep-alives are swallowed. nullopt at the stream's proven end (after kEnd). Any error ends the stream: the server's own
  // (from the end-of-stream envelope: as of a unary call), kProtocol/EIO torn or rubbish, kBroken, kTimeout: nothing, not even a
  // keep-alive, for 2 minutes; also when ctx's deadline passes. Start's first event is kStart; a failed start is an error here.
  virtual Result<std::optional<ProcessEvent>> Next(const OpContext& ctx) = 0;
  // Instead of Next, from now on: `take` gets every event, and at last nullopt or the error, by the HTTP client's thread. It must not block, and
  // only the caller notices silence. Null ends it: no call is under way when this returns; not from inside of it.
  virtual void Listen(std::function<void(Result<std::optional<ProcessEvent>>)> take) = 0;
  // When the connection is lost, do not ask for the sandbox's health: nobody waits for the answer, and asking could resume a paused sandbox.
  virtual void SkipProbes() = 0;
  virtual void Cancel() = 0;
};

// Input of a process as one open request (StreamInput): ordered, unlogged. One thread at a time; Cancel from any.
class InputStream {
 public:
  virtual ~InputStream() = default;
  // Sends them in messages of at most 32 KiB. Success: handed to the connection, not: read by the process. That the
  // process died is told by its end event, not here. An error ends the stream.
  virtual Result<void> Write(std::string_view bytes, const OpContext& ctx) = 0;
  // Counts as traffic for the idle timeouts on the way; send one each minute in which nothing else is sent.
  virtual Result<void> KeepAlive(const OpContext& ctx) = 0;
  // An error if the stream has ended: what was written last may be lost. Never waits, asks nobody; also while another thread writes.
  virtual Result<void> Check() = 0;
  // Ends the request and waits for the answer: every input was given to the process. Standard input stays open (CloseStdin).
  // kErrno/ENOENT (ESRCH is not used): no such process.
  virtual Result<void> Finish(const OpContext& ctx) = 0;
  virtual void Cancel() = 0;
};

// Changes below a directory as they happen. As ProcessStream: one thread, any error ends it (then "events may be missing").
class WatchStream {
 public:
  virtual ~WatchStream() = default;
  // The next event; the start event and keep-alives are swallowed. nullopt: ended by the server, which means as much as an error.
  virtual Result<std::optional<WatchEvent>> Next(const OpContext& ctx) = 0;
  virtual void Cancel() = 0;
};

struct RunRequest {
  ProcessConfig process;
  // Given to its standard input, which is then closed; unset: standard input is empty. Needs close_stdin, else ENOTSUP/kBadRequest.
  std::optional<std::string> stdin_bytes;
  // More output than this ends the call with EFBIG/kProtocol, and the process is killed.
  size_t max_stdout_bytes = size_t{16} << 20;
  size_t max_stderr_bytes = size_t{64} << 10;  // beyond: cut, not an error
  // May it be started again when its result was lost? (A change mostly may not.)
  Repeat repeat = Repeat::kOnce;
};

struct RunResult {
  ProcessEnd end;
  std::string out, err;
  bool Succeeded() const { return end.exited && end.exit_code == 0; }
};

struct DownloadRequest {
  std::string path;                  // absolute, any bytes
  int64_t offset = 0;
  std::optional<int64_t> length;     // unset: to the end. 0 and offset 0 unset: the whole file, without a Range
  // Whole file, compressed on the way, of unknown length: the only way to read /proc and /sys (trap 9). ENOTSUP where !gzip_download.
  bool gzip = false;
  // The raw Last-Modified of the version that is wanted: another one is ESTALE (grain: one second).
  std::string if_unmodified_since;
  int window_bytes = 0;              // HTTP/2 receive window; 0: the client's
};

struct DownloadHead {
  int status = 0;                    // 200, 206, or 416 (past the end: no bytes follow)
  int64_t offset = 0;                // of the first byte that follows
  int64_t length = -1;               // bytes that follow; -1: unknown (gzip)
  int64_t total_size = -1;           // of the file; -1: unknown
  std::string last_modified;         // raw, may be empty (gzip)
  time_t last_modified_seconds = 0;  // 0: unknown
};

// Content of a file as it comes, with back-pressure. One thread at a time; Cancel from any; destruction cancels.
class Download {
 public:
  virtual ~Download() = default;
  virtual const DownloadHead& head() const = 0;
  // At least one byte, or 0 at the end, which is reported only after exactly head().length bytes (or gzip's checked trailer): torn or
  // overlong is EIO/kProtocol or kBroken. Start a new one at the place where it stopped.
  virtual Result<size_t> Read(char* buffer, size_t capacity, const OpContext& ctx) = 0;
  virtual void Cancel() = 0;
};

struct UploadRequest {
  std::string path;                  // absolute, any bytes (before 0.5.7: as a multipart part; same bytes)
  std::optional<int64_t> length;     // declared and enforced; unset: chunked
  std::map<std::string, std::string> metadata;  // existing metadata is cleared if empty! needs `metadata`
  // Some of the content's first bytes, from which to tell whether to compress it; empty: it is not. Not used after OpenUpload.
  std::string_view beginning;
};

// A file being replaced in place: truncated when the request arrives, so a torn upload leaves a torn file (trap 3). Never repeated once
// bytes were written. One thread at a time; Cancel from any; destruction before Finish tears it.
class Upload {
 public:
  virtual ~Upload() = default;
  // After an error the server's answer, if it gave one, is the error (507 → ENOSPC).
  virtual Result<void> Write(std::string_view bytes, const OpContext& ctx) = 0;
  // Ends the body and checks the answer: one file, this path's name. ENOSPC, EACCES, EISDIR, EIO...
  virtual Result<WrittenFile> Finish(const OpContext& ctx) = 0;
  virtual void Cancel() = 0;
};

struct ClientOptions {
  std::string user;                  // empty: the template's default (or "user" before 0.4.0)
  std::chrono::milliseconds health_timeout{5'000};
  int keepalive_seconds = 50;        // asked of envd for streams
  bool compress = true;              // uploads, where that pays and envd takes it
};

class Client {
 public:
  // `http` outlives this client and its streams. Cheap: make another for another user.
  Client(http::HttpClient& http, std::shared_ptr<SandboxEndpoint> endpoint, Capabilities capabilities, ClientOptions options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  const Capabilities& capabilities() const;
  const SandboxEndpoint& endpoint() const;
  // As sent; empty: the template's default.
  const std::string& user() const;

  // --- filesystem.Filesystem. Paths absolute; empty or relative ones start at the user's home. envd acts as root here (trap 6).
  // lstat-like. "" gives the home. ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG.
  Result<EntryInfo> Stat(const std::string& path, const OpContext& ctx);
  // `path` absolute. All below it to `depth` (>= 1) levels, in lexical walk order, links not followed (the root itself is). A directory that vanishes
  // meanwhile fails the whole call (trap 8). ENOTDIR. Each name once per directory; entries that were not below `path` are EIO/kProtocol.
  Result<std::vector<EntryInfo>> ListDir(const std::string& path, uint32_t depth, const OpContext& ctx, size_t max_bytes = kMaxListingBytes);
  // Makes missing parents too, mode 0755. EEXIST if anything is there. Old envds tell no attributes (`complete` is false).
  Result<EntryInfo> MakeDir(const std::string& path, const OpContext& ctx);
  // rename(2) that replaces silently and makes the destination's parents (trap 2). A directory onto an empty one is refused with EEXIST.
  Result<EntryInfo> Move(const std::string& source, const std::string& destination, const OpContext& ctx);
  // rm -rf (trap 1): never for unlink or rmdir.
  Result<void> Remove(const std::string& path, const OpContext& ctx);
  // Returns when the watch is in place (its start event came).
  Result<std::unique_ptr<WatchStream>> WatchDir(const WatchRequest& request, const OpContext& ctx);
  // The polling form. Events are given once: an answer that was lost took its events with it.
  Result<std::string> CreateWatcher(const WatchRequest& request, const OpContext& ctx);
  Result<std::vector<WatchEvent>> GetWatcherEvents(const std::string& watcher_id, const OpContext& ctx);
  Result<void> RemoveWatcher(const std::string& watcher_id, const OpContext& ctx);

  // --- process.Process. Command lines and environments are logged by envd: no content and no secret in them.
  // Returns when the response's head is here; the pid comes as the first event. ctx bounds only that.
  Result<std::unique_ptr<ProcessStream>> StartProcess(const StartRequest& request, const OpContext& ctx);
  // Starts, feeds, collects, waits. ctx's deadline is also the process's: envd kills it then. A stop request kills it (SIGKILL, by the pid) as far as
  // the process is known; pass ctx.Uninterruptible() for what must not be abandoned. A command that fails is a success here: look at the result.
  Result<RunResult> Run(const RunRequest& request, const OpContext& ctx);
  // Output of a running process from now on.
  Result<std::unique_ptr<ProcessStream>> ConnectProcess(const ProcessSelector& process, const OpContext& ctx);
  Result<std::vector<ProcessInfo>> ListProcesses(const OpContext& ctx);
  // One request for each input, which envd writes whole into its log; StreamInput for all that matters. Returns when it was written to the pipe.
  Result<void> SendInput(const ProcessSelector& process, std::string_view bytes, const OpContext& ctx);
  // Returns at once; `ctx` bounds the first message only.
  Result<std::unique_ptr<InputStream>> StreamInput(const ProcessSelector& process, const OpContext& ctx);
  // ENOTSUP where !close_stdin.
  Result<void> CloseStdin(const ProcessSelector& process, const OpContext& ctx);
  // signal_number: SIGKILL or SIGTERM, others are EINVAL.
  Result<void> SendSignal(const ProcessSelector& process, int signal_number, const OpContext& ctx);

  // --- files. As root, too; POST chowns to the user.
  // A fifo never answers (trap 10): look at the type before. ENOENT, EISDIR, ENOTDIR, ESTALE (412).
  Result<std::unique_ptr<Download>> OpenDownload(const DownloadRequest& request, const OpContext& ctx);
  // All of a range in memory; EFBIG/kProtocol if it is more than `max_bytes`.
  Result<std::string> ReadFile(const DownloadRequest& request, size_t max_bytes, const OpContext& ctx);
  Result<std::unique_ptr<Upload>> OpenUpload(const UploadRequest& request, const OpContext& ctx);
  // In one go.
  Result<WrittenFile> WriteFile(const std::string& path, std::string_view bytes, const OpContext& ctx);
  // Joins the sources into a new inode that replaces the name `destination`, and deletes them: mode 0644, owned by the user; UTF-8 paths. ENOTSUP where !compose.
  Result<WrittenFile> Compose(const std::vector<std::string>& sources, const std::string& destination, const OpContext& ctx);

  // --- the rest
  // Success: it answers. kNotRunning: the edge says that it does not run. Anything else: nobody knows.
  Result<void> Health(const OpContext& ctx);
  Result<SandboxMetrics> Metrics(const OpContext& ctx);

 private:
  std::shared_ptr<ClientCore> core_;  // shared with the streams, which may outlive the client (not `http`)
};

}  // namespace e2bfs::transport::envd
