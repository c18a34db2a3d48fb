// Messages of envd's services as JSON, out and in: pure, no I/O. All use of the JSON library for envd is in messages.cc.
//
// Out: strings have to be UTF-8 without NUL (EILSEQ, EINVAL otherwise: they could not be sent unchanged). In: nothing is believed.
// What is not JSON of the expected shape, or a value that no honest envd sends (a name with '/', a negative size, letters that are no
// permissions, an entry outside of the listed directory), is EIO/kProtocol. Unknown fields are ignored; absent ones have their defaults.
#pragma once

#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "transport/base/error.h"
#include "transport/envd/types.h"

namespace e2bfs::transport::envd {

// --- words
struct ParsedPermissions {
  FileType type = FileType::kRegular;
  uint32_t permissions = 0;  // 07777
};
// Go's FileMode text: letters of "dalTLDpSugct?" or a single '-', then nine of rwx. nullopt for anything else.
std::optional<ParsedPermissions> ParsePermissionLetters(std::string_view text);
// RFC 3339 with up to nine fractional digits, 'Z' or an offset; years 1 to 9999. nullopt for anything else.
std::optional<timespec> ParseTimestamp(std::string_view text);
// 1..255 bytes, no '/', no NUL, not "." or "..".
bool IsSafeName(std::string_view name);
// One or more safe names with single '/' between them.
bool IsSafeRelativePath(std::string_view path);
bool IsUtf8(std::string_view text);
// An absolute path without empty, "." and ".." components, as Go's filepath.Clean makes it; empty if it is not absolute.
std::string CleanAbsolutePath(std::string_view path);

// --- requests: the JSON text, or EILSEQ (not UTF-8), EINVAL (NUL)
Result<std::string> EncodePathRequest(std::string_view path);  // Stat, MakeDir, Remove
Result<std::string> EncodeListDir(std::string_view path, uint32_t depth);
Result<std::string> EncodeMove(std::string_view source, std::string_view destination);
Result<std::string> EncodeWatch(const WatchRequest& request);  // WatchDir, CreateWatcher
Result<std::string> EncodeWatcherId(std::string_view watcher_id);
Result<std::string> EncodeStart(const StartRequest& request);
Result<std::string> EncodeSelector(const ProcessSelector& process);  // Connect, CloseStdin
Result<std::string> EncodeSignal(const ProcessSelector& process, int signal_number);
Result<std::string> EncodeSendInput(const ProcessSelector& process, std::string_view bytes);
Result<std::string> EncodeInputStart(const ProcessSelector& process);
std::string EncodeInputData(std::string_view bytes);
std::string EncodeInputKeepAlive();
Result<std::string> EncodeCompose(const std::vector<std::string>& sources, std::string_view destination, std::string_view user);

// --- answers
// {"entry": {...}} of Stat, MakeDir and Move.
Result<EntryInfo> DecodeEntryAnswer(std::string_view json);

struct ListingLimits {
  size_t max_entries = 2'000'000;
  uint32_t depth = 1;
};
// `root`: the path that was asked for, as CleanAbsolutePath gives it. Entries are converted one by one while parsing, so that memory is
// bounded by the answer's useful content. Each entry once, below root, not deeper than asked, sorted as a walk.
Result<std::vector<EntryInfo>> DecodeListing(std::string_view json, std::string_view root, const ListingLimits& limits);

struct StreamStarted {};
struct StreamKeepAlive {};
using WatchMessage = std::variant<StreamStarted, StreamKeepAlive, WatchEvent>;
Result<WatchMessage> DecodeWatchMessage(std::string_view json);
Result<std::string> DecodeWatcherId(std::string_view json);
Result<std::vector<WatchEvent>> DecodeWatcherEvents(std::string_view json);

// nullopt: a keep-alive, or an event that this client does not know.
Result<std::optional<ProcessEvent>> DecodeProcessMessage(std::string_view json);
Result<std::vector<ProcessInfo>> DecodeProcessList(std::string_view json);
// Any JSON object (Remove, SendInput, ...).
Result<void> DecodeEmptyAnswer(std::string_view json);

Result<SandboxMetrics> DecodeMetrics(std::string_view json);
// [{path,name,type}] of POST /files, or one such object of compose: exactly one file, or an error.
Result<WrittenFile> DecodeWrittenFile(std::string_view json);

// --- errors
// What an error body says; fields that are not there are empty. Never fails: a body that is no JSON object gives `json` false.
struct ErrorBody {
  bool json = false;
  std::string rpc_code;                // Connect: "code" as a string
  std::optional<int> numeric_code;     // envd's REST, edge: "code" as a number
  std::string message;
  bool names_sandbox = false;          // edge: "sandboxId"
  bool names_port = false;             // edge: "port": it runs, but nothing listens
};
ErrorBody DecodeErrorBody(std::string_view body);
// The end-of-stream message: nullopt for success, the error's code and text otherwise.
Result<std::optional<ErrorBody>> DecodeEndOfStream(std::string_view json);

}  // namespace e2bfs::transport::envd
