#include "transport/syscall/new_objects.h"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

namespace e2bfs::transport::syscall {
namespace {

uint8_t NumberOf(FileType type) { return type == FileType::kRegular ? 1 : type == FileType::kDirectory ? 2 : 3; }

}  // namespace

Result<EncodedRow> EncodeRow(const std::vector<NewObject>& objects) {
  if (auto sane = CheckRow(objects); !sane) return Forward(sane.error());
  std::map<std::pair<std::string_view, std::string_view>, uint16_t> known;  // path and identity
  Arguments directories, records;
  for (const NewObject& object : objects) {
    auto where = static_cast<uint16_t>(object.made_in.value_or(0));
    if (!object.made_in) {
      const Node& directory = object.directory;
      const auto [at, added] = known.try_emplace({directory.path, directory.id.value}, static_cast<uint16_t>(known.size()));
      if (added) directories.Text(directory.path).Text(directory.id.value);
      where = at->second;
    }
    auto content = object.type == FileType::kRegular ? ContentOf(object) : object.target;
    if (!content) return Forward(content.error());
    AttributeChange attributes = object.attributes;
    attributes.size.reset();
    Arguments record;
    record.U8(NumberOf(object.type)).U8(object.made_in ? 1 : 0).U16(where).ShortText(object.name).U32(object.permissions).Text(*content);
    records.Text(record.Owner(object.creator).Change(attributes).bytes());
  }
  EncodedRow row;
  row.directories = known.size();
  row.bytes = Arguments().U16(static_cast<uint16_t>(known.size())).Raw(directories.bytes()).U16(static_cast<uint16_t>(objects.size())).Raw(records.bytes()).bytes();
  return row;
}

Result<MadeObjects> DecodeMade(const std::vector<std::string_view>& pieces, const std::vector<NewObject>& objects, size_t directories, const Actor& actor) {
  const auto nonsense = [] { return Failure(ErrorKind::kProtocol, EIO, "the syscall server's answer makes no sense: new objects"); };
  // One object only: the others are what was asked for.
  const auto refuse = [&](MadeObject& object, size_t index) {
    object.attributes.reset();
    object.error = Failure(ErrorKind::kProtocol, EIO, "something else was made: " + objects[index].name).value();
  };
  std::set<std::string_view> taken;  // identities
  for (const NewObject& object : objects) {
    if (!object.made_in && object.directory.id.known()) taken.insert(object.directory.id.value);
  }
  std::set<std::string> made_already;
  MadeObjects made;
  size_t told = 0;  // of `directories`
  for (const std::string_view piece : pieces) {
    Fields fields(piece);
    while (!fields.ended()) {
      const size_t index = made.objects.size();
      const bool is_object = index < objects.size();
      if (!is_object && told++ == directories) return nonsense();
      const uint32_t errno_value = is_object ? fields.U32() : 0;
      const uint8_t there = fields.U8();
      if (!fields.ok() || errno_value >= 4096 || there > (is_object ? 2 : 1)) return nonsense();
      std::optional<Attributes> attributes;
      if (there == 1) {
        attributes = DecodeAttributes(fields, actor);
        if (!attributes || !attributes->id.known()) return nonsense();
      }
      if (!is_object) {
        // One of them may have been named in two ways.
        const bool known = !attributes || attributes->type != FileType::kDirectory || std::any_of(made.directories.begin(), made.directories.end(), [&](const Attributes& other) { return other.id == attributes->id; });
        if (!known) made.directories.push_back(std::move(*attributes));
        continue;
      }
      if (errno_value == 0 && !attributes) return nonsense();
      MadeObject& object = made.objects.emplace_back();
      object.attributes = std::move(attributes);
      if (errno_value != 0) object.error = Errno(static_cast<int>(errno_value), objects[index].name).value();
      if (there == 2) object.error->kind = ErrorKind::kBroken;
      if (!object.attributes) continue;
      const FileId& id = object.attributes->id;
      const bool another = taken.contains(id.value) || !made_already.insert(id.value).second;
      if (another || object.attributes->type != objects[index].type) refuse(object, index);
    }
  }
  if (made.objects.size() != objects.size() || told != directories) return nonsense();
  for (size_t i = 0; i < objects.size(); ++i) {  // directories that were there, known by their paths only
    const auto is_it = [&](const Attributes& directory) { return directory.id == made.objects[i].attributes->id; };
    if (made.objects[i].attributes && std::any_of(made.directories.begin(), made.directories.end(), is_it)) refuse(made.objects[i], i);
  }
  return made;
}

}  // namespace e2bfs::transport::syscall
