// Replay: what dead mounts left is sent in the order in which it can be: directories before what goes into them, then links and files as they were
// accepted, and the attributes of directories at last, those that lie deepest first. Several at once where the order is kept.
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
  friend auto operator<=>(const UnsentOwner&, const UnsentOwner&) = default;
};
// Of an entry with a record.
UnsentOwner OwnerOf(const UnsentEntry& entry);

// What became of an entry: removed unless it failed. One call at a time, by any thread.
using TellSent = std::function<void(const UnsentEntry&, const SendReport&)>;

// Sends those of `entries` that have no problem and are `chosen`, and tells each. All of them are of one owner: where a directory has to be made by another
// name, the paths of what goes into it are changed, in the notes too. Once the sandbox says nothing any more, the rest is told as failed without a try.
void SendInOrder(transport::RemoteFs& remote, std::vector<UnsentEntry>& entries, const std::function<bool(const UnsentEntry&)>& chosen, bool same_sandbox,
                 const SendTimes& times, const TellSent& tell);

// The entries below `unsent_parent` that the owner's mounts accepted, and that the next one has to send: those without a problem.
std::vector<UnsentEntry> ListAccepted(const std::string& unsent_parent, const UnsentOwner& owner);

struct ReplayReport {
  int sent = 0;       // also what had arrived before
  int conflicts = 0;  // of them: that lie beside something else
  int failed = 0;     // they stay
};

// Sends what ListAccepted lists. `remote` is the owner's.
ReplayReport Replay(transport::RemoteFs& remote, const std::string& unsent_parent, const UnsentOwner& owner, const SendTimes& times, const TellSent& tell);

}  // namespace e2bfs::cache
