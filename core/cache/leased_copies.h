// LeasedCopies: copies of blocks by calls of the backend, while leases hold them. Internal to core.
#ifndef KVCACHE_CORE_CACHE_LEASED_COPIES_H_
#define KVCACHE_CORE_CACHE_LEASED_COPIES_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/cache/lease.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/core/table/block_options.h"

namespace kvcache {

class Cache;

namespace internal {

// For code that copies many blocks of a cache in one call of the backend: where the bytes of leased
// blocks are, what keeps them there until the copies have ended, and what their end means. A view
// of the cache, which must be alive; thread-safe.
class LeasedCopies {
 public:
  explicit LeasedCopies(Cache& cache) : cache_(cache) {}

  StorageBackend& backend() const;

  static Slot SlotOf(const ReadLease& lease) { return lease.slot_; }
  static Slot SlotOf(const WriteLease& lease) { return lease.slot_; }
  static const Extent& ExtentOf(const ReadLease& lease) { return lease.extent_; }
  static const Extent& ExtentOf(const WriteLease& lease) { return lease.extent_; }
  // Of one part; 0: not known.
  static uint64_t ChecksumOf(const ReadLease& lease, uint32_t part) {
    return lease.checksums_ == nullptr ? 0 : lease.checksums_[part];
  }
  // Where a copy into a part has to put the checksum, which is unknown from now on; nullptr: none
  // is kept.
  static uint64_t* NewChecksumOf(const WriteLease& lease, uint32_t part) {
    if (lease.checksums_ == nullptr) return nullptr;
    lease.checksums_[part] = 0;
    return &lease.checksums_[part];
  }

  // What the copies do with the blocks; kHold: nothing, they only have to stay. While somebody
  // writes into a block, its write does not end: if it is suspended, it becomes partial only then.
  enum class Use { kHold, kRead, kWrite };

  class PinHook;

  // More pins on blocks that are pinned, from Begin() to End(): one hold of the lock for each 256
  // blocks. Made before the copies start, since only that allocates: then nothing can fail once
  // they are under way. The cache's end and Cache::Drain() wait for it; without any slots that is
  // all it does, for copies whose leases live until they have ended. A kNoSlot among them counts
  // for nothing.
  class Pins {
   public:
    // Throws std::bad_alloc.
    explicit Pins(const LeasedCopies& leased, absl::Span<const Slot> slots = {},
                  Use use = Use::kRead);
    ~Pins() { End(); }
    Pins(const Pins&) = delete;
    Pins& operator=(const Pins&) = delete;

    void Begin();
    void End();

   private:
    friend class LeasedCopies::PinHook;
    Cache& cache_;
    const absl::InlinedVector<Slot, 1> slots_;
    const Use use_;
    bool begun_ = false;
  };

  // What copies of pinned blocks need, before they are started: op i is of slots[i % slots.size()].
  // nullptr for copies of a backend where they end in the call. Throws std::bad_alloc.
  std::unique_ptr<TransferHook> Prepare(absl::Span<const Slot> slots, Use use) const;
  // They were started: pins the blocks until they have ended, and drops those whose medium was
  // found to be at fault by a read. `slots` and `use` as before.
  void Follow(const Transfer& copies, absl::Span<const Slot> slots, Use use,
              std::unique_ptr<TransferHook> prepared) const;

  // Holds a registered namespace for as long as the result lives, which calls Cache::Unregister().
  // Throws std::bad_alloc, after that call.
  // The cache may end before; then it is empty, and what is left of it lives as long.
  std::shared_ptr<void> Hold(NamespaceId ns) const;

  // Drops a pinned block when a copy out of it has found that its bytes have changed.
  void DropIfUnreadable(Slot slot, const absl::Status& copied) const;

  // Counts bytes that are copied out of a pinned block, or of others of its namespace.
  void CountRead(Slot slot, size_t bytes) const;

  // Until all Pins have ended.
  void Wait() const;

 private:
  class Holder;

  Cache& cache_;
};

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_LEASED_COPIES_H_
