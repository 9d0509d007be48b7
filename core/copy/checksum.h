// A checksum of bytes, alone or in the same pass as a copy of them.
#ifndef KVCACHE_CORE_COPY_CHECKSUM_H_
#define KVCACHE_CORE_COPY_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

#include "kvcache/core/copy/copy_bytes.h"
#include "kvcache/core/copy/copy_routine.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

// XXH3-64 with seed 0 of a sequence of pieces, equal to XXH3_64bits() of the concatenated pieces.
// It notices faults of memory and of programs, not a forger.
//
//   Checksum sum;
//   sum.Copy(to, keys, NextRead::kLater);
//   sum.Copy(to + keys.size(), values, NextRead::kLater);
//   part.checksum = sum.Value();
//
// Threads may not share an object. It is about 450 bytes and allocates nothing; a copy of it
// continues on its own.
class Checksum {
 public:
  // `routine` is for tests.
  explicit Checksum(const internal::CopyRoutine& routine = internal::BestCopyRoutine());

  // Back to the state of a new object: no pieces.
  void Reset();

  // Appends a piece. Pieces of any size and alignment; whole multiples of 64 bytes, at addresses
  // that are, are the fastest.
  void Update(ConstBytes piece);

  // Update(piece) and CopyBytes(to, piece, next_read) in one pass over the memory. Under kSoon the
  // checksum is that of what was delivered: a source that changes meanwhile, or a fault of the
  // copy, does not go unnoticed.
  void Copy(std::byte* to, ConstBytes piece, NextRead next_read);

  // The checksum of the pieces so far; more may follow.
  uint64_t Value() const;

 private:
  // A stripe is summed when a byte after it is known, since the last bytes are summed differently.
  // Up to 256 bytes all are kept: a short input has other sums.
  static constexpr size_t kStripe = internal::kStripeBytes;
  static constexpr size_t kShortInput = 256;

  template <typename Middle>
  void Append(const std::byte* from, size_t bytes, Middle middle);
  void Sum(const std::byte* from, size_t stripes, size_t prefetch_bytes);
  void CopyAndSumDelivered(std::byte* to, ConstBytes piece);
  void CopyStreaming(std::byte* to, ConstBytes piece);
  bool is_short() const { return stripes_ == 0; }

  internal::CopyRoutine routine_;
  internal::StripeSums sums_;
  uint64_t length_;   // bytes, all pieces
  uint64_t stripes_;  // summed
  size_t pending_;    // bytes in kept_ that are not summed
  // The last stripe that was summed, if any, and the pending bytes.
  std::byte kept_[kStripe + kShortInput];
};

// XXH3_64bits() of `bytes`.
uint64_t ChecksumOf(ConstBytes bytes);

}  // namespace kvcache

#endif  // KVCACHE_CORE_COPY_CHECKSUM_H_
