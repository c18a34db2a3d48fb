#include "cache/tree.h"

#include <functional>

namespace e2bfs::cache {
namespace {

constexpr size_t kEntriesBeforeSweep = 100'000;
constexpr size_t kRememberedIds = 2'000'000;  // about 80 MB at worst, after which ids of dropped nodes may change

}  // namespace

Tree::Tree(const transport::Attributes& root) : root_(std::make_shared<Node>()) {
  root_->id = kRoot;
  root_->file_id = root.id;
  root_->attributes = root;
  nodes_.emplace(kRoot, root_);
  if (root.id.known()) by_identity_.emplace(root.id.value, kRoot);
}

NodePtr Tree::Find(NodeId id) const {
  auto at = nodes_.find(id);
  return at == nodes_.end() ? nullptr : at->second;
}

NodePtr Tree::FindIdentity(const transport::FileId& id) const {
  auto at = by_identity_.find(id.value);
  return id.known() && at != by_identity_.end() ? Find(at->second) : nullptr;
}

NodePtr Tree::GetOrMake(const transport::Attributes& attributes, const NodePtr& known) {
  if (attributes.id.known()) {
    if (auto at = by_identity_.find(attributes.id.value); at != by_identity_.end()) {
      NodePtr node = Find(at->second);
      if (node->attributes.type == attributes.type) return node;
      by_identity_.erase(at);  // an identity does not change its type: the other side uses it for another object
    } else if (known && !known->file_id.known() && known->attributes.type == attributes.type) {
      Rekey(*known, attributes.id);
      return known;
    }
  } else if (known && known->attributes.type == attributes.type) {
    return known;
  }
  auto node = std::make_shared<Node>();
  node->file_id = attributes.id;
  node->attributes = attributes;
  if (attributes.id.known()) {
    if (remembered_.size() >= kRememberedIds) remembered_.clear();
    auto [at, fresh] = remembered_.try_emplace(std::hash<std::string>{}(attributes.id.value), next_id_);
    if (!fresh && nodes_.count(at->second) != 0) at->second = next_id_;  // two identities, one hash
    node->id = at->second;
    by_identity_[attributes.id.value] = node->id;
  } else {
    node->id = next_id_;
  }
  if (node->id == next_id_) ++next_id_;
  nodes_.emplace(node->id, node);
  return node;
}

Child* Tree::FindChild(Node& directory, const std::string& name) {
  auto at = directory.children.find(name);
  return at == directory.children.end() ? nullptr : &at->second;
}

// A node that lost its last name still has its path by the directory where it was, which therefore has to stay.
void Tree::Unpark(Node& node) {
  if (node.linked || node.places.empty()) return;
  if (NodePtr parent = Find(node.places.current().parent)) --parent->parked_children;
  node.places.Clear();
  node.linked = true;
}

void Tree::RemovePlace(Node& node, const Node& directory, const std::string& name) {
  const Place place{directory.id, name};
  if (!node.linked || !node.places.contains(place)) return;
  if (node.places.size() > 1) {
    node.places.Remove(place);
  } else {
    node.linked = false;
    if (NodePtr parent = Find(directory.id)) ++parent->parked_children;
  }
}

Child& Tree::Attach(Node& directory, const std::string& name, Node& node) {
  Child& child = Detach(directory, name);
  Unpark(node);
  // A directory has one name.
  while (node.is_directory() && !node.places.empty()) {
    const Place old = node.places.current();
    NodePtr parent = Find(old.parent);
    Child* entry = parent ? FindChild(*parent, old.name) : nullptr;
    if (entry && entry->node == node.id) {
      entry->node = 0;
      entry->fresh_until = {};
      --parent->linked_children;
    }
    node.places.Remove(old);
  }
  node.places.Add({directory.id, name});
  node.linked = true;
  child.node = node.id;
  ++directory.linked_children;
  return child;
}

Child& Tree::Detach(Node& directory, const std::string& name) {
  auto [at, fresh] = directory.children.try_emplace(name);
  Child& child = at->second;
  if (fresh) {
    ++entries_;
    child.stamp = directory.forgotten_stamp;
  }
  if (child.node != 0) {
    if (NodePtr node = Find(child.node)) RemovePlace(*node, directory, name);
    child.node = 0;
    --directory.linked_children;
  }
  child.fresh_until = {};
  return child;
}

void Tree::Rekey(Node& node, const transport::FileId& id) {
  if (!id.known() || node.file_id == id) return;
  ForgetIdentity(node);
  node.file_id = id;
  by_identity_[id.value] = node.id;
  remembered_[std::hash<std::string>{}(id.value)] = node.id;
}

void Tree::IdentitiesChanged(Node& node) {
  std::vector<NodePtr> below{Find(node.id)};
  while (!below.empty()) {
    NodePtr at = std::move(below.back());
    below.pop_back();
    if (!at) continue;
    ForgetIdentity(*at);
    at->file_id = {};
    at->fresh_until = {};
    at->listed_until = {};
    for (auto& [name, child] : at->children) {
      if (child.node != 0) below.push_back(Find(child.node));
    }
  }
}

void Tree::ForgetIdentity(const Node& node) {
  auto at = by_identity_.find(node.file_id.value);
  if (at != by_identity_.end() && at->second == node.id) by_identity_.erase(at);
}

std::string Tree::PathOf(const Node& node) const {
  std::vector<const std::string*> names;
  const Node* at = &node;
  // The bound ends what a hostile side could have made into a ring.
  for (int depth = 0; at && at->id != kRoot && !at->places.empty() && depth < 4096; ++depth) {
    names.push_back(&at->places.current().name);
    at = Find(at->places.current().parent).get();
  }
  std::string path;
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    if (!path.empty()) path += '/';
    path += **name;
  }
  return path;
}

