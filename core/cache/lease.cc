#include "kvcache/core/cache/lease.h"

#include <algorithm>
#include <bitset>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/check_sizes.h"
#include "kvcache/core/cache/leased_copies.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/core/storage/host_copy.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::CheckSizes;
using internal::LeasedCopies;
using internal::Nanos;
using internal::Removed;

// --- ReadLease

ReadLease& ReadLease::operator=(ReadLease&& other) noexcept {
  if (this == &other) return *this;
  Release();
  cache_ = std::exchange(other.cache_, nullptr);
  slot_ = other.slot_;
  extent_ = other.extent_;
  offset_ = other.offset_;
  bytes_ = other.bytes_;
  parts_ = other.parts_;
  first_part_ = other.first_part_;
  checksums_ = other.checksums_;
  return *this;
}

void ReadLease::Release() {
  if (cache_ != nullptr) std::exchange(cache_, nullptr)->Release(slot_);
}

absl::Status ReadLease::ReleaseAfter(Stream stream) {
  KVCACHE_CHECK(holds(), "the lease holds nothing");
  return internal::WithoutThrowing([&]() -> absl::Status {
    const LeasedCopies leased(*cache_);
    std::unique_ptr<internal::TransferHook> pins =
        leased.Prepare({&slot_, 1}, LeasedCopies::Use::kHold);
    const Transfer work = cache_->backend_->After(stream);
    if (work.Done()) {
      if (absl::Status status = work.Wait(); !status.ok()) return status;
    } else {
      leased.Follow(work, {&slot_, 1}, LeasedCopies::Use::kHold, std::move(pins));
    }
    Release();
    return absl::OkStatus();
  });
}

const std::byte* ReadLease::data() const {
  if (cache_ == nullptr) return nullptr;
  const std::byte* block = cache_->backend_->Address(extent_);
  return block == nullptr ? nullptr : block + offset_;
}

const std::byte* ReadLease::part(uint32_t part) const {
  KVCACHE_CHECK(part < parts_, "part ", part, " of ", parts_);
  const std::byte* first = data();
  return first == nullptr ? nullptr : first + part * (bytes_ / parts_);
}

Transfer ReadLease::ReadOps(absl::Span<const ReadOp> ops, size_t bytes_each, Stream stream) const {
  for (const ReadOp& op : ops) {
    absl::Status status = CheckSizes("destination", op.destination, bytes_each);
    if (!status.ok()) return Transfer::Completed(ops.size(), std::move(status));
  }
  return internal::WithoutThrowing(ops.size(), [&] {
    const LeasedCopies leased(*cache_);
    std::unique_ptr<internal::TransferHook> pins =
        leased.Prepare({&slot_, 1}, LeasedCopies::Use::kRead);
    Transfer copies = leased.backend().Read(ops, stream);
    leased.Follow(copies, {&slot_, 1}, LeasedCopies::Use::kRead, std::move(pins));
    leased.CountRead(slot_, ops.size() * bytes_each);
    return copies;
  });
}

Transfer ReadLease::Read(absl::Span<const MutableBytes> destination, MemorySpace space,
                         Stream stream) const {
  KVCACHE_CHECK(holds(), "the lease holds nothing");
  const ReadOp op = {extent_, offset_, destination, space, first_part_, ChecksumsOf(0, parts_)};
  return ReadOps({&op, 1}, bytes_, stream);
}

Transfer ReadLease::ReadPart(uint32_t part, absl::Span<const MutableBytes> destination,
                             MemorySpace space, Stream stream) const {
  KVCACHE_CHECK(holds() && part < parts_, "part ", part, " of ", parts_);
  const size_t bytes = bytes_ / parts_;
  const ReadOp op = {extent_, offset_ + part * bytes, destination, space,
                     part,    ChecksumsOf(part, 1)};
  return ReadOps({&op, 1}, bytes, stream);
}

Transfer ReadLease::ReadParts(absl::Span<const absl::Span<const MutableBytes>> destinations,
                              MemorySpace space, Stream stream) const {
  KVCACHE_CHECK(holds() && destinations.size() == parts_, destinations.size(), " destinations of ",
                parts_, " parts");
  return internal::WithoutThrowing(parts_, [&] {
    const size_t bytes = bytes_ / parts_;
    absl::InlinedVector<ReadOp, 64> ops;
    for (uint32_t part = 0; part < parts_; ++part) {
      ops.push_back(
          {extent_, offset_ + part * bytes, destinations[part], space, part, ChecksumsOf(part, 1)});
    }
    return ReadOps(ops, bytes, stream);
  });
}

absl::Status ReadLease::Verify() const {
  absl::Status status;
  for (uint32_t part = 0; part < parts_ && status.ok(); ++part) status = VerifyPart(part);
  return status;
}

