// UnsentRecord: what is known of one file's unsent change, as it is written beside its content (the "note"), for whoever finds both when the
// mount is gone: a person, the next mount, `e2bfs recover`.
//
// The note is brought up to date with each write(2), and may be cut short by SIGKILL or a crash at any byte. So a record is never written over the last
// good one: a short one goes into one of two slots in turn, a long one into a new file that is renamed over the old. What one more write adds is a line
// behind the record, with a checksum of its own that goes on from the one before. A reader takes the newest record whose checksum is right, with the lines
// that belong to it, and knows a torn one from a good one.
//
// The format, text:
//   e2bfs-unsent 1 slot|log NUMBER LENGTH CHECKSUM\n     NUMBER grows with each record of a note; LENGTH bytes follow; all fixed in width
//   key value\n ...                                      strings as EncodeBytes gives them
//   + OFFSET LENGTH CHECKSUM\n ...                       a range that was added since; the first line that is not right is the end
//   a OFFSET LENGTH CHECKSUM\n ...                       the same, at the end of what is appended
// The second slot begins at kNoteSlotBytes. A reader refuses other versions, and keys that it does not know.
#pragma once

#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>

#include "cache/change.h"
#include "transport/base/error.h"

namespace e2bfs::cache {

inline constexpr char kUnsentNoteSuffix[] = ".note";
inline constexpr char kUnsentNoteTemporarySuffix[] = ".note.new";  // a note that was never finished
inline constexpr int64_t kNoteSlotBytes = 16 << 10;

// The file before our change, as last known.
struct UnsentBase {
  transport::FileId id;  // not known where identities do not outlive the mount
  int64_t size = 0;
  timespec mtime{}, ctime{};
  uint32_t permissions = 0644;
};

// What is not in the sandbox yet, and has to be made before anything else is done to it.
struct UnsentMaking {
  transport::FileType type = transport::FileType::kRegular;  // or kDirectory, kSymlink
  uint32_t permissions = 0;                                  // of a file or directory; umask applied
  std::optional<Creator> creator;
  std::string target;                                        // of a link
};

struct UnsentRecord {
  bool nothing = false;     // nothing is unsent; nothing else counts then
  std::string id;           // what `e2bfs recover` calls it
  std::string sandbox_id;
  std::string scope;        // of which platform or envd that is (CachedFsOptions::store_scope); empty: not known
  std::string user;         // of the sandbox, who it was written as
  std::string root, path;   // the mounted directory, and the file relative to it: raw bytes
  bool has_content = true;  // there is a content file; a byte of the sandbox's file lies at its own offset in it
  bool fresh = false;       // made by the mount, and nothing but its stores was ever in it
  UnsentBase base;
  Change change;
  int64_t since = 0;        // seconds since 1970, this machine's clock: the first unsent change
  std::string last_error;   // of sending it; empty: it was not tried
  bool being_sent = false;  // a store was under way, and may have arrived
  int64_t begun_bytes = 0;  // `fresh`: stores of ours that did not end may have left so much, of whatever the content was then
  bool accepted = false;    // the program was told that it is done (-o writeback): the next mount sends it without being told to
  uint64_t order = 0;       // of what is accepted: grows in the order in which it was
  std::optional<UnsentMaking> make;  // unset: it is there. Of a file: `fresh`, and base.id is not known
  bool removing = false;    // it was being removed: if it is gone, nothing is to be sent
  bool moving = false;      // bytes of the content were being moved, and may be at either place

  // All of the file afterwards is known from here alone.
  bool IsWhole() const;
};

// Letters, digits and "/._~-" as they are, all else as %XX: what urllib.parse.unquote_to_bytes of Python takes apart.
std::string EncodeBytes(std::string_view bytes);
std::optional<std::string> DecodeBytes(std::string_view text);
// Control characters and backslashes as \ooo: names come from the sandbox, and none forges a line.
std::string PrintableName(std::string_view name);

// The words of UNSENT.txt about it.
std::string DescribeUnsent(const UnsentRecord& record, const std::string& content_file);

// More words behind those of directory/UNSENT.txt, a file of 0600.
Result<void> AppendUnsentText(const std::string& directory, std::string_view text);

// kErrno/ENOENT: there is none. kLocal: it cannot be read. kProtocol: torn, none of ours, or of a newer version; the message says which.
Result<UnsentRecord> ReadUnsentNote(const std::string& path);
// The same of what the file holds.
Result<UnsentRecord> ParseUnsentNote(std::string_view text);
// A note of its own, 0600, on disk when this returns. Over what is there.
Result<void> WriteUnsentNote(const std::string& path, const UnsentRecord& record);
// Eight letters or digits, random.
std::string NewUnsentId();

// The note of a living spool file. One thread at a time.
class UnsentNote {
 public:
  explicit UnsentNote(std::string path) : path_(std::move(path)) {}  // no file yet
  ~UnsentNote();
  UnsentNote(const UnsentNote&) = delete;
  UnsentNote& operator=(const UnsentNote&) = delete;

  // Says this from now on. If the disk takes no more, a promise (`accepted`) stays as it was last said, if all its bytes are in this record; false then, if
  // that lacks bytes of this one. What is no longer true, or no promise, says nothing instead. A time that a write implies may be a second old, or older
  // where there are many ranges.
  bool Write(const UnsentRecord& record);
  // As Write of the last record with one more range (and the size it makes of the file), at a cost that does not grow with what the record says.
  // An empty one: nothing is new but the time. `appended`: it is the end of what is appended now. False: Write it.
  bool Add(const transport::Extent& extent, bool appended);
  void Unlink();
  // What was last written is in the file, and something is unsent by it.
  bool says() const { return end_ > 0; }

 private:
  bool WriteSlot(const std::string& body);
  bool WriteLog(const std::string& body);
  // Into the place that does not hold what is said now; false: that is as it was.
  bool WriteAnew(const UnsentRecord& record, const std::string& body);
  void Warn();
  void Invalidate();

  const std::string path_;
  int fd_ = -1;
  bool log_ = false;
  uint64_t number_ = 0;
  std::string said_;           // the body that was last written, without the implied time; empty if lines were added
  int64_t said_at_ns_ = 0;     // steady clock
  uint64_t chain_ = 0;         // the checksum that the next line goes on from
  int64_t end_ = 0;            // where it goes; 0: nothing is said
  int64_t lines_ = 0, most_lines_ = 0;  // in bytes, since the record
  bool failed_ = false;        // and the log says so
};

}  // namespace e2bfs::cache
