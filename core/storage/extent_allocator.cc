#include "kvcache/core/storage/extent_allocator.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"

namespace kvcache {

absl::StatusOr<ExtentAllocator> ExtentAllocator::Create(const ExtentAllocatorOptions& options) {
  if (!std::has_single_bit(options.alignment) || options.capacity_bytes < options.alignment) {
    return internal::Error(
        absl::StatusCode::kInvalidArgument,
        "an extent allocator needs an alignment that is a power of two and a capacity of at least "
        "that; alignment = ",
        options.alignment, ", capacity_bytes = ", options.capacity_bytes);
  }
  ExtentAllocator allocator(options.capacity_bytes & ~(options.alignment - 1),
                            std::countr_zero(options.alignment));
  allocator.GrowTo(options.initial_bytes);
  return allocator;
}

ExtentAllocator::ExtentAllocator(size_t capacity, int alignment_shift)
    : capacity_(capacity), alignment_shift_(alignment_shift) {
  const uint32_t rows = ClassOf(capacity) / 64 + 1;
  heads_.assign(rows * 64, kEnd);
  row_bits_.assign(rows, 0);
  AddChunk();
  node(kEnd) = {0, kEnd, kEnd, kUsed, kEnd};
}

absl::StatusOr<Extent> ExtentAllocator::Allocate(size_t bytes, uint32_t owner) {
  if (bytes == 0 || bytes > capacity_) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "cannot allocate bytes = ", bytes,
                           " of capacity = ", capacity_);
  }
  const size_t size = (bytes + alignment() - 1) & ~(alignment() - 1);
  const uint32_t own_class = ClassOf(size);
  uint32_t i = SmallestFit(own_class, size);
  if (i == kEnd) {
    const uint32_t larger = ClassWithExtents(own_class + 1);
    if (larger == kNoClass) {
      return internal::Error(absl::StatusCode::kResourceExhausted, "no free extent of ", size,
                             " bytes; free in total ", free_bytes(), ", largest ",
                             largest_free_bytes(), ", capacity ", capacity_);
    }
    i = SmallestFit(larger, size);
  }
  if (spare_ == kEnd && SizeOf(node(i)) > size) AddChunk();  // before anything is changed
  Unlink(i);
  Node& taken = node(i);
  taken.previous = kUsed;
  taken.next = owner;
  if (SizeOf(taken) > size) Link(InsertAfter(i, taken.offset + size));
  used_ += size;
  return Extent{taken.offset, size, i};
}

void ExtentAllocator::Free(const Extent& extent) {
  uint32_t i = extent.node;
  KVCACHE_CHECK(IsUsed(extent), "extent freed twice or not of this allocator: offset ",
                extent.offset, ", size ", extent.size, ", node ", extent.node);
  used_ -= extent.size;
  const uint32_t before = node(i).before;
  const uint32_t after = node(i).after;
  if (IsFree(node(after))) {
    Unlink(after);
    Absorb(i);
  }
  if (IsFree(node(before))) {
    Unlink(before);
    Absorb(before);
    i = before;
  }
  Link(i);
}

void ExtentAllocator::SetOwner(const Extent& extent, uint32_t owner) {
  KVCACHE_CHECK(IsUsed(extent), "not an extent of this allocator: offset ", extent.offset,
                ", size ", extent.size, ", node ", extent.node);
  node(extent.node).next = owner;
}

size_t ExtentAllocator::List(const Extent& from, bool around, size_t bytes,
                             absl::Span<Neighbour> out) {
  if (from.size > 0 && !IsExtent(from)) return 0;
  uint32_t i = from.size > 0 ? from.node : node(kEnd).after;
  size_t end = capacity_;
  if (around) {
    for (size_t steps = out.size() / 2; steps > 0; --steps) {
      if (node(i).before == kEnd || node(i).offset + bytes <= from.offset) break;
      i = node(i).before;
    }
    end = from.offset + from.size + bytes;
  }
  size_t listed = 0;
  for (; listed < out.size() && i != kEnd && node(i).offset < end; i = node(i).after) {
    const Node& n = node(i);
    const size_t size = SizeOf(n);
    out[listed++] = {{n.offset, size, i}, !IsFree(n), IsFree(n) ? 0 : n.next};
    if (IsFree(n) && size >= bytes) {  // to the front of its list
      Unlink(i);
      Link(i);
    }
  }
  return listed;
}

