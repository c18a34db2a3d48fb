// Random operations on a few names and files, with reopening and with stores and reads that fail, against a plain model.
#include <linux/falloc.h>

#include <map>
#include <random>

#include "tests/unit/cache/cache_fixture.h"

namespace e2bfs::cache {
namespace {

// How many seeds each test tries; E2BFS_MODEL_SEEDS for longer runs by hand.
uint32_t Seeds(uint32_t usual) {
  const char* asked = getenv("E2BFS_MODEL_SEEDS");
  return asked != nullptr ? static_cast<uint32_t>(atoi(asked)) : usual;
}

// A file as the programs on this machine see it.
struct ModelFile {
  std::string content;
  uint32_t permissions = 0644;
};
using ModelFilePtr = std::shared_ptr<ModelFile>;

struct ModelHandle {
  FileHandle handle = 0;
  NodeId node = 0;
  ModelFilePtr file;
  bool append = false;
};

class ModelTest : public CacheFixture {
 protected:
  void Run(uint32_t seed, int operations, bool faults, testing::MemoryRemoteFsOptions remote, bool inside = false);
  std::string Trace() const {
    std::string all;
    for (size_t i = trace_.size() > 40 ? trace_.size() - 40 : 0; i < trace_.size(); ++i) all += trace_[i] + "\n";
    return all;
  }
  std::vector<std::string> trace_;
};

// inside: programs in the sandbox rename and unlink, too.
void ModelTest::Run(uint32_t seed, int operations, bool faults, testing::MemoryRemoteFsOptions remote, bool inside) {
  std::mt19937 random(seed);
  auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
  UseRemote(remote);
  trace_.clear();
  for (const std::string directory : {"d0", "d1"}) {
    if (options_.writeback) {  // what is made in a directory of this mount is made here
      ASSERT_TRUE(fs().MakeDirectory(kRoot, directory, 0755, Ctx()));
    } else {
      ASSERT_TRUE(remote_->InsideMakeDirectory(directory));
    }
  }
  const std::vector<std::string> names{"a", "b", "c"};
  std::map<std::string, NodeId> directories{{"d0", Find("d0")}, {"d1", Find("d1")}};
  std::map<std::string, ModelFilePtr> model;  // "d0/a" -> file
  std::vector<ModelHandle> open;
  constexpr int64_t kMost = 3000;

  auto any_path = [&] { return "d" + std::to_string(below(2)) + "/" + names[below(3)]; };
  auto parent_of = [&](const std::string& path) { return directories.at(path.substr(0, 2)); };
  auto text = [&](size_t length) {
    std::string bytes(length, 0);
    for (char& byte : bytes) byte = static_cast<char>('a' + below(26));
    return bytes;
  };
  auto inject = [&] {
    if (!faults || below(12) != 0) return;
    testing::RemoteFault fault;
    const std::vector<std::string> functions{"Store", "Read", "ReadChunk", "MakeObjects", "Open", "SetAttributes"};
    fault.function = functions[below(static_cast<uint32_t>(functions.size()))];
    fault.error = below(2) == 0 ? Error{EIO, ErrorKind::kErrno, "injected", 0, ""}
                                : Error{EIO, ErrorKind::kUnavailable, "injected", 0, ""};
    fault.count = 1 + static_cast<int>(below(2));
    faulty_->Add(fault);
    trace_.push_back("fault " + fault.function);
  };
  // Whatever was injected is over.
  auto settle = [&] { faulty_->Clear(); };

  for (int step = 0; step < operations; ++step) {
    inject();
    const uint32_t kind = below(inside ? 124 : 116);
    if (options_.writeback && below(25) == 0) {  // sometimes all of it, sometimes behind the programs' backs
      trace_.push_back("flush all");
      const int error = Errno(fs().FlushAll(Ctx(), nullptr));
      ASSERT_TRUE(faults || error == 0) << ErrnoName(error) << " seed " << seed << "\n" << Trace();
    } else if (options_.writeback && below(400) == 0) {
      trace_.push_back("wait");
      std::this_thread::sleep_for(std::chrono::milliseconds(120));
    }
    ModelHandle* handle = open.empty() ? nullptr : &open[below(static_cast<uint32_t>(open.size()))];
    if (kind < 10) {
      const std::string path = any_path();
      if (open.size() >= 6) continue;
      const bool truncate = below(3) == 0, append = below(3) == 0;
      settle();
      auto made = fs().CreateFile(parent_of(path), path.substr(3), 0644, false, {true, true, append, truncate}, Ctx());
      trace_.push_back("create " + path + (truncate ? " truncate" : "") + (append ? " append" : ""));
      ASSERT_TRUE(made) << ToString(made.error()) << "\n" << Trace();
      ModelFilePtr& file = model[path];
      if (!file) file = std::make_shared<ModelFile>();
      if (truncate) file->content.clear();
      ASSERT_EQ(made->attributes.attributes.size, static_cast<int64_t>(file->content.size())) << Trace();
      open.push_back({made->handle, made->attributes.node, file, append});
    } else if (kind < 40 && handle) {
      auto offset = static_cast<int64_t>(below(kMost));
      const std::string bytes = text(1 + below(400));
      std::string& content = handle->file->content;
      if (handle->append) offset = static_cast<int64_t>(content.size());
      trace_.push_back("write " + std::to_string(handle->node) + " " + std::to_string(offset) + "+" +
                       std::to_string(bytes.size()) + (handle->append ? " append" : ""));
      auto written = fs().Write(handle->handle, offset, bytes, Ctx());
      ASSERT_TRUE(written) << ToString(written.error()) << "\n" << Trace();
      const auto at = static_cast<size_t>(offset);
      if (content.size() < at + bytes.size()) content.resize(at + bytes.size(), '\0');
      content.replace(at, bytes.size(), bytes);
    } else if (kind < 60 && handle) {
      const auto offset = static_cast<int64_t>(below(kMost));
      const size_t length = 1 + below(1500);
      trace_.push_back("read " + std::to_string(handle->node));
      std::string bytes(length, '?');
      auto got = fs().Read(handle->handle, offset, bytes.data(), length, Ctx());
      if (!got && faults) {
        settle();
        got = fs().Read(handle->handle, offset, bytes.data(), length, Ctx());
      }
      ASSERT_TRUE(got) << ToString(got.error()) << "\n" << Trace();
      bytes.resize(*got);
      const std::string& content = handle->file->content;
      const std::string expected =
          static_cast<size_t>(offset) < content.size() ? content.substr(static_cast<size_t>(offset), length) : "";
      ASSERT_EQ(bytes, expected) << "seed " << seed << " step " << step << "\n" << Trace();
    } else if (kind < 68 && handle) {
      const auto size = static_cast<int64_t>(below(2) == 0 ? below(kMost) : below(3) * 100);
      trace_.push_back("truncate " + std::to_string(handle->node) + " " + std::to_string(size));
      ASSERT_EQ(Truncate(handle->node, handle->handle, size), 0) << Trace();
      handle->file->content.resize(static_cast<size_t>(size), '\0');
    } else if (kind < 78 && handle) {
      trace_.push_back("flush " + std::to_string(handle->node));
      const int error = Flush(handle->handle);
      ASSERT_TRUE(faults || error == 0) << ErrnoName(error) << " seed " << seed << "\n" << Trace();
    } else if (kind < 86 && handle) {
      trace_.push_back("close " + std::to_string(handle->node));
      const int error = Close(handle->handle);
      ASSERT_TRUE(faults || error == 0) << ErrnoName(error) << " seed " << seed << "\n" << Trace();
      open.erase(open.begin() + (handle - open.data()));
    } else if (kind < 90) {
      const std::string path = any_path();
      if (model.count(path) == 0) continue;
      settle();
      trace_.push_back("unlink " + path);
      ASSERT_EQ(Errno(fs().Unlink(parent_of(path), path.substr(3), Ctx())), 0) << Trace();
      model.erase(path);
    } else if (kind < 94) {
      const std::string from = any_path(), to = any_path();
      if (model.count(from) == 0 || from == to) continue;
      settle();
      trace_.push_back("rename " + from + " " + to);
      int error = Errno(fs().Rename(parent_of(from), from.substr(3), parent_of(to), to.substr(3), 0, Ctx()));
      // An error of an earlier store that nobody was told of.
      if (error != 0 && faults) {
        error = Errno(fs().Rename(parent_of(from), from.substr(3), parent_of(to), to.substr(3), 0, Ctx()));
      }
      ASSERT_EQ(error, 0) << Trace();
      if (model.count(to) != 0 && model[to] == model[from]) continue;  // two names of one file stay as they are
      model[to] = model[from];
      model.erase(from);
    } else if (kind < 96) {
      settle();
      trace_.push_back("exchange directories");
      int error = Errno(fs().Rename(kRoot, "d0", kRoot, "d1", transport::kRenameExchange, Ctx()));
      ASSERT_EQ(error, 0) << Trace();
      std::swap(directories["d0"], directories["d1"]);
      std::map<std::string, ModelFilePtr> swapped;
      for (auto& [path, file] : model) swapped[(path[1] == '0' ? "d1" : "d0") + path.substr(2)] = file;
      model = std::move(swapped);
    } else if (kind < 98 && handle) {
      trace_.push_back("chmod " + std::to_string(handle->node));
      settle();
      transport::AttributeChange change;
      change.permissions = 0600 + 8 * below(8);
      auto set = fs().SetAttributes(handle->node, handle->handle, change, Ctx());
      ASSERT_TRUE(set) << ToString(set.error()) << "\n" << Trace();
      handle->file->permissions = *change.permissions;
    } else if (kind >= 116) {
      const std::string path = any_path(), to = any_path();
      if (model.count(path) == 0 || path == to) continue;
      // Two names of one file stay as they are.
      if (kind < 120 && model.count(to) != 0 && model[to] == model[path]) continue;
      trace_.push_back((kind < 120 ? "inside: rename " + path + " " : "inside: unlink " + path) + (kind < 120 ? to : ""));
      ASSERT_TRUE(kind < 120 ? remote_->InsideRename(path, to) : remote_->InsideRemove(path)) << Trace();
      if (kind < 120) model[to] = model[path];
      model.erase(path);
    } else if (kind >= 112) {
      const std::string from = any_path(), to = any_path();
      if (model.count(from) == 0 || !remote.hard_links_share_identity) continue;
      settle();
      trace_.push_back("link " + from + " " + to);
      auto found = fs().Lookup(parent_of(from), from.substr(3), Ctx());
      ASSERT_TRUE(found) << Trace();
      auto made = fs().MakeLink(found->node, parent_of(to), to.substr(3), Ctx());
      if (!made && faults && made.error().errno_value == EIO) {  // an earlier store's error
        made = fs().MakeLink(found->node, parent_of(to), to.substr(3), Ctx());
      }
      ASSERT_EQ(made ? 0 : made.error().errno_value, model.count(to) != 0 ? EEXIST : 0) << Trace();
      if (made) model[to] = model[from];
    } else if (kind >= 108 && handle) {
      const auto offset = static_cast<int64_t>(below(kMost));
      const auto size = static_cast<int64_t>(handle->file->content.size());
      const bool hole = below(2) == 0;
      trace_.push_back("seek " + std::to_string(handle->node) + " " + std::to_string(offset));
      auto found = fs().Seek(handle->handle, offset, hole ? transport::SeekTarget::kHole : transport::SeekTarget::kData, Ctx());
      ASSERT_EQ(found ? *found : -found.error().errno_value, offset >= size ? -ENXIO : hole ? size : offset) << Trace();
    } else if (kind >= 104 && handle) {
      ModelHandle& to = open[below(static_cast<uint32_t>(open.size()))];
      if (to.append) continue;
      const auto from_offset = static_cast<int64_t>(below(kMost)), to_offset = static_cast<int64_t>(below(kMost));
      trace_.push_back("copy " + std::to_string(handle->node) + " " + std::to_string(from_offset) + " to " +
                       std::to_string(to.node) + " " + std::to_string(to_offset));
      auto copied = fs().CopyRange(handle->handle, from_offset, to.handle, {to_offset, 500}, Ctx());
      if (!copied) {
        ASSERT_TRUE(faults || copied.error().errno_value == EOPNOTSUPP) << ToString(copied.error()) << "\n" << Trace();
        continue;
      }
      const std::string& source = handle->file->content;
      const std::string bytes = static_cast<size_t>(from_offset) < source.size() ? source.substr(static_cast<size_t>(from_offset), 500) : "";
      ASSERT_EQ(*copied, bytes.size()) << Trace();
      std::string& content = to.file->content;
      const auto at = static_cast<size_t>(to_offset);
      if (!bytes.empty() && content.size() < at + bytes.size()) content.resize(at + bytes.size(), '\0');
      if (!bytes.empty()) content.replace(at, bytes.size(), bytes);
    } else if (kind >= 100 && handle) {
      const uint32_t modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE};
      const uint32_t mode = modes[below(4)];
      const auto offset = static_cast<int64_t>(below(kMost)), length = static_cast<int64_t>(1 + below(800));
      trace_.push_back("allocate " + std::to_string(handle->node) + " mode " + std::to_string(mode) + " " + std::to_string(offset) +
                       "+" + std::to_string(length));
      auto done = fs().Allocate(handle->handle, mode, {offset, length}, Ctx());
      if (!done) {
        ASSERT_TRUE(faults) << ToString(done.error()) << "\n" << Trace();
        continue;
      }
      std::string& content = handle->file->content;
      const auto end = static_cast<size_t>(offset + length);
      if ((mode & FALLOC_FL_KEEP_SIZE) == 0 && content.size() < end) content.resize(end, '\0');
      if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {
        for (size_t i = static_cast<size_t>(offset); i < std::min(end, content.size()); ++i) content[i] = '\0';
      }
    } else {
      const std::string path = any_path();
      auto found = fs().Lookup(parent_of(path), path.substr(3), Ctx());
      trace_.push_back("stat " + path);
      ASSERT_EQ(found.has_value(), model.count(path) == 1) << Trace();
      if (found) {
        ASSERT_EQ(found->attributes.size, static_cast<int64_t>(model[path]->content.size())) << Trace();
        ASSERT_EQ(found->attributes.permissions, model[path]->permissions) << Trace();
      }
    }
  }
  settle();
  for (const ModelHandle& handle : open) {
    fs().Flush(handle.handle, Ctx());  // may tell of an injected failure
    ASSERT_EQ(Close(handle.handle), 0) << Trace();
  }
  ASSERT_EQ(Errno(fs().FlushAll(Ctx(), nullptr)), 0) << Trace();
  for (const std::string directory : {"d0", "d1"}) {
    std::vector<std::string> expected;
    for (const auto& [path, file] : model) {
      if (path.substr(0, 2) == directory) expected.push_back(path.substr(3));
    }
    ASSERT_EQ(remote_->InsideList(directory), expected) << Trace();
    ASSERT_EQ(List(directories[directory]), expected) << Trace();
  }
  for (const auto& [path, file] : model) {
    ASSERT_EQ(Inside(path), file->content) << "seed " << seed << " " << path << "\n" << Trace();
    ASSERT_EQ(remote_->InsideStat(path)->permissions, file->permissions) << path << "\n" << Trace();
  }
  EXPECT_EQ(fs().Status().dirty_files, 0);
  EXPECT_TRUE(Eventually([&] { return SpoolFiles() == 0; })) << SpoolFiles();
}

TEST_F(ModelTest, RandomOperationsAgreeWithTheModel) {
  for (uint32_t seed = 1; seed < 1 + Seeds(20); ++seed) {
    Run(seed, 700, false, {});
    if (HasFatalFailure()) return;
  }
}

TEST_F(ModelTest, AlsoWhenCallsFail) {
  for (uint32_t seed = 101; seed < 101 + Seeds(20); ++seed) {
    Run(seed, 700, true, {});
    if (HasFatalFailure()) return;
  }
}

TEST_F(ModelTest, AlsoWhereNothingIsRememberedHere) {
  options_.attribute_ttl = kNoTtl;
  options_.negative_ttl = kNoTtl;
  for (uint32_t seed = 201; seed < 201 + Seeds(10); ++seed) {
    Run(seed, 500, true, {});
    if (HasFatalFailure()) return;
  }
}

TEST_F(ModelTest, AlsoWhereProgramsInTheSandboxRenameAndUnlink) {
  options_.attribute_ttl = kNoTtl;
  options_.negative_ttl = kNoTtl;
  for (uint32_t seed = 401; seed < 401 + Seeds(30); ++seed) {
    Run(seed, 500, false, {}, true);
    if (HasFatalFailure()) return;
  }
}

TEST_F(ModelTest, AlsoWhenItIsSentBehind) {
  options_.writeback = true;
  for (uint32_t seed = 501; seed < 501 + Seeds(10); ++seed) {
    Run(seed, 700, false, {});
    if (HasFatalFailure()) return;
  }
  for (uint32_t seed = 521; seed < 521 + Seeds(10); ++seed) {
    Run(seed, 700, true, {});
    if (HasFatalFailure()) return;
  }
}

// As the service tier: paths for handles, identities of names.
TEST_F(ModelTest, AlsoWhereTheOtherSideKnowsOnlyPaths) {
  testing::MemoryRemoteFsOptions paths;
  paths.handles_survive = false;
  paths.identities_survive_renames = false;
  paths.hard_links_share_identity = false;
  paths.opens_soon = false;
  paths.attributes_carry_xattr_names = false;
  for (uint32_t seed = 301; seed < 301 + Seeds(10); ++seed) {
    Run(seed, 500, false, paths);
    if (HasFatalFailure()) return;
  }
  for (uint32_t seed = 311; seed < 311 + Seeds(10); ++seed) {
    Run(seed, 500, true, paths);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace e2bfs::cache
