// Frames: what goes between the client and the syscall server (server.pl), as bytes. Pure: no I/O, no locks.
//
//   frame:   magic "e2Q1" (to the server) or "e2R1" (from it), u32 length of the body, u32 checksum of what follows,
//            8 bytes id of the server, u64 number, body
//   request: u64 low-water mark (all numbers up to it are done with), u8 kind
//            kOperations: u16 count, then for each u8 operation, u32 length, arguments
//            kEcho: any bytes, which come back; kCancel: u64 numbers that must not be done any more; kLeave: nothing
//   reply:   u8 flags (1: more replies to this number follow, 2: an echo, 4: news, number 0), u16 count, then for each u32 errno, u32 length, result
//
//   news:    for each u8 kind: 1 a name: 28 bytes identity of the directory, u16 length and name, u8 state: 0 gone, 1 attributes and link text
//            follow, 2 has to be asked for; 2 a directory: attributes; 3 not watched any more: 28 bytes identity; 4 some was lost
//
// Integers are big-endian, texts are u32 length and bytes, but struct statx comes as the sandbox's kernel made it: little-endian
// on both machines that there are (x86_64, aarch64). The checksum is the sum of big-endian 32-bit words: it tells frames from what is
// none; that bytes arrive unchanged is TLS's and TCP's business.
//
// Both sides distrust each other: everything here that reads takes any bytes, and says so when they make no sense.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/base/error.h"
#include "transport/remote_fs.h"

namespace e2bfs::transport::syscall {

inline constexpr size_t kFrameHeaderBytes = 28;
inline constexpr size_t kMaxBodyBytes = size_t{256} << 10;
// A request fits into one message of StreamInput, which envd writes to the pipe at once or not at all: no torn frame is ever
// in front of the server, whatever happens to the connection.
inline constexpr size_t kMaxRequestBytes = size_t{32} << 10;
inline constexpr size_t kMaxReadBytes = size_t{192} << 10;  // of one Read
inline constexpr size_t kServerIdBytes = 8;

// Numbers of server.pl; they go over the wire.
enum class Operation : uint8_t {
  kStat = 1, kLookup, kList, kReadLink, kStatFs, kMakeDirectory, kMakeNode, kMakeSymlink, kMakeLink, kUnlink, kRemoveDirectory, kRename,
  kSetAttributes, kGetXattr, kListXattrs, kSetXattr, kRemoveXattr, kOpen, kCreate, kRead, kStore, kStage, kCommit, kSync, kClose, kSeek,
  kAllocate, kCopyRange, kInitialize, kEndWriting, kStageInto, kUnwritten, kListDeep, kReadFiles, kMakeObjects,
};

enum class RequestKind : uint8_t { kOperations = 0, kEcho = 1, kCancel = 2, kLeave = 3 };

enum OpenFlag : uint8_t { kOpenRead = 1, kOpenWrite = 2, kOpenTruncate = 4 };

// Appends arguments.
class Arguments {
 public:
  Arguments& U8(uint8_t value);
  Arguments& U16(uint16_t value);
  Arguments& U32(uint32_t value);
  Arguments& I64(int64_t value);
  Arguments& U64(uint64_t value) { return I64(static_cast<int64_t>(value)); }
  Arguments& Text(std::string_view bytes);
  Arguments& ShortText(std::string_view bytes);  // 65,535 bytes at most
  Arguments& Raw(std::string_view bytes);
  // An object by path and identity.
  Arguments& Object(const Node& node);
  // An open file, or the object if there is none.
  Arguments& Object(uint64_t handle, const Node& node);
  // A name in a directory.
  Arguments& Place(const Name& name);
  // Whom a new object belongs to.
  Arguments& Owner(const std::optional<Creator>& creator);
  Arguments& Change(const AttributeChange& change);

  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// One operation and its arguments, ready to be put into a frame.
struct Call {
  Operation operation{};
  std::string arguments;
};

std::string EncodeFrame(std::string_view server_id, uint64_t number, std::string_view body);
std::string EncodeOperations(uint64_t low_water, const std::vector<Call>& calls);
std::string EncodeEcho(uint64_t low_water, std::string_view bytes);
std::string EncodeCancel(uint64_t low_water, const std::vector<uint64_t>& numbers);
std::string EncodeLeave();

struct Reply {
  uint64_t number = 0;
  bool more = false;   // further replies to the number follow
  bool echo = false;
  bool news = false;
  std::string rest;    // of an echo what was sent, of news what DecodeNews takes apart
  struct Outcome {
    int errno_value = 0;
    std::string result;
  };
  std::vector<Outcome> outcomes;
};

// Takes a stream of bytes apart. One thread.
class ReplyParser {
 public:
  explicit ReplyParser(std::string server_id) : server_id_(std::move(server_id)) {}
  void Feed(std::string_view bytes);
  // The next whole reply; nullopt: more bytes are needed. An error (kProtocol) is final: what follows cannot be trusted.
  Result<std::optional<Reply>> Next();
  // The stream was lost, and goes on in the middle of a frame: everything before the reply that echoes `nonce` is discarded. The echo itself is
  // given by Next.
  void DiscardUntilEcho(std::string nonce);

  // Held now: never more than a frame and what was fed last.
  size_t held_bytes() const { return buffer_.size() - taken_; }

 private:
  bool FindEcho();

  const std::string server_id_;
  std::string buffer_;
  size_t taken_ = 0;
  bool broken_ = false;
  std::string nonce_;  // not empty: discarding
};

// Reads a result. After the first thing that is not there, everything is zero and empty, and ok() false.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : rest_(bytes) {}
  uint8_t U8();
  uint16_t U16();
  uint32_t U32();
  int64_t I64();
  std::string_view Bytes(size_t count);
  std::string_view Text() { return Bytes(U32()); }
  std::string_view ShortText() { return Bytes(U16()); }
  std::string_view Rest();
  bool ok() const { return ok_; }
  bool ended() const { return rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

// Who the server acts as: what its effective access is decided by.
struct Actor {
  uint32_t uid = 0, gid = 0;
  std::vector<uint32_t> groups;
};

// nullopt (and the fields' ok() false) for what no kernel says: a type that is none, a negative size, wrong nanoseconds.
std::optional<Attributes> DecodeAttributes(Fields& fields, const Actor& actor);
// An entry of a listing or a name in the news: attributes, then the link's text where there is one.
bool DecodeEntryBody(Fields& fields, const Actor& actor, Entry& entry);
// Tells the listener (which may be null) all of it, a loss once and last. False for nonsense, of which nothing is told. `lost`: some was.
bool DecodeNews(std::string_view news, const Actor& actor, ChangeListener* listener, bool* lost = nullptr);
// u8 which of object, parent, old parent and what was replaced follow.
std::optional<Changed> DecodeChanged(Fields& fields, const Actor& actor);

}  // namespace e2bfs::transport::syscall