absl::Status ReadLease::VerifyPart(uint32_t part) const {
  KVCACHE_CHECK(holds() && part < parts_, "part ", part, " of ", parts_);
  if (checksums_ == nullptr) {
    return internal::Error(absl::StatusCode::kFailedPrecondition, "the cache keeps no checksums");
  }
  if (checksums_[part] == 0) return absl::OkStatus();
  const size_t bytes = bytes_ / parts_;
  if (!cache_->host_addressable()) {
    return internal::WithoutThrowing([&] {
      std::vector<std::byte> copy(bytes);
      const MutableBytes destination = absl::MakeSpan(copy);
      return ReadPart(part, {destination}).Wait();
    });
  }
  if (ChecksumOf({this->part(part), bytes}) == checksums_[part]) return absl::OkStatus();
  absl::Status corrupt = CorruptBytes();
  LeasedCopies(*cache_).DropIfUnreadable(slot_, corrupt);
  return corrupt;
}

// --- WriteLease

std::byte* WriteLease::data() const {
  return cache_ == nullptr ? nullptr : cache_->backend_->Address(extent_);
}

std::byte* WriteLease::part(uint32_t part) const {
  KVCACHE_CHECK(part < parts_, "part ", part, " of ", parts_);
  std::byte* first = data();
  return first == nullptr ? nullptr : first + part * (bytes_ / parts_);
}

absl::Status WriteLease::CheckUnclaimed(uint32_t first_part, uint32_t end_part) const {
  return cache_->Change([&](BlockTable& table, Nanos, Removed*) {
    for (uint32_t part = first_part; part < end_part; ++part) {
      if (!table.Claimed(slot_, part)) continue;
      return internal::Error(absl::StatusCode::kFailedPrecondition, "part ", part,
                             " was committed, or given to CommitAfter(), before");
    }
    return absl::OkStatus();
  });
}

Transfer WriteLease::WriteAt(size_t offset, size_t bytes, uint32_t first_part, uint32_t end_part,
                             absl::Span<const ConstBytes> source, MemorySpace space,
                             Stream stream) {
  KVCACHE_CHECK(holds() && first_part < end_part && end_part <= parts_, "parts ", first_part,
                " to ", end_part, " of ", parts_);
  absl::Status status = CheckSizes("source", source, bytes);
  if (status.ok()) status = CheckUnclaimed(first_part, end_part);
  if (!status.ok()) return Transfer::Completed(1, std::move(status));
  return internal::WithoutThrowing(1, [&] {
    const LeasedCopies leased(*cache_);
    std::unique_ptr<internal::TransferHook> pins =
        leased.Prepare({&slot_, 1}, LeasedCopies::Use::kWrite);
    absl::Span<uint64_t> checksums;
    if (checksums_ != nullptr) {
      checksums = absl::MakeSpan(checksums_ + first_part, end_part - first_part);
      std::fill(checksums.begin(), checksums.end(), 0);  // not known until the copy has ended
    }
    const WriteOp op = {extent_, offset, source, space, first_part, checksums};
    Transfer copy = leased.backend().Write({&op, 1}, stream);
    leased.Follow(copy, {&slot_, 1}, LeasedCopies::Use::kWrite, std::move(pins));
    return copy;
  });
}

Transfer WriteLease::Write(absl::Span<const ConstBytes> source, MemorySpace space, Stream stream) {
  return WriteAt(0, bytes_, 0, parts_, source, space, stream);
}

Transfer WriteLease::WritePart(uint32_t part, absl::Span<const ConstBytes> source,
                               MemorySpace space, Stream stream) {
  KVCACHE_CHECK(holds() && part < parts_, "part ", part, " of ", parts_);
  const size_t bytes = bytes_ / parts_;
  return WriteAt(part * bytes, bytes, part, part + 1, source, space, stream);
}

WriteLease& WriteLease::operator=(WriteLease&& other) noexcept {
  if (this == &other) return *this;
  if (cache_ != nullptr) Abort();
  cache_ = std::exchange(other.cache_, nullptr);
  slot_ = other.slot_;
  extent_ = other.extent_;
  bytes_ = other.bytes_;
  parts_ = other.parts_;
  checksums_ = other.checksums_;
  awaits_copies_ = other.awaits_copies_;
  some_committed_ = other.some_committed_;
  return *this;
}

absl::Status WriteLease::Ended() {
  return internal::Error(absl::StatusCode::kFailedPrecondition, "the lease has ended before");
}

absl::Status WriteLease::End(WriteEnd end) {
  if (cache_ == nullptr) return Ended();
  return std::exchange(cache_, nullptr)
      ->Release(slot_, [this, end](BlockTable& table, Nanos now, Removed* removed) {
        absl::Status status;
        switch (end) {
          case WriteEnd::kCommit:
            status = table.CommitRest(slot_, now, removed);
            break;
          case WriteEnd::kSuspend:
            status = table.Suspend(slot_, now, removed);
            break;
          case WriteEnd::kAbort:
            table.Abort(slot_, now, removed);
            break;
        }
        return status;
      });
}