void ExtentAllocator::GrowTo(size_t bytes) {
  const size_t end = std::min(bytes, capacity_) & ~(alignment() - 1);
  if (end <= grown_bytes()) return;
  uint32_t last = node(kEnd).before;  // nothing is changed yet where InsertAfter() throws
  if (IsFree(node(last))) {
    Unlink(last);
  } else {
    last = InsertAfter(last, grown_bytes());
  }
  node(kEnd).offset = end;
  Link(last);
}

size_t ExtentAllocator::free_tail_bytes() const {
  const Node& last = node(node(kEnd).before);
  return IsFree(last) ? SizeOf(last) : 0;
}

size_t ExtentAllocator::largest_free_bytes() const {
  if (bits_ == 0) return 0;
  const uint32_t row = std::bit_width(bits_) - 1;
  const uint32_t column = std::bit_width(row_bits_[row]) - 1;
  size_t largest = 0;
  uint32_t i = heads_[row * 64 + column];
  for (int step = 0; i != kEnd && step < kSearchSteps; ++step, i = node(i).next) {
    largest = std::max(largest, SizeOf(node(i)));
  }
  return largest;
}

// Below 128 units of alignment each size is a class; above, the class is the size's leading 7 bits.
uint32_t ExtentAllocator::ClassOf(size_t size) const {
  const size_t units = size >> alignment_shift_;
  const int shift = std::max<int>(std::bit_width(units), 7) - 7;
  return static_cast<uint32_t>((units >> shift) + (size_t{64} * shift));
}

uint32_t ExtentAllocator::ClassWithExtents(uint32_t first) const {
  uint32_t row = first / 64;
  if (row >= row_bits_.size()) return kNoClass;
  uint64_t columns = row_bits_[row] & (~uint64_t{0} << (first % 64));
  if (columns == 0) {
    const uint64_t rows = bits_ & (~uint64_t{1} << row);
    if (rows == 0) return kNoClass;
    row = std::countr_zero(rows);
    columns = row_bits_[row];
  }
  return row * 64 + std::countr_zero(columns);
}

uint32_t ExtentAllocator::SmallestFit(uint32_t size_class, size_t size) const {
  uint32_t best = kEnd;
  size_t best_size = capacity_;
  uint32_t i = heads_[size_class];
  for (int step = 0; i != kEnd && step < kSearchSteps; ++step, i = node(i).next) {
    const size_t candidate = SizeOf(node(i));
    if (candidate < size || candidate > best_size) continue;
    best = i;
    best_size = candidate;
    if (candidate == size) break;
  }
  return best;
}

void ExtentAllocator::Link(uint32_t i) {
  Node& n = node(i);
  const uint32_t size_class = ClassOf(SizeOf(n));
  const uint32_t head = heads_[size_class];
  n.previous = kEnd;
  n.next = head;
  if (head != kEnd) node(head).previous = i;
  heads_[size_class] = i;
  row_bits_[size_class / 64] |= uint64_t{1} << (size_class % 64);
  bits_ |= uint64_t{1} << (size_class / 64);
}

void ExtentAllocator::Unlink(uint32_t i) {
  const Node& n = node(i);
  if (n.next != kEnd) node(n.next).previous = n.previous;
  if (n.previous != kEnd) {
    node(n.previous).next = n.next;
    return;
  }
  const uint32_t size_class = ClassOf(SizeOf(n));
  heads_[size_class] = n.next;
  if (n.next != kEnd) return;
  uint64_t& columns = row_bits_[size_class / 64];
  columns &= ~(uint64_t{1} << (size_class % 64));
  if (columns == 0) bits_ &= ~(uint64_t{1} << (size_class / 64));
}

