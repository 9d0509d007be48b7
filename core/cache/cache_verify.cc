// Cache: finding blocks whose bytes have changed.
#include <algorithm>
#include <chrono>
#include <vector>

#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::kBlocksPerLock;
using internal::Nanos;
using internal::Removed;

void Cache::DropIfCorrupt(Slot slot, const absl::Status& copied) {
  if (!absl::IsDataLoss(copied)) return;
  Change([slot](BlockTable& table, Nanos, Removed* removed) {
    if (table.block(slot).state != Block::State::kRemoved) {
      table.Unlink(slot, RemoveReason::kCorrupted, removed);
    }
    return absl::OkStatus();
  }).IgnoreError();
}

ReadLease Cache::PinNext(std::vector<bool>* committed) {
  ReadLease lease;
  bool more = true;
  while (more && !lease.holds()) {
    if (!LockSupplied(0, 1, 0)) return lease;
    MutexLock lock(mu_, AdoptLock());
    if (stopping_) return lease;
    const Nanos now = Now();
    const Slot slot = table_->NextVisible(next_scrubbed_, kBlocksPerLock, now, &next_scrubbed_);
    more = next_scrubbed_ != kNoSlot;
    if (slot == kNoSlot) continue;
    Pin(slot, std::nullopt, now, &lease);
    for (uint32_t part = 0; part < lease.parts_; ++part) {
      committed->push_back(table_->Committed(slot, part));
    }
    scrubbed_ = slot;
  }
  return lease;
}

size_t Cache::ScrubOne(bool* wrapped) {
  std::vector<bool> committed;
  ReadLease lease = PinNext(&committed);
  if (!lease.holds()) {
    *wrapped = true;
    next_scrubbed_ = 0;
    return 0;
  }
  size_t read = 0;
  for (uint32_t part = 0; part < lease.parts_ && lease.checksums_ != nullptr; ++part) {
    if (!committed[part] || lease.checksums_[part] == 0) continue;
    lease.VerifyPart(part).IgnoreError();  // drops the block by itself
    read += lease.bytes_ / lease.parts_;
  }
  lease.Release();
  MutexLock lock(mu_);
  scrubbed_ = kNoSlot;
  changed_.NotifyAll();
  return read;
}

size_t Cache::Scrub(size_t bytes) {
  MutexLock lock(scrub_mu_);
  const Slot start = next_scrubbed_;
  size_t read = 0;
  for (bool wrapped = false; read < bytes && !(wrapped && next_scrubbed_ >= start);) {
    const bool wrapped_before = wrapped;
    read += ScrubOne(&wrapped);
    if (wrapped_before && next_scrubbed_ == 0) break;
  }
  scrubbed_bytes_ += read;
  return read;
}

void Cache::StartScrubber(size_t bytes_per_second) {
  if (bytes_per_second == 0) return;
  scrubber_ = std::thread([this, bytes_per_second] { ScrubInBackground(bytes_per_second); });
}

// In steps of a tenth of a second: short beside the time that a fault has to be found in, long
// beside what a step costs.
void Cache::ScrubInBackground(size_t bytes_per_second) {
  constexpr auto kStep = std::chrono::milliseconds(100);
  auto next = std::chrono::steady_clock::now();
  for (;;) {
    const size_t read = Scrub(std::max<size_t>(bytes_per_second / 10, 1));
    // Blocks are read whole: a large one pays for itself by a longer pause.
    next =
        std::max(next, std::chrono::steady_clock::now() - kStep) +
        std::max<std::chrono::nanoseconds>(
            kStep, std::chrono::nanoseconds(static_cast<int64_t>(
                       1e9 * static_cast<double>(read) / static_cast<double>(bytes_per_second))));
    MutexLock lock(mu_);
    while (!stopping_ && std::chrono::steady_clock::now() < next) stop_.WaitUntil(mu_, next);
    if (stopping_) return;
  }
}

}  // namespace kvcache
