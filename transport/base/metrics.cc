#include "transport/base/metrics.h"

#include <mutex>

namespace e2bfs {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, Counter, std::less<>> counters;  // nodes never move
};

Registry& GlobalRegistry() {
  static auto* registry = new Registry;  // outlives threads that still count at exit
  return *registry;
}

}  // namespace

Counter& Metrics::Get(std::string_view name) {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  auto found = registry.counters.find(name);
  if (found == registry.counters.end()) found = registry.counters.try_emplace(std::string(name)).first;
  return found->second;
}

std::map<std::string, int64_t> Metrics::Snapshot() {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  std::map<std::string, int64_t> values;
  for (const auto& [name, counter] : registry.counters) values.emplace(name, counter.value());
  return values;
}

}  // namespace e2bfs
