// ReadLease and WriteLease: what a caller holds of a block.
#ifndef KVCACHE_CORE_CACHE_LEASE_H_
#define KVCACHE_CORE_CACHE_LEASE_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

class Cache;

namespace internal {
class LeasedCopies;
}  // namespace internal

// Pins a block, or one part of it, for reading: while it lives, the bytes do not move, change or
// get used for anything else, whatever happens to the key or to the cache: of one that has ended,
// it can still be read and verified. Move-only. Thread-compatible; leases are independent of each
// other.
class ReadLease {
 public:
  ReadLease() = default;  // holds nothing
  ReadLease(ReadLease&& other) noexcept { *this = std::move(other); }
  ReadLease& operator=(ReadLease&& other) noexcept;
  ~ReadLease() { Release(); }

  bool holds() const { return cache_ != nullptr; }
  void Release();

  // Releases the lease when the work now queued on `stream` has finished. For kernels that read the
  // block in place. Never blocks. Errors: those of Cache::After(), after which the lease holds what
  // it held. REQUIRES: holds().
  absl::Status ReleaseAfter(Stream stream);

  // Bytes of the block, or of the part that GetPart() asked for.
  size_t size() const { return bytes_; }
  // Parts, of equal size, in data(); 1 after GetPart().
  uint32_t parts() const { return parts_; }

  // In the backend's memory space; nullptr when it is not addressable or nothing is held. Not
  // checked: see Verify().
  const std::byte* data() const;
  // REQUIRES: part < parts().
  const std::byte* part(uint32_t part) const;

  // Copies the block, or one part, into the pieces of `destination`, in order. Their sizes must add
  // up to the bytes that are copied, or the op ends with kInvalidArgument. A transfer of one op,
  // which pins the block until it ends, also when the lease has gone. An op that finds other bytes
  // than were written ends with kDataLoss. When the medium is at fault (IsMediumFault()) the block
  // is dropped: the next lookup misses. REQUIRES: holds(); part < parts().
  Transfer Read(absl::Span<const MutableBytes> destination, MemorySpace space = {},
                Stream stream = {}) const;
  Transfer ReadPart(uint32_t part, absl::Span<const MutableBytes> destination,
                    MemorySpace space = {}, Stream stream = {}) const;
  // Copies all parts, part i by op i. REQUIRES: holds(); destinations.size() == parts().
  Transfer ReadParts(absl::Span<const absl::Span<const MutableBytes>> destinations,
                     MemorySpace space = {}, Stream stream = {}) const;

  // Compares the block, or one part, with its checksums: for code that reads in place. Errors:
  // kDataLoss when the bytes are not those that were written (the block is dropped, see Read());
  // kFailedPrecondition when the cache keeps no checksums; kResourceExhausted when there is no
  // memory to copy it to. A part that was written in place in
  // memory that this processor cannot read has none, and passes. REQUIRES: holds(); part < parts().
  absl::Status Verify() const;
  absl::Status VerifyPart(uint32_t part) const;

 private:
  friend class Cache;
  friend class internal::LeasedCopies;
  friend class WriteLease;
  // A span for an op that carries `parts` parts from `part` on.
  absl::Span<const uint64_t> ChecksumsOf(uint32_t part, uint32_t parts) const {
    return {checksums_ == nullptr ? nullptr : checksums_ + part, checksums_ == nullptr ? 0 : parts};
  }
  Transfer ReadOps(absl::Span<const ReadOp> ops, size_t bytes_each, Stream stream) const;

  Cache* cache_ = nullptr;
  Slot slot_ = kNoSlot;
  Extent extent_;
  size_t offset_ = 0;
  size_t bytes_ = 0;
  uint32_t parts_ = 0;
  uint32_t first_part_ = 0;              // in the block
  const uint64_t* checksums_ = nullptr;  // [parts_], nullptr: none are kept
};

