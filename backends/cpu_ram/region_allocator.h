#ifndef KVCACHE_BACKENDS_CPU_RAM_REGION_ALLOCATOR_H_
#define KVCACHE_BACKENDS_CPU_RAM_REGION_ALLOCATOR_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/extent_allocator.h"

namespace kvcache {

// Hands out extents of a region, memory that is faulted in before memory that is not, while other
// threads fault it in from its beginning to its end. It touches nothing itself.
//
// What is faulted in is one number, faulted_bytes(), the end of what the extent allocator has grown
// to: below it every byte was faulted in or was handed out before, so that its first user faulted
// it in (unless that one gave up before it wrote). Threads claim the ranges behind it and it grows
// as they complete them. When an extent does not fit below it, it grows at once by what is missing;
// those bytes are page_fault_bytes().
//
// Thread-safe. Every call is O(1) but for the number of threads that fault in.
class RegionAllocator {
 public:
  struct Range {
    size_t offset = 0;
    size_t size = 0;
  };

  // What `allocator` has grown to is faulted in.
  explicit RegionAllocator(ExtentAllocator allocator) : allocator_(std::move(allocator)) {}

  // Like those of ExtentAllocator. Waits for nothing: an extent may lie in a range that another
  // thread is faulting in.
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner = 0);
  void Free(const Extent& extent);
  void SetOwner(const Extent& extent, uint32_t owner);
  // Hands out all of the region from now on: it is for those whom nothing that is free suffices.
  size_t List(const Extent& from, bool around, size_t bytes, absl::Span<Neighbour> out);

  // The next range that nobody has used or claimed, up to a multiple of `step`; nullopt at the end
  // of the region. The caller faults it in and then says so, or never does when that failed. Both
  // throw std::bad_alloc.
  std::optional<Range> ClaimUnfaulted(size_t step);
  void MarkFaulted(const Range& range);

  size_t capacity() const { return capacity_; }
  size_t alignment() const { return alignment_; }

  size_t faulted_bytes() const;
  // Bytes of extents that were handed out before they were faulted in, each byte once. Where pages
  // are larger than extents, the neighbour may have faulted in some of them.
  uint64_t page_fault_bytes() const;

 private:
  absl::StatusOr<Extent> AllocateOrThrow(size_t bytes, uint32_t owner);

  mutable Mutex mu_;
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mu_);
  // Everything before it is faulted in, handed out or claimed.
  size_t claimed_end_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Range> claimed_ ABSL_GUARDED_BY(mu_);  // and not marked yet
  uint64_t page_fault_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  const size_t capacity_ = allocator_.capacity();
  const size_t alignment_ = allocator_.alignment();
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CPU_RAM_REGION_ALLOCATOR_H_
