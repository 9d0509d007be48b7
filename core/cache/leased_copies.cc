#include "kvcache/core/cache/leased_copies.h"

#include <algorithm>
#include <new>
#include <utility>

#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache::internal {

LeasedCopies::Pins::Pins(const LeasedCopies& leased, absl::Span<const Slot> slots, Use use)
    : cache_(leased.cache_), slots_(slots.begin(), slots.end()), use_(use) {}

void LeasedCopies::Pins::Begin() {
  size_t i = 0;
  do {
    if (i > 0) cache_.mu_.GiveWay();
    const size_t end = std::min(i + kBlocksPerLock, slots_.size());
    MutexLock lock(cache_.mu_);
    if (i == 0) ++cache_.in_flight_;
    const Nanos now = cache_.Now();
    for (; i < end; ++i) {
      if (slots_[i] == kNoSlot) continue;
      cache_.table_->Pin(slots_[i], now);
      if (use_ == Use::kWrite) cache_.table_->AwaitCopy(slots_[i]);
    }
  } while (i < slots_.size());
  begun_ = true;
}

// The copies are over when nothing of what their end has removed is left to be freed.
void LeasedCopies::Pins::End() {
  if (!std::exchange(begun_, false) || cache_.InForkedChild()) return;
  size_t i = 0;
  bool last = false;
  for (bool over = false; !over;) {
    if (i > 0) cache_.mu_.GiveWay();
    const size_t end = std::min(i + kBlocksPerLock, slots_.size());
    Removed removed;
    {
      MutexLock lock(cache_.mu_);
      const Nanos now = cache_.Now();
      for (; i < end; ++i) {
        if (slots_[i] == kNoSlot) continue;
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

class LeasedCopies::PinHook final : public TransferHook {
 public:
  PinHook(const LeasedCopies& leased, absl::Span<const Slot> slots, Use use)
      : pins_(leased, slots, use) {}
  Pins& pins() { return pins_; }

  void OpEnded(size_t op, const absl::Status& status) override {
    if (pins_.use_ != Use::kRead) return;
    LeasedCopies(pins_.cache_).DropIfUnreadable(pins_.slots_[op % pins_.slots_.size()], status);
  }
  void AllEnded() override { pins_.End(); }

 private:
  Pins pins_;
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

std::unique_ptr<TransferHook> LeasedCopies::Prepare(absl::Span<const Slot> slots, Use use) const {
  if (use != Use::kHold && backend().traits().copies_in_call) return nullptr;
  return std::make_unique<PinHook>(*this, slots, use);
}

void LeasedCopies::Follow(const Transfer& copies, absl::Span<const Slot> slots, Use use,
                          std::unique_ptr<TransferHook> prepared) const {
  if (!copies.Done()) {
    KVCACHE_CHECK(prepared != nullptr, backend().traits().name,
                  " copies in the call, but a copy is under way");
    static_cast<PinHook&>(*prepared).pins().Begin();
    Attach(copies, std::move(prepared));
    return;
  }
  for (size_t op = 0; op < copies.size() && use == Use::kRead; ++op) {
    DropIfUnreadable(slots[op % slots.size()], copies.result(op));
  }
}

std::shared_ptr<void> LeasedCopies::Hold(NamespaceId ns) const {
  try {
    return std::make_shared<Holder>(cache_, ns);
  } catch (const std::bad_alloc&) {
    cache_.Unregister(ns);
    throw;
  }
}

void LeasedCopies::DropIfUnreadable(Slot slot, const absl::Status& copied) const {
  if (slot == kNoSlot || !IsMediumFault(copied)) return;
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
