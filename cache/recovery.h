// Recovery: what earlier mounts put aside or left behind, found again on this machine's disk, and sent late.
//
// Below one directory ("unsent") each mount that left something has a directory; in it lie content files, each with its note beside it
// (unsent_record.h), and UNSENT.txt for people. Nothing here asks a person anything. RemoveUnsent removes what was sent or dropped, ClearRemoved what is
// known to be of no use; sending rewrites notes, so that what is done in part is gone on with.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cache/unsent_record.h"
#include "transport/remote_fs.h"

namespace e2bfs::cache {

struct UnsentEntry {
  std::string id;         // short, printable, of no other entry of the same listing
  std::string directory;  // that it lies in
  std::string content;    // path of the content file, or where it would be
  std::string note;       // path of its note, or where it would be
  bool content_is_there = false;
  std::optional<UnsentRecord> record;  // not set where it cannot be read
  std::string problem;    // why it cannot be sent as it is; empty if it can
  int64_t bytes = 0;      // unsent; without a record: what the content file holds
  int64_t since = 0;      // seconds since 1970
};

// Oldest first. Of a parent that is not there: none.
std::vector<UnsentEntry> ListUnsent(const std::string& parent);

// For good: the note says first that nothing is unsent, so that a crash leaves nothing that would be sent again. Its directory goes with the last one.
Result<void> RemoveUnsent(const UnsentEntry& entry);
// What a crash within RemoveUnsent left, or while something was put aside. Beside others that do the same, too.
void ClearRemoved(const std::string& parent);

struct SendTimes {
  std::chrono::milliseconds operation{60'000};  // for one operation on names or attributes
  std::chrono::milliseconds transfer{600'000};  // for a transfer that does not get on
  // What may pass by itself (rate limits, a sandbox that is not there now) is tried again so long, some times; once if a try takes longer.
  std::chrono::milliseconds retrying{0};
};

// What a file is called that lies beside another one of its name: "name.e2bfs-conflict-20261130-023709-k3x9ab7q", "-2" and so on behind it for a number above 1.
// `since`: seconds since 1970, of the first unsent write (UTC). `id`: of its record, so that a second try finds what the first made, and nobody else makes the same.
std::string ConflictName(const std::string& name, int64_t since, const std::string& id, int number);

enum class SendOutcome {
  kSent,          // the file has it now
  kWasThere,      // it had arrived before
  kConflictCopy,  // the file is another one now, and was left as it is: what was written lies beside it
  kFailed,        // it is not done, or not all of it
};

struct SendReport {
  SendOutcome outcome = SendOutcome::kFailed;
  std::string path;  // kConflictCopy: the copy's, relative to the mounted directory
  std::string text;  // why, for people; may be empty for kSent
  bool unreachable = false;  // kFailed: the sandbox says nothing now, to whatever it is asked
  bool may_pass = false;     // kFailed: another try may be all that it needs
};

// Sends one entry that has no problem, by `remote`, whose root is that of the record. `same_sandbox`: identities mean what they meant. The file is compared
// with what the change started from (identity where known, mtime, size) and never overwritten if it is another one. The entry is not removed: done
// twice, after a crash between the two, it finds its own result (kWasThere, or the conflict copy that it made), or makes a second conflict copy at worst,
// when the first was changed meanwhile.
// What the record says has to be made is made; of a directory this sets the attributes alone.
// `note`: told what the entry's note has to say from now on, before what it says is begun; where there is none, entry.note is replaced.
using NoteOfLateSend = std::function<Result<void>(const UnsentRecord&)>;
SendReport SendUnsent(transport::RemoteFs& remote, const UnsentEntry& entry, bool same_sandbox, const SendTimes& times, const NoteOfLateSend& note = {});
// All of what a new file is to hold, as far as it is known here.
Result<std::string> ContentOfNewFile(const UnsentEntry& entry);
// The entry's directory is there, and no more (kWasThere: by whomever). kConflictCopy: something else has its name, and what was to go into it
// goes into `path`.
SendReport MakeUnsentDirectory(transport::RemoteFs& remote, const UnsentEntry& entry, bool same_sandbox, const SendTimes& times);

}  // namespace e2bfs::cache