bool Tree::UseOtherPlace(Node& node) {
  if (node.places.size() < 2) return false;
  node.places.UseNext();
  return true;
}

transport::Node Tree::Address(const Node& node) const {
  const NodePtr parent = node.places.empty() ? nullptr : Find(node.places.current().parent);
  return {PathOf(node), node.file_id, parent ? parent->file_id : transport::FileId{}};
}

bool Tree::Droppable(const Node& node, TimePoint now) const {
  // What is in a directory that is being listed or looked into is about to be asked for.
  for (const Place& place : node.places) {
    if (const NodePtr parent = Find(place.parent); parent && parent->pins > 0) return false;
  }
  return node.id != kRoot && node.references == 0 && node.pins == 0 && node.changes_in_flight == 0 &&
         node.open_files == 0 && !node.content->storing && node.linked_children == 0 && node.parked_children == 0 &&
         (node.fresh_until <= now || node.fresh_until == kWatched) && !node.has_unsent() && !node.content->unreported;
}

void Tree::Drop(const NodePtr& node) {
  if (!node->linked && !node->places.empty()) {
    if (NodePtr parent = Find(node->places.current().parent)) --parent->parked_children;
  } else {
    for (const Place& place : node->places) {
      NodePtr parent = Find(place.parent);
      if (!parent) continue;
      auto at = parent->children.find(place.name);
      if (at == parent->children.end() || at->second.node != node->id) continue;
      parent->forgotten_stamp = std::max(parent->forgotten_stamp, at->second.stamp);
      parent->listed_until = {};  // a name is missing from now on
      --parent->linked_children;
      parent->children.erase(at);
      --entries_;
    }
  }
  entries_ -= node->children.size();
  ForgetIdentity(*node);
  nodes_.erase(node->id);
}

void Tree::SweepIfLarge(TimePoint now) {
  if (entries_ + nodes_.size() > kEntriesBeforeSweep + 2 * swept_entries_) Sweep(now);
}

void Tree::Sweep(TimePoint now) {
  for (bool dropped = true; dropped;) {  // a directory becomes droppable when its children went
    dropped = false;
    std::vector<NodePtr> idle;
    for (const auto& [id, node] : nodes_) {
      if (Droppable(*node, now)) idle.push_back(node);
    }
    for (const NodePtr& node : idle) {
      Drop(node);
      dropped = true;
    }
  }
  for (const auto& [id, node] : nodes_) {
    for (auto at = node->children.begin(); at != node->children.end();) {
      if (at->second.node == 0 && (at->second.fresh_until <= now || at->second.fresh_until == kWatched)) {
        // Of this name nothing is known any more; a listing could not say that.
        if (at->second.fresh_until != kWatched) node->listed_until = {};
        node->forgotten_stamp = std::max(node->forgotten_stamp, at->second.stamp);
        at = node->children.erase(at);
        --entries_;
      } else {
        ++at;
      }
    }
  }
  swept_entries_ = entries_ + nodes_.size();
}

}  // namespace e2bfs::cache