uint32_t ExtentAllocator::InsertAfter(uint32_t i, size_t offset) {
  if (spare_ == kEnd) AddChunk();
  const uint32_t inserted = spare_;
  Node& n = node(inserted);
  spare_ = n.next;
  n = {offset, i, node(i).after, kUsed, kEnd};
  node(n.after).before = inserted;
  node(i).after = inserted;
  return inserted;
}

void ExtentAllocator::Absorb(uint32_t i) {
  const uint32_t absorbed = node(i).after;
  Node& n = node(absorbed);
  node(i).after = n.after;
  node(n.after).before = i;
  n.previous = kSpare;
  n.next = spare_;
  spare_ = absorbed;
}

void ExtentAllocator::AddChunk() {
  const size_t first = chunks_.size() * kNodesPerChunk;
  KVCACHE_CHECK(first + kNodesPerChunk < kSpare, "more than ", first, " extents");
  chunks_.push_back(std::make_unique<Node[]>(kNodesPerChunk));
  // In ascending order; node 0 is kEnd.
  for (size_t i = first + kNodesPerChunk; i-- > std::max<size_t>(first, 1);) {
    Node& n = node(static_cast<uint32_t>(i));
    n.previous = kSpare;
    n.next = spare_;
    spare_ = static_cast<uint32_t>(i);
  }
}

absl::Status ExtentAllocator::CheckConsistency() const {
  const auto wrong = [](uint32_t i, const char* what) {
    return internal::Error(absl::StatusCode::kInternal, "node ", i, ": ", what);
  };
  const size_t nodes = chunks_.size() * kNodesPerChunk;

  size_t extents = 0;
  size_t free_extents = 0;
  size_t used = 0;
  size_t end = 0;
  uint32_t before = kEnd;
  uint32_t i = node(kEnd).after;
  for (; i != kEnd; before = i, i = node(i).after) {
    const Node& n = node(i);
    if (++extents >= nodes) return wrong(i, "the ring does not close");
    if (n.before != before) return wrong(i, "the ring's links disagree");
    if (n.offset != end) return wrong(i, "does not begin where the one before it ends");
    if (n.previous == kSpare) return wrong(i, "spare, but in the ring");
    end = node(n.after).offset;
    if (end <= n.offset || end % alignment() != 0) return wrong(i, "bad size");
    if (!IsFree(n)) {
      used += end - n.offset;
    } else if (++free_extents; IsFree(node(n.after))) {
      return wrong(i, "free beside a free extent");
    }
  }
  if (end != grown_bytes() || end > capacity_ || node(kEnd).before != before) {
    return wrong(kEnd, "the ring is not closed");
  }
  if (used != used_) return wrong(kEnd, "used bytes are not the sum of the extents");

  size_t listed = 0;
  for (uint32_t c = 0; c < heads_.size(); ++c) {
    if ((row_bits_[c / 64] >> (c % 64) & 1) != (heads_[c] != kEnd) ||
        (bits_ >> (c / 64) & 1) != (row_bits_[c / 64] != 0)) {
      return wrong(heads_[c], "the bits of its class are wrong");
    }
    uint32_t previous = kEnd;
    for (i = heads_[c]; i != kEnd; previous = i, i = node(i).next) {
      const Node& n = node(i);
      if (++listed > free_extents) return wrong(i, "listed, but not in the ring");
      if (n.previous != previous) return wrong(i, "the list's links disagree");
      if (ClassOf(SizeOf(n)) != c) return wrong(i, "in the wrong class");
    }
  }
  if (listed != free_extents) return wrong(kEnd, "a free extent is in no list");

  size_t spares = 0;
  for (i = spare_; i != kEnd; i = node(i).next) {
    if (node(i).previous != kSpare) return wrong(i, "in use, but listed as spare");
    if (++spares > nodes) return wrong(i, "the list of spare nodes does not end");
  }
  if (extents + spares + 1 != nodes) return wrong(kEnd, "nodes are lost");
  return absl::OkStatus();
}

}  // namespace kvcache
