// ExtentAllocator: hands out ranges of an address space that it never touches.
#ifndef KVCACHE_CORE_STORAGE_EXTENT_ALLOCATOR_H_
#define KVCACHE_CORE_STORAGE_EXTENT_ALLOCATOR_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/core/storage/extent.h"

namespace kvcache {

struct ExtentAllocatorOptions {
  // The range to hand out is [0, capacity_bytes), less what does not fill a last unit of
  // `alignment`.
  size_t capacity_bytes = 0;
  // A power of two. Offsets and sizes of all extents are multiples of it. Default: a cache line.
  size_t alignment = 64;
  // What of the range can be handed out from the start, [0, initial_bytes); GrowTo() adds the rest
  // as it becomes ready. Default: all of it.
  size_t initial_bytes = std::numeric_limits<size_t>::max();
};

// Divides [0, capacity) into extents. It works on offsets alone, so host memory, device memory and
// files are all the same to it; its bookkeeping is elsewhere, 24 bytes for each extent, used or
// free.
//
// Two-level segregated fit: free extents are listed by size class, 64 classes for each power of
// two. Allocate takes the smallest of the first kSearchSteps that fit in the request's own class or
// else in the next one that has any, so it nearly always does what an exact best fit would do; Free
// merges with both neighbours at once. Every call is O(1) except List() and CheckConsistency().
//
// Create(), Allocate() and GrowTo() throw std::bad_alloc, with nothing changed.
//
// Not thread-safe: its owner guards it with a lock. Movable; a moved-from allocator can only be
// destroyed or assigned to.
class ExtentAllocator {
 public:
  // Errors: kInvalidArgument when the alignment is not a power of two or the capacity is smaller.
  static absl::StatusOr<ExtentAllocator> Create(const ExtentAllocatorOptions& options);

  ExtentAllocator(ExtentAllocator&&) = default;
  ExtentAllocator& operator=(ExtentAllocator&&) = default;

  // An extent of `bytes` rounded up to the alignment; its size is the rounded one. Errors:
  // kInvalidArgument when `bytes` is 0 or more than the capacity; kResourceExhausted when no free
  // extent is large enough. One that is large enough is overlooked only behind kSearchSteps smaller
  // ones of its own size class, whose sizes differ by less than 1/64. `owner` is the caller's, for
  // List().
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner = 0);

  // REQUIRES: `extent` is what Allocate() returned and was not freed since; aborts otherwise.
  void Free(const Extent& extent);

  // REQUIRES: as for Free().
  void SetOwner(const Extent& extent, uint32_t owner);

  // Lists extents, used and free, in the order of their offsets: `from` and those behind it; with
  // `around`, only what is less than `bytes` away from it, and up to half of `out` before it. Lists
  // all from the first on if `from` has no size, and nothing if it is not an extent any more. Of
  // the free ones that it lists, Allocate() does not overlook those of `bytes` and more. Returns
  // how many there are; O(out.size()).
  size_t List(const Extent& from, bool around, size_t bytes, absl::Span<Neighbour> out);

  // From now on [0, bytes) can be handed out: rounded down to the alignment, at most the capacity;
  // does nothing when that is no more than before.
  void GrowTo(size_t bytes);

  size_t capacity() const { return capacity_; }
  size_t alignment() const { return size_t{1} << alignment_shift_; }

  // Extents are handed out of [0, grown_bytes()). Free bytes at its end, which GrowTo() makes
  // longer.
  size_t grown_bytes() const { return node(kEnd).offset; }
  size_t free_tail_bytes() const;

  // The sum of the sizes of all extents handed out, and what remains of grown_bytes().
  size_t used_bytes() const { return used_; }
  size_t free_bytes() const { return grown_bytes() - used_; }

  // The most that Allocate() can give now. Exact unless more than kSearchSteps free extents share
  // the highest size class; then less than 1/64 below the size of the largest.
  size_t largest_free_bytes() const;

  // For tests: kInternal with what is wrong when the bookkeeping contradicts itself. O(extents).
  absl::Status CheckConsistency() const;

  static constexpr int kSearchSteps = 16;

 private:
  // An extent, used or free, or a spare node. All extents form a ring in the order of their
  // offsets, closed by kEnd, which begins at grown_bytes() and has no size: so an extent ends where
  // the next begins.
  struct Node {
    size_t offset;
    uint32_t before;  // in the ring
    uint32_t after;
    uint32_t previous;  // in the list of the size class, kEnd at its ends; or kUsed, or kSpare
    uint32_t next;  // in the list of the size class, or of spare nodes; or the owner of a used one
  };

  static constexpr uint32_t kEnd = 0;
  static constexpr uint32_t kUsed = 0xffffffff;
  static constexpr uint32_t kSpare = 0xfffffffe;
  static constexpr uint32_t kNodesPerChunk = 1024;
  static constexpr uint32_t kNoClass = 0xffffffff;

  ExtentAllocator(size_t capacity, int alignment_shift);

  Node& node(uint32_t i) { return chunks_[i / kNodesPerChunk][i % kNodesPerChunk]; }
  const Node& node(uint32_t i) const { return chunks_[i / kNodesPerChunk][i % kNodesPerChunk]; }
  bool IsExtent(const Extent& extent) const {
    const uint32_t i = extent.node;
    return i != kEnd && i / kNodesPerChunk < chunks_.size() && node(i).previous != kSpare &&
           node(i).offset == extent.offset;
  }
  bool IsUsed(const Extent& extent) const {
    return IsExtent(extent) && node(extent.node).previous == kUsed &&
           SizeOf(node(extent.node)) == extent.size;
  }
  bool IsFree(const Node& n) const { return n.previous < kSpare; }
  size_t SizeOf(const Node& n) const { return node(n.after).offset - n.offset; }

  uint32_t ClassOf(size_t size) const;
  // The lowest class from `first` on that has a free extent, or kNoClass.
  uint32_t ClassWithExtents(uint32_t first) const;
  // Among the first kSearchSteps of a class, the smallest of at least `size`, or kEnd.
  uint32_t SmallestFit(uint32_t size_class, size_t size) const;

  void Link(uint32_t i);    // into the list of its class
  void Unlink(uint32_t i);  // out of it
  uint32_t InsertAfter(uint32_t i, size_t offset);
  void Absorb(uint32_t i);  // the extent after it
  void AddChunk();

  size_t capacity_;
  int alignment_shift_;
  size_t used_ = 0;

  // Chunks never move: growing costs no copy.
  std::vector<std::unique_ptr<Node[]>> chunks_;
  uint32_t spare_ = kEnd;

  // Size class c is row c / 64, column c % 64.
  std::vector<uint32_t> heads_;     // [rows * 64], kEnd: no extents
  std::vector<uint64_t> row_bits_;  // [rows], a bit for each class with extents
  uint64_t bits_ = 0;               // a bit for each row with extents
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_EXTENT_ALLOCATOR_H_
