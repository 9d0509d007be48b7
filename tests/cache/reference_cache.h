// For tests: what Cache promises, in the most obvious code.
#ifndef KVCACHE_TESTS_CACHE_REFERENCE_CACHE_H_
#define KVCACHE_TESTS_CACHE_REFERENCE_CACHE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/base/clock.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/stats/stats.h"

namespace kvcache {

struct ReferenceBlock {
  enum class State { kWriting, kPartial, kComplete, kGone };

  bool visible() const { return state == State::kPartial || state == State::kComplete; }

  BlockKey key;
  NamespaceId ns = NamespaceId::kDefault;
  BlockSize size;
  std::shared_ptr<ReferenceBlock> parent;
  absl::Duration ttl;
  absl::Duration recompute_cost;
  uint16_t priority = 0;  // 0 once it has ended
  absl::Duration keep_priority_for;
  Nanos priority_end = 0;  // once visible
  State state = State::kWriting;
  std::vector<bool> committed;
  std::vector<bool> failed;  // by the last commit of the part
  bool progress = false;     // something was committed since the block was last partial
  bool suspended = false;    // was partial: a failure leaves it so
  bool was_visible = false;  // once
  bool hit = false;
  Nanos deadline = kNever;  // once visible
  uint64_t last_use = 0;
  uint64_t uses = 0;
  uint64_t admitted = 0;  // last_use when it became visible
  size_t pins = 0;
  Nanos pinned_since = 0;
};

// The semantics of a Cache over a backend that is never fragmented and copies at once, with exact
// LRU, LFU or TTL order, written from the contract alone: every question is answered by a scan over
// all blocks. What has expired is removed, and priorities end, at the start of every call, where
// Cache may do so later.
//
// A block that is handed out is pinned, as by a lease; Release(), Commit(), Suspend() and Abort()
// unpin it. Failures are status codes without messages. Not thread-safe.
class ReferenceCache {
 public:
  enum class Order { kLru, kLfu, kTtl };
  using Handle = std::shared_ptr<ReferenceBlock>;

  struct Options {
    Order order = Order::kLru;
    size_t capacity_bytes = 0;
    size_t backend_capacity_bytes = 0;
    size_t alignment = 0;
    size_t max_blocks = 0;
    absl::Duration default_ttl = absl::InfiniteDuration();
    size_t namespaces = 1;
    const Clock* clock = nullptr;
  };
  explicit ReferenceCache(const Options& options);

  struct PrefixHit {
    std::vector<Handle> blocks;
    uint32_t tokens = 0;
    LookupResult end = LookupResult::kMiss;
  };
  struct Wanted {
    BlockKey key;
    std::optional<uint32_t> part;
    std::optional<size_t> bytes = std::nullopt;  // refused when it has another size
  };

  LookupResult Lookup(const BlockKey& key) const;
  size_t LookupPrefix(const Chain& chain);
  PrefixHit Match(const Chain& chain);
  // Get and GetPart are batches of one.
  std::vector<absl::StatusOr<Handle>> GetMany(NamespaceId ns, absl::Span<const Wanted> wanted);
  void CountRead(NamespaceId ns, size_t bytes) { counters(ns).bytes_read += bytes; }
  void Release(const Handle& block);

  // Without `resume` a partial block is refused, as by Put.
  absl::StatusOr<Handle> Reserve(const BlockKey& key, BlockSize size, const PutOptions& options,
                                 bool resume = true);
  absl::Status CommitPart(const Handle& block, uint32_t part, bool succeeds = true);
  absl::Status Commit(const Handle& block);
  absl::Status Suspend(const Handle& block);
  void Abort(const Handle& block);

  bool Erase(const BlockKey& key);
  size_t EraseNamespace(NamespaceId ns);
  absl::StatusOr<size_t> Extend(const Chain& chain, absl::Duration ttl);
  absl::Status Resize(size_t capacity_bytes);

  // Without peak_bytes and names.
  CacheStats stats();

 private:
  enum class Why { kEvicted, kErased, kExpired, kAborted };

  CacheCounters& counters(NamespaceId ns) { return counters_[static_cast<size_t>(ns)]; }
  size_t Charge(const ReferenceBlock& block) const;
  size_t BytesInUse() const;
  std::vector<Handle> ChildrenOf(const Handle& block) const;
  Nanos DeadlineOf(const Handle& block) const;
  Handle Find(const BlockKey& key) const;
  // With what has happened since the last call.
  void CatchUp();
  void Remove(const Handle& block, Why why);
  void Pin(const Handle& block);
  void Touch(const Handle& block);
  bool GoesBefore(const ReferenceBlock& a, const ReferenceBlock& b) const;
  Handle FirstVictim(const Handle& spared, absl::Span<const Handle> chosen) const;
  // Evicts until `bytes` more and `blocks` more fit into `capacity`, or nothing; and nothing of a
  // higher priority.
  enum class Room { kMade, kNone, kRefused };
  Room MakeRoom(size_t bytes, size_t blocks, size_t capacity, const Handle& spared,
                uint16_t priority);
  std::vector<Handle> LeadingBlocks(const Chain& chain) const;
  void MakeVisible(const Handle& block, ReferenceBlock::State state);
  // Takes over from a lease that ended, or from its last commit.
  void EndWrite(const Handle& block);

  Options options_;
  std::map<std::array<uint8_t, 32>, Handle> resident_;
  std::vector<Handle> detached_;  // gone, but pinned
  std::vector<CacheCounters> counters_;
  uint64_t sequence_ = 0;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_CACHE_REFERENCE_CACHE_H_
