// Replay: what dead mounts left is sent in the order in which it can be: directories before what goes into them, then links and files (of one path as they
// were accepted, else several at once; new small ones many by one question), and the attributes of directories at last, those that lie deepest first.
//
// Killed at any step and begun again it ends the same: each entry finds what was done of it (SendUnsent), and is removed when the sandbox has it. The
// caller holds what keeps two from doing it at once.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cache/recovery.h"

namespace e2bfs::cache {

// Whose changes: those of one mounted directory are sent by one RemoteFs.
struct UnsentOwner {
  std::string sandbox_id;
  std::string user, root;  // as Description says them
  std::string scope;       // as UnsentRecord says it
  friend auto operator<=>(const UnsentOwner&, const UnsentOwner&) = default;
};
// Of an entry with a record.
UnsentOwner OwnerOf(const UnsentEntry& entry);

// What became of an entry: removed unless it failed. One call at a time, by any thread.
using TellSent = std::function<void(const UnsentEntry&, const SendReport&)>;

// Which ones.
using OfUnsent = std::function<bool(const UnsentEntry&)>;

// Sends those of `entries` that have no problem and are `chosen`, and tells each. The new directories that they lie in are made first, chosen or not. What
// is set of a directory, and its entry, wait until no sendable one below it is left that is `awaited`, chosen or not: such a directory is told as failed if
// it was chosen. All are of one owner: where a directory has to be made by another name, the paths of what goes into it are changed, in the notes too. Once
// the sandbox says nothing any more, the rest is told as failed without a try.
void SendInOrder(transport::RemoteFs& remote, std::vector<UnsentEntry>& entries, const OfUnsent& chosen, const OfUnsent& awaited, bool same_sandbox,
                 const SendTimes& times, const TellSent& tell);

// How many entries below `unsent_parent` the owner's mounts accepted that the next one has to send: those without a problem.
size_t CountAccepted(const std::string& unsent_parent, const UnsentOwner& owner);

struct ReplayReport {
  int sent = 0;       // also what had arrived before
  int conflicts = 0;  // of them: that lie beside something else
  int failed = 0;     // they stay
};

// Sends what CountAccepted counts; nothing waits for what was not accepted. `remote` is the owner's.
ReplayReport Replay(transport::RemoteFs& remote, const std::string& unsent_parent, const UnsentOwner& owner, const SendTimes& times, const TellSent& tell);

}  // namespace e2bfs::cache
