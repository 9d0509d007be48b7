#include "kvcache/core/cache/scrubber.h"

#include <algorithm>
#include <chrono>

#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/leased_copies.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache::internal {

void Scrubber::Start(size_t bytes_per_second) {
  if (bytes_per_second == 0) return;
  thread_ = std::thread([this, bytes_per_second] { ScrubInBackground(bytes_per_second); });
}

void Scrubber::Stop() {
  {
    MutexLock lock(stop_mu_);
    stopping_ = true;
    stop_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

ReadLease Scrubber::PinNext() {
  ReadLease lease;
  bool more = true;
  while (more && !lease.holds()) {
    {
      MutexLock lock(stop_mu_);
      if (stopping_) return lease;
    }
    if (!cache_.LockSupplied(0, 1, 0)) return lease;
    MutexLock lock(cache_.mu_, AdoptLock());
    const Nanos now = cache_.Now();
    const Slot slot = cache_.table_->NextVisible(next_, kBlocksPerLock, now, &next_);
    more = next_ != kNoSlot;
    if (slot == kNoSlot) continue;
    cache_.Pin(slot, cache_.table_->block(slot), std::nullopt, now, &lease);
    cache_.scrubbed_ = slot;
  }
  return lease;
}

size_t Scrubber::ScrubOne(bool* wrapped) {
  ReadLease lease = PinNext();
  if (!lease.holds()) {
    *wrapped = true;
    next_ = 0;
    return 0;
  }
  size_t read = 0;
  for (uint32_t part = 0; part < lease.parts(); ++part) {
    {
      MutexLock lock(cache_.mu_);
      if (!cache_.table_->Committed(LeasedCopies::SlotOf(lease), part)) continue;
    }
    if (LeasedCopies::ChecksumOf(lease, part) == 0) continue;
    lease.VerifyPart(part).IgnoreError();  // drops the block by itself
    read += lease.size() / lease.parts();
  }
  lease.Release();
  MutexLock lock(cache_.mu_);
  cache_.scrubbed_ = kNoSlot;
  cache_.changed_.NotifyAll();
  return read;
}

size_t Scrubber::Scrub(size_t bytes) {
  MutexLock lock(mu_);
  const Slot start = next_;
  size_t read = 0;
  for (bool wrapped = false; read < bytes && !(wrapped && next_ >= start);) {
    const bool wrapped_before = wrapped;
    read += ScrubOne(&wrapped);
    if (wrapped_before && next_ == 0) break;
  }
  scrubbed_bytes_ += read;
  return read;
}

// In steps of a tenth of a second: short beside the time that a fault has to be found in, long
// beside what a step costs.
void Scrubber::ScrubInBackground(size_t bytes_per_second) {
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
    MutexLock lock(stop_mu_);
    while (!stopping_ && std::chrono::steady_clock::now() < next) stop_.WaitUntil(stop_mu_, next);
    if (stopping_) return;
  }
}

}  // namespace kvcache::internal
