#include "kvcache/backends/cpu_ram/region_allocator.h"

#include <algorithm>
#include <new>

#include "kvcache/core/base/no_memory.h"

namespace kvcache {

absl::StatusOr<Extent> RegionAllocator::Allocate(size_t bytes, uint32_t owner) {
  return internal::WithoutThrowing([&] { return AllocateOrThrow(bytes, owner); });
}

absl::StatusOr<Extent> RegionAllocator::AllocateOrThrow(size_t bytes, uint32_t owner) {
  MutexLock lock(mu_);
  absl::StatusOr<Extent> extent = allocator_.Allocate(bytes, owner);
  if (extent.ok() || bytes == 0 || bytes > capacity_) return extent;
  const size_t size = (bytes + alignment_ - 1) & ~(alignment_ - 1);
  const size_t faulted = allocator_.grown_bytes();
  // What is free at the end may be large enough and yet have been overlooked behind smaller extents
  // of its size class: grown, it is in a higher one.
  const size_t tail = allocator_.free_tail_bytes();
  const size_t missing = std::min(tail < size ? size - tail : size, capacity_ - faulted);
  if (missing == 0 || tail + missing < size) return extent;
  allocator_.GrowTo(faulted + missing);
  page_fault_bytes_ += missing;
  return allocator_.Allocate(bytes, owner);
}

void RegionAllocator::Free(const Extent& extent) {
  MutexLock lock(mu_);
  allocator_.Free(extent);
}

void RegionAllocator::SetOwner(const Extent& extent, uint32_t owner) {
  MutexLock lock(mu_);
  allocator_.SetOwner(extent, owner);
}

size_t RegionAllocator::List(const Extent& from, bool around, size_t bytes,
                             absl::Span<Neighbour> out) {
  MutexLock lock(mu_);
  const size_t missing = capacity_ - allocator_.grown_bytes();
  try {
    allocator_.GrowTo(capacity_);
    page_fault_bytes_ += missing;
  } catch (const std::bad_alloc&) {  // lists what there is
  }
  return allocator_.List(from, around, bytes, out);
}

std::optional<RegionAllocator::Range> RegionAllocator::ClaimUnfaulted(size_t step) {
  MutexLock lock(mu_);
  const size_t begin = std::max(claimed_end_, allocator_.grown_bytes());
  if (begin == capacity_) return std::nullopt;
  const size_t size = std::min(step - begin % step, capacity_ - begin);
  claimed_.push_back({begin, size});
  claimed_end_ = begin + size;
  return claimed_.back();
}

void RegionAllocator::MarkFaulted(const Range& range) {
  MutexLock lock(mu_);
  std::erase_if(claimed_, [&](const Range& r) { return r.offset == range.offset; });
  size_t end = claimed_end_;
  for (const Range& r : claimed_) end = std::min(end, r.offset);
  allocator_.GrowTo(end);
}

size_t RegionAllocator::faulted_bytes() const {
  MutexLock lock(mu_);
  return allocator_.grown_bytes();
}

uint64_t RegionAllocator::page_fault_bytes() const {
  MutexLock lock(mu_);
  return page_fault_bytes_;
}

}  // namespace kvcache