// The right to write a block that nobody sees yet. Fill it, by data() or by Write(), and commit it.
// From its commit on a part never changes, and GetPart() finds it; everything finds the block once
// all of its parts are committed. Bytes must be written before their commit: wait for the transfer
// of a Write(), or give it to CommitAfter(). Bytes that a Write() has written must not be changed
// in place: their checksum is that of the copy. A key has one write lease at a time.
//
// A lease that is dropped without Commit() or Suspend() aborts: the block leaves nothing behind,
// except that a partial block that was resumed stays partial, with the parts that are committed.
//
// Commits return kAborted when the block was erased, has expired with its parent, or lost its
// parent to a failed write, or the cache has ended. The written bytes are then of no use, and no
// other call needs to be made.
//
// Move-only. Thread-compatible.
class WriteLease {
 public:
  WriteLease() = default;  // holds nothing
  WriteLease(WriteLease&& other) noexcept { *this = std::move(other); }
  WriteLease& operator=(WriteLease&& other) noexcept;
  ~WriteLease() { Abort(); }

  bool holds() const { return cache_ != nullptr; }
  void Abort();

  size_t size() const { return bytes_; }
  uint32_t parts() const { return parts_; }
  // Whether a part is committed. Only a resumed block starts with such parts.
  bool committed(uint32_t part) const;

  // The memory to write to, in the backend's memory space; nullptr when it is not addressable or
  // nothing is held. A committed part must not be written to. REQUIRES: part < parts().
  std::byte* data() const;
  std::byte* part(uint32_t part) const;

  // Copies the pieces of `source`, in order, into the block or one part, and commits nothing. Their
  // sizes must add up to the bytes of the destination, or the op ends with kInvalidArgument. A
  // transfer of one op, which keeps the block's memory until it ends, also when the lease has gone;
  // a block that is suspended meanwhile becomes partial only then. The op ends with
  // kFailedPrecondition for a part that is committed or was given to CommitAfter(). REQUIRES:
  // holds(); part < parts().
  Transfer Write(absl::Span<const ConstBytes> source, MemorySpace space = {}, Stream stream = {});
  Transfer WritePart(uint32_t part, absl::Span<const ConstBytes> source, MemorySpace space = {},
                     Stream stream = {});

  // Makes a part readable now, or once `copy` has ended well; if it fails, so does the whole write
  // (a resumed block loses only this part). Errors: kInvalidArgument unless part < parts();
  // kFailedPrecondition for a part that was given to either before; kAborted, see above.
  absl::Status CommitPart(uint32_t part);
  absl::Status CommitAfter(uint32_t part, Transfer copy);

  // Commits all parts that were not given to a commit before, and ends the lease. The block is
  // complete now, or when the last copy of CommitAfter() has ended. Errors: kAborted, see above,
  // and when the copy of a CommitAfter() has failed: then a block that was resumed ends as a
  // partial one without that part.
  absl::Status Commit();

  // Ends the lease; the block becomes partial: its committed parts are served by GetPart(), it
  // counts, expires and is evicted like any other, and Reserve() resumes it. A block without any
  // committed part goes. Errors: kAborted, see above.
  absl::Status Suspend();

 private:
  friend class Cache;
  friend class internal::LeasedCopies;
  friend class PrefixCache;
  // Whether a part is the copy of one of another block, by their checksums; true when one is not
  // known. A copy that this processor has not seen gets the checksum of what it should be.
  bool SameBytes(uint32_t part, const ReadLease& other) {
    if (checksums_ == nullptr || other.checksums_[part] == 0) return true;
    if (checksums_[part] == 0) checksums_[part] = other.checksums_[part];
    return checksums_[part] == other.checksums_[part];
  }
  enum class WriteEnd { kCommit, kSuspend, kAbort };
  class CommitHook;

  static absl::Status Ended();  // what becomes of commits after the end
  absl::Status End(WriteEnd end);
  absl::Status CheckUnclaimed(uint32_t first_part, uint32_t end_part) const;
  Transfer WriteAt(size_t offset, size_t bytes, uint32_t first_part, uint32_t end_part,
                   absl::Span<const ConstBytes> source, MemorySpace space, Stream stream);
  // Computes the checksums of parts that were written in place and not given to a commit, as far as
  // this processor can. Takes the lock only after a CommitAfter(), whose copy may set that of its
  // part meanwhile.
  void SumPart(uint32_t part) const;
  void SumUnclaimed() const;

  Cache* cache_ = nullptr;
  Slot slot_ = kNoSlot;
  Extent extent_;
  size_t bytes_ = 0;
  uint32_t parts_ = 0;
  bool awaits_copies_ = false;     // CommitAfter() was called
  bool some_committed_ = false;    // a part may be committed
  uint64_t* checksums_ = nullptr;  // [parts_], of the block; nullptr: none are kept
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_LEASE_H_
