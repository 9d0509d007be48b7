// GhostLists: memories of blocks that a policy gave up.
#ifndef KVCACHE_EVICTION_GHOST_LISTS_H_
#define KVCACHE_EVICTION_GHOST_LISTS_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/policy/slot_index.h"

namespace kvcache {

// Names a ghost until it is erased.
using Ghost = uint32_t;
inline constexpr Ghost kNoGhost = 0xffffffff;

// Lists of ghosts, from the oldest to the newest: the hash of a key and the bytes that its block
// had. A key is in at most one list. Two keys of one hash are taken for the same: that costs a
// wrong guess in 2^64, and nothing else.
//
// Costs: O(1) expected. Only SetMaxGhosts allocates, 34 bytes for each ghost, and is O(1) unless
// their number grows. Not thread-safe.
template <size_t kLists>
class GhostLists {
 public:
  GhostLists() { lists_.fill({}); }

  // Keeps the content; never shrinks.
  void SetMaxGhosts(size_t max_ghosts) {
    KVCACHE_CHECK(max_ghosts < kNoGhost, "max_ghosts ", max_ghosts);
    if (max_ghosts <= nodes_.size()) return;
    nodes_.reserve(max_ghosts);
    while (nodes_.size() < max_ghosts) {
      nodes_.emplace_back().newer = unused_;
      unused_ = static_cast<Ghost>(nodes_.size() - 1);
    }
    index_.emplace().SetMaxSlots(max_ghosts);
    for (const List& list : lists_) {
      for (Ghost ghost = list.oldest; ghost != kNoGhost; ghost = nodes_[ghost].newer) {
        index_->Insert(nodes_[ghost].key_hash, ghost);
      }
    }
  }

  // Of all ghosts of a list together.
  size_t bytes(size_t list) const { return lists_[list].bytes; }
  // kNoGhost when the list is empty.
  Ghost oldest(size_t list) const { return lists_[list].oldest; }

  // kNoGhost when there is none.
  Ghost Find(uint64_t key_hash) const {
    return index_->Find(key_hash, [&](Ghost g) { return nodes_[g].key_hash == key_hash; });
  }
  // REQUIRES: `ghost` comes from Find() or oldest() and was not erased since.
  size_t ListOf(Ghost ghost) const { return nodes_[ghost].list; }
  size_t BytesOf(Ghost ghost) const { return nodes_[ghost].bytes; }
  void Erase(Ghost ghost) {
    Node& node = nodes_[ghost];
    List& list = lists_[node.list];
    index_->Erase(node.key_hash, ghost);
    list.bytes -= node.bytes;
    (node.older == kNoGhost ? list.oldest : nodes_[node.older].newer) = node.newer;
    (node.newer == kNoGhost ? list.newest : nodes_[node.newer].older) = node.older;
    node = Node();
    node.newer = unused_;
    unused_ = ghost;
  }

  // Adds the newest ghost of a list; an older one of the same key goes, and when there are too
  // many, the oldest of this list, or of another one if this is empty. REQUIRES: max_ghosts > 0.
  void Add(size_t list, uint64_t key_hash, size_t bytes) {
    if (const Ghost same = Find(key_hash); same != kNoGhost) Erase(same);
    if (unused_ == kNoGhost) Erase(AnyOldest(list));
    const Ghost ghost = unused_;
    unused_ = nodes_[ghost].newer;
    List& to = lists_[list];
    nodes_[ghost] = {.key_hash = key_hash,
                     .bytes = bytes,
                     .list = static_cast<uint64_t>(list),
                     .older = to.newest,
                     .newer = kNoGhost};
    (to.newest == kNoGhost ? to.oldest : nodes_[to.newest].newer) = ghost;
    to.newest = ghost;
    to.bytes += bytes;
    index_->Insert(key_hash, ghost);
  }

 private:
  static_assert(kLists <= 4);
  static_assert(kNoGhost == kNoSlot);  // the index is one of slots

  struct Node {
    uint64_t key_hash = 0;
    uint64_t bytes : 62 = 0;
    uint64_t list : 2 = 0;
    Ghost older = kNoGhost;
    Ghost newer = kNoGhost;  // of an unused one: the next of them
  };
  static_assert(sizeof(Node) == 24);

  struct List {
    Ghost oldest = kNoGhost;
    Ghost newest = kNoGhost;
    size_t bytes = 0;
  };

  Ghost AnyOldest(size_t preferred) const {
    if (lists_[preferred].oldest != kNoGhost) return lists_[preferred].oldest;
    const auto any = std::find_if(lists_.begin(), lists_.end(),
                                  [](const List& list) { return list.oldest != kNoGhost; });
    KVCACHE_CHECK(any != lists_.end(), "no room for a ghost among ", nodes_.size());
    return any->oldest;
  }

  std::vector<Node> nodes_;
  Ghost unused_ = kNoGhost;
  std::array<List, kLists> lists_;
  std::optional<SlotIndex> index_;
};

}  // namespace kvcache

#endif  // KVCACHE_EVICTION_GHOST_LISTS_H_
