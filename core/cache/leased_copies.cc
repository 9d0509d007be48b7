#include "kvcache/core/cache/leased_copies.h"

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache::internal {

class LeasedCopies::Pins {
 public:
  Pins(Cache& cache, absl::Span<const Slot> slots, Use use)
      : cache_(cache), slots_(slots.begin(), slots.end()), use_(use) {
    size_t i = 0;
    do {
      const size_t end = std::min(i + kBlocksPerLock, slots_.size());
      MutexLock lock(cache_.mu_);
      if (i == 0) ++cache_.in_flight_;
      const Nanos now = cache_.Now();
      for (; i < end; ++i) {
        cache_.table_->Pin(slots_[i], now);
        if (use_ == Use::kWrite) cache_.table_->AwaitCopy(slots_[i]);
      }
    } while (i < slots_.size());
  }

  // The copies are over when nothing of what their end has removed is left to be freed.
  ~Pins() {
    if (cache_.InForkedChild()) return;
    size_t i = 0;
    bool last = false;
    for (bool over = false; !over;) {
      const size_t end = std::min(i + kBlocksPerLock, slots_.size());
      Removed removed;
      {
        MutexLock lock(cache_.mu_);
        const Nanos now = cache_.Now();
        for (; i < end; ++i) {
          if (use_ == Use::kWrite) cache_.table_->EndCopy(slots_[i], now, &removed);
          cache_.table_->Unpin(slots_[i], &removed);
        }
        over = i == slots_.size() && removed.empty();
        if (over) {
          --cache_.in_flight_;
          cache_.changed_.NotifyAll();
          last = cache_.Abandoned();
        }
      }
      if (!over) cache_.Free(removed);
    }
    if (last) Cache::Destroy(&cache_);
  }

  Pins(const Pins&) = delete;
  Pins& operator=(const Pins&) = delete;

 private:
  Cache& cache_;
  const absl::InlinedVector<Slot, 1> slots_;
  const Use use_;
};

class LeasedCopies::Holder {
 public:
  Holder(Cache& cache, NamespaceId ns) : cache_(cache), ns_(ns) {
    MutexLock lock(cache_.mu_);
    ++cache_.users_;
  }
  ~Holder() {
    if (cache_.InForkedChild()) return;
    cache_.Unregister(ns_);
    bool last;
    {
      MutexLock lock(cache_.mu_);
      --cache_.users_;
      last = cache_.Abandoned();
    }
    if (last) Cache::Destroy(&cache_);
  }

  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

 private:
  Cache& cache_;
  const NamespaceId ns_;
};

StorageBackend& LeasedCopies::backend() const { return *cache_.backend_; }

std::shared_ptr<void> LeasedCopies::Pin(absl::Span<const Slot> slots, Use use) const {
  return std::make_shared<Pins>(cache_, slots, use);
}

std::shared_ptr<void> LeasedCopies::Hold(NamespaceId ns) const {
  return std::make_shared<Holder>(cache_, ns);
}

void LeasedCopies::DropIfUnreadable(Slot slot, const absl::Status& copied) const {
  if (!IsMediumFault(copied)) return;
  cache_
      .Change([slot](BlockTable& table, Nanos, Removed* removed) {
        if (table.block(slot).state != Block::State::kRemoved) {
          table.Unlink(slot, RemoveReason::kCorrupted, removed);
        }
        return absl::OkStatus();
      })
      .IgnoreError();
}

void LeasedCopies::CountRead(Slot slot, size_t bytes) const {
  MutexLock lock(cache_.mu_);
  cache_.table_->CountersOf(cache_.table_->block(slot)).bytes_read += bytes;
}

void LeasedCopies::Wait() const {
  MutexLock lock(cache_.mu_);
  while (cache_.in_flight_ > 0) cache_.changed_.Wait(cache_.mu_);
}

}  // namespace kvcache::internal
