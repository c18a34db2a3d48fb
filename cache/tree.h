// Tree: the nodes of a mount. Names map to nodes, nodes to remote identities; a node knows its path as it now is.
// Not locked: guarded by CachedFsImpl's mutex. Makes no remote calls.
#pragma once

#include <string>
#include <unordered_map>

#include "cache/node.h"

namespace e2bfs::cache {

class Tree {
 public:
  // The root, with its attributes; it is never dropped.
  explicit Tree(const transport::Attributes& root);

  NodePtr Find(NodeId id) const;  // null if not known
  NodePtr FindIdentity(const transport::FileId& id) const;  // null if no live node has it
  const NodePtr& root() const { return root_; }
  // The node of that identity; made if it is not known. An identity that was known before has the same id again. `known` is
  // used when attributes.id is not known and it is of the same type. Attributes of a new node are set, with no freshness.
  NodePtr GetOrMake(const transport::Attributes& attributes, const NodePtr& known);

  // The name's entry, null if there is none.
  static Child* FindChild(Node& directory, const std::string& name);
  // The name leads to the node from now on, and to nothing else; what it led to is detached.
  Child& Attach(Node& directory, const std::string& name, Node& node);
  // The name leads to nothing that is known from now on; the entry stays.
  Child& Detach(Node& directory, const std::string& name);
  // The object has another identity after a rename made here.
  void Rekey(Node& node, const transport::FileId& id);
  // Whatever the names at and below the node lead to is taken for the same objects, with identities yet to be told.
  void IdentitiesChanged(Node& node);
  // The object is gone: its identity may come again for another one.
  void ForgetIdentity(const Node& node);

  // Relative to the mounted directory, "" for it.
  std::string PathOf(const Node& node) const;
  // The next of its names is used for its path from now on; false if it has no other.
  static bool UseOtherPlace(Node& node);
  transport::Node Address(const Node& node) const;

  size_t size() const { return nodes_.size(); }
  const std::unordered_map<NodeId, NodePtr>& nodes() const { return nodes_; }
  // Drops nodes that nobody holds and entries that are no longer fresh, when there are many more than after the last sweep.
  void SweepIfLarge(TimePoint now);
  void Sweep(TimePoint now);

 private:
  bool Droppable(const Node& node, TimePoint now) const;
  void Drop(const NodePtr& node);
  void RemovePlace(Node& node, const Node& directory, const std::string& name);
  void Unpark(Node& node);

  NodePtr root_;
  std::unordered_map<NodeId, NodePtr> nodes_;
  std::unordered_map<std::string, NodeId> by_identity_;   // of live nodes
  std::unordered_map<uint64_t, NodeId> remembered_;       // hash of an identity -> its id, also when the node was dropped
  NodeId next_id_ = kRoot + 1;
  size_t entries_ = 0;        // names in all directories
  size_t swept_entries_ = 0;  // what the last sweep left
};

}  // namespace e2bfs::cache