void WriteLease::Abort() {
  if (holds()) End(WriteEnd::kAbort).IgnoreError();  // an abort cannot fail
}

absl::Status WriteLease::Commit() {
  if (holds()) SumUnclaimed();
  return End(WriteEnd::kCommit);
}

absl::Status WriteLease::Suspend() { return End(WriteEnd::kSuspend); }

bool WriteLease::committed(uint32_t part) const {
  KVCACHE_CHECK(holds() && part < parts_, "part ", part, " of ", parts_);
  bool committed = false;
  if (!some_committed_) return committed;
  cache_
      ->Change([&](BlockTable& table, Nanos, Removed*) {
        committed = table.Committed(slot_, part);
        return absl::OkStatus();
      })
      .IgnoreError();
  return committed;
}

void WriteLease::SumPart(uint32_t part) const {
  if (checksums_ == nullptr || checksums_[part] != 0 || !cache_->host_addressable()) return;
  checksums_[part] = ChecksumOf({this->part(part), bytes_ / parts_});
}

void WriteLease::SumUnclaimed() const {
  if (checksums_ == nullptr || !cache_->host_addressable()) return;
  if (!awaits_copies_) {
    for (uint32_t part = 0; part < parts_; ++part) SumPart(part);
    return;
  }
  for (uint32_t first = 0; first < parts_; first += 64) {
    std::bitset<64> unclaimed;
    cache_
        ->Change([&](BlockTable& table, Nanos, Removed*) {
          // Of a block that is gone, copies that CommitAfter() did not take may be under way.
          const bool writing = table.block(slot_).state == Block::State::kWriting;
          for (uint32_t i = 0; writing && i < 64 && first + i < parts_; ++i) {
            unclaimed[i] = !table.Claimed(slot_, first + i);
          }
          return absl::OkStatus();
        })
        .IgnoreError();
    for (uint32_t i = 0; i < 64; ++i) {
      if (unclaimed[i]) SumPart(first + i);
    }
  }
}

absl::Status WriteLease::CommitPart(uint32_t part) {
  if (cache_ == nullptr) return Ended();
  some_committed_ = true;
  absl::Status status =
      cache_->Change([this, part](BlockTable& table, Nanos now, Removed* removed) {
        return table.ClaimPart(slot_, part, now, removed);
      });
  if (!status.ok()) return status;
  SumPart(part);
  return cache_->Change([this, part](BlockTable& table, Nanos now, Removed* removed) {
    return table.FinishPart(slot_, part, /*succeeded=*/true, now, removed);
  });
}

// Commits a part when its copy has ended.
class WriteLease::CommitHook final : public internal::TransferHook {
 public:
  // A part that a Write() of this lease copies has its checksum when the copy has ended; of one
  // that is written in place the bytes are summed then.
  CommitHook(const WriteLease& lease, uint32_t part)
      : TransferHook(Hears::kWhole),
        cache_(*lease.cache_),
        pins_(LeasedCopies(cache_), {&lease.slot_, 1}),
        slot_(lease.slot_),
        part_(part) {
    if (part >= lease.parts_ || lease.checksums_ == nullptr || !cache_.host_addressable()) return;
    checksum_ = &lease.checksums_[part];
    bytes_ = {lease.part(part), lease.bytes_ / lease.parts_};
  }

  void Begin() { pins_.Begin(); }

  void Done(const absl::Status& copied) override {
    if (copied.ok() && checksum_ != nullptr && *checksum_ == 0) *checksum_ = ChecksumOf(bytes_);
    cache_
        .Change([&](BlockTable& table, Nanos now, Removed* removed) {
          table.FinishCopy(slot_, part_, copied.ok(), now, removed);
          return absl::OkStatus();
        })
        .IgnoreError();
    pins_.End();
  }

 private:
  Cache& cache_;
  LeasedCopies::Pins pins_;
  const Slot slot_;
  const uint32_t part_;
  uint64_t* checksum_ = nullptr;  // to be computed if it is not known
  ConstBytes bytes_;
};

absl::Status WriteLease::CommitAfter(uint32_t part, Transfer copy) {
  if (cache_ == nullptr) return Ended();
  return internal::WithoutThrowing([&]() -> absl::Status {
    auto commit = std::make_unique<CommitHook>(*this, part);
    awaits_copies_ = some_committed_ = true;
    absl::Status status =
        cache_->Change([this, part](BlockTable& table, Nanos now, Removed* removed) {
          absl::Status status = table.ClaimPart(slot_, part, now, removed);
          if (status.ok()) table.AwaitCopy(slot_);
          return status;
        });
    if (!status.ok()) return status;
    commit->Begin();
    internal::Attach(copy, std::move(commit));
    return absl::OkStatus();
  });
}

}  // namespace kvcache
