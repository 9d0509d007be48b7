// Cache: copies into and out of blocks.
#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/advice/advisor.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::Nanos;
using internal::Removed;

namespace {

// Batches of up to so many allocate nothing.
constexpr size_t kInlineRequests = 16;

template <typename Pieces>
absl::Status CheckSizes(absl::string_view name, const Pieces& pieces, size_t expected) {
  size_t bytes = 0;
  bool overflow = false;
  for (const auto& piece : pieces) {
    if (piece.data() == nullptr && !piece.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": null data with a size of ", piece.size(), " bytes"));
    }
    overflow |= __builtin_add_overflow(bytes, piece.size(), &bytes);
  }
  if (!overflow && bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      name, ": ", overflow ? "too many" : absl::StrCat(bytes), " bytes, expected ", expected));
}

// A transfer with one op for each of `results`, which carry `parts`. Op ops[i] ends with what `end`
// returns once op i of `copies` has ended; the other ops have ended with their result.
Transfer Renumbered(Transfer copies, absl::Span<const uint32_t> ops,
                    absl::Span<const uint32_t> parts, absl::Span<const absl::Status> results,
                    std::function<absl::Status(uint32_t op, const absl::Status& copied)> end) {
  const auto shared = std::make_shared<const Transfer>(std::move(copies));
  std::vector<bool> copied(results.size(), false);
  for (uint32_t op : ops) copied[op] = true;
  const TransferSource source(parts, {.order =
                                          [shared](Stream stream, int64_t part) {
                                            return part < 0 ? shared->WaitOn(stream)
                                                            : shared->WaitPartOn(stream, part);
                                          },
                                      .cancel = [shared] { shared->Cancel(); }});
  for (size_t op = 0; op < results.size(); ++op) {
    if (!copied[op]) source.Complete(op, results[op]);
  }
  shared->OnOpDone(
      [source, end = std::move(end), ops = std::vector<uint32_t>(ops.begin(), ops.end())](
          size_t i, const absl::Status& status) { source.Complete(ops[i], end(ops[i], status)); });
  return source.transfer();
}

}  // namespace

class Cache::CopyPin {
 public:
  CopyPin(Cache* cache, Slot slot, bool into_block)
      : cache_(*cache), slot_(slot), into_block_(into_block) {
    MutexLock lock(cache_.mu_);
    cache_.table_->Pin(slot_, cache_.Now());
    if (into_block_) cache_.table_->AwaitCopy(slot_);
    ++cache_.in_flight_;
  }
  ~CopyPin() {
    cache_
        .Change([this](BlockTable& table, Nanos now, Removed* removed) {
          if (into_block_) table.EndCopy(slot_, now, removed);
          table.Unpin(slot_, removed);
          return absl::OkStatus();
        })
        .IgnoreError();
    MutexLock lock(cache_.mu_);
    --cache_.in_flight_;
    cache_.changed_.NotifyAll();
  }
  CopyPin(const CopyPin&) = delete;
  CopyPin& operator=(const CopyPin&) = delete;

 private:
  Cache& cache_;
  const Slot slot_;
  const bool into_block_;
};

std::shared_ptr<void> Cache::PinForCopy(Slot slot, bool into_block) {
  return std::make_shared<CopyPin>(this, slot, into_block);
}

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
  const Transfer work = cache_->backend_->After(stream);
  if (work.Done()) {
    if (absl::Status status = work.Wait(); !status.ok()) return status;
  } else {
    work.Keep(cache_->PinForCopy(slot_));
  }
  Release();
  return absl::OkStatus();
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
    if (!status.ok()) {
      return Transfer::Completed(std::vector<absl::Status>(ops.size(), std::move(status)));
    }
  }
  Transfer copies = cache_->backend_->Read(ops, stream);
  if (!copies.Done()) copies.Keep(cache_->PinForCopy(slot_));
  copies.OnOpDone([cache = cache_, slot = slot_](size_t, const absl::Status& status) {
    cache->DropIfCorrupt(slot, status);
  });
  cache_->CountRead(slot_, ops.size() * bytes_each);
  return copies;
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
  const size_t bytes = bytes_ / parts_;
  absl::InlinedVector<ReadOp, 64> ops;
  for (uint32_t part = 0; part < parts_; ++part) {
    ops.push_back(
        {extent_, offset_ + part * bytes, destinations[part], space, part, ChecksumsOf(part, 1)});
  }
  return ReadOps(ops, bytes, stream);
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
      return absl::FailedPreconditionError(
          absl::StrCat("part ", part, " was committed, or given to CommitAfter(), before"));
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
  if (!status.ok()) return Transfer::Completed({status});
  absl::Span<uint64_t> checksums;
  if (checksums_ != nullptr) {
    checksums = absl::MakeSpan(checksums_ + first_part, end_part - first_part);
    std::fill(checksums.begin(), checksums.end(), 0);  // not known until the copy has ended
  }
  const WriteOp op = {extent_, offset, source, space, first_part, checksums};
  Transfer copy = cache_->backend_->Write({&op, 1}, stream);
  if (!copy.Done()) copy.Keep(cache_->PinForCopy(slot_, /*into_block=*/true));
  return copy;
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

// --- Batches

void Cache::CountRead(Slot slot, size_t bytes) {
  MutexLock lock(mu_);
  table_->counters(table_->block(slot).ns).bytes_read += bytes;
}

Transfer Cache::ReadInto(absl::Span<const ReadRequest> requests, Stream stream) {
  absl::InlinedVector<ReadLease, kInlineRequests> leases(requests.size());
  absl::InlinedVector<absl::Status, kInlineRequests> results(requests.size());
  Nanos now = 0;
  for (size_t i = 0; i < requests.size();) {
    const size_t end = std::min(i + internal::kBlocksPerLock, requests.size());
    Removed removed;
    {
      MutexLock lock(mu_);
      now = Now();
      for (; i < end; ++i) {
        const ReadRequest& request = requests[i];
        if (!table_->Knows(request.ns)) {
          results[i] = UnknownNamespace(absl::StrCat("requests[", i, "].ns"), request.ns);
          continue;
        }
        const Slot slot = table_->FindOrRemove(request.key, now, &removed);
        if (slot != kNoSlot) {
          const Block& b = table_->block(slot);
          results[i] = CheckSizes("destination", request.destination,
                                  request.part.has_value() ? b.part_bytes() : b.bytes);
          if (!results[i].ok()) continue;
        }
        results[i] = PinFound(request.ns, slot, request.part, now, &leases[i]);
        if (!results[i].ok()) continue;
        table_->counters(request.ns).bytes_read += leases[i].size();
      }
      if (requests.size() <= internal::kBlocksPerLock) TouchBackwards(leases, 0, now, false);
    }
    Free(removed);
  }
  if (requests.size() > internal::kBlocksPerLock) TouchChunks(leases, 0);
  for (size_t i = 0; i < requests.size() && advisor_ != nullptr; ++i) {
    if (requests[i].part.has_value()) continue;
    if (results[i].ok() || absl::IsNotFound(results[i]) || absl::IsUnavailable(results[i])) {
      advisor_->LookOne(requests[i].key, leases[i].extent_.size, now);
    }
  }

  absl::InlinedVector<ReadOp, kInlineRequests> copies;
  absl::InlinedVector<uint32_t, kInlineRequests> numbers;
  absl::InlinedVector<uint32_t, kInlineRequests> parts;
  for (size_t i = 0; i < requests.size(); ++i) {
    parts.push_back(requests[i].part.value_or(0));
    if (!results[i].ok()) continue;
    copies.push_back({leases[i].extent_, leases[i].offset_, requests[i].destination,
                      requests[i].destination_space, parts.back(),
                      leases[i].ChecksumsOf(0, leases[i].parts_)});
    numbers.push_back(i);
  }
  Transfer copied = backend_->Read(copies, stream);
  const bool all_found = copies.size() == requests.size();
  if (copied.Done()) {
    for (size_t op = 0; op < numbers.size(); ++op) {
      DropIfCorrupt(leases[numbers[op]].slot_, copied.result(op));
    }
    Release(absl::MakeSpan(leases));
    if (all_found) return copied;
    for (size_t op = 0; op < numbers.size(); ++op) results[numbers[op]] = copied.result(op);
    return Transfer::Completed(std::vector<absl::Status>(results.begin(), results.end()));
  }
  struct Read {
    Slot slot = kNoSlot;
    std::shared_ptr<void> pin;
  };
  const auto reads = std::make_shared<std::vector<Read>>(requests.size());
  std::vector<Slot> slots;
  for (uint32_t i : numbers) {
    (*reads)[i] = {leases[i].slot_, PinForCopy(leases[i].slot_)};
    slots.push_back(leases[i].slot_);
  }
  if (all_found) {
    copied.Keep(reads);
    copied.OnOpDone(
        [this, slots](size_t op, const absl::Status& status) { DropIfCorrupt(slots[op], status); });
    Release(absl::MakeSpan(leases));
    return copied;
  }
  Release(absl::MakeSpan(leases));
  // An op of a result with misses ends when its pin has gone.
  return Renumbered(std::move(copied), numbers, parts, results,
                    [this, reads](uint32_t i, const absl::Status& status) {
                      DropIfCorrupt((*reads)[i].slot, status);
                      (*reads)[i].pin.reset();
                      return status;
                    });
}

absl::Status Cache::Put(const BlockKey& key, BlockSize size, absl::Span<const ConstBytes> source,
                        const PutOptions& options) {
  if (absl::Status status = CheckSizes("source", source, size.bytes); !status.ok()) return status;
  absl::StatusOr<WriteLease> lease = ReserveBlock(key, size, options, ReserveMode::kNew);
  if (!lease.ok()) return lease.status();
  if (absl::Status status = lease->Write(source).Wait(); !status.ok()) return status;
  return lease->Commit();
}

Transfer Cache::PutMany(absl::Span<const PutRequest> requests, Stream stream) {
  // Lives until the last copy has ended.
  struct Write {
    WriteLease lease;
    std::shared_ptr<void> pin;
  };
  auto writes = std::make_shared<std::vector<Write>>(requests.size());
  std::vector<absl::Status> results(requests.size());
  std::vector<WriteOp> copies;
  std::vector<uint32_t> numbers;
  for (size_t i = 0; i < requests.size(); ++i) {
    const PutRequest& request = requests[i];
    results[i] = CheckSizes("source", request.source, request.size.bytes);
    if (!results[i].ok()) continue;
    absl::StatusOr<WriteLease> lease =
        ReserveBlock(request.key, request.size, request.options, ReserveMode::kNew);
    results[i] = lease.status();
    if (!results[i].ok()) continue;
    copies.push_back(
        {lease->extent_, 0, request.source, request.source_space, 0,
         absl::MakeSpan(lease->checksums_, lease->checksums_ == nullptr ? 0 : lease->parts_)});
    numbers.push_back(i);
    (*writes)[i].lease = *std::move(lease);
  }
  Transfer copied = backend_->Write(copies, stream);
  const auto end = [writes](uint32_t i, const absl::Status& status) {
    Write& write = (*writes)[i];
    absl::Status result = status;
    if (status.ok()) {
      result = write.lease.Commit();
    } else {
      write.lease.Abort();
    }
    write.pin.reset();
    return result;
  };
  if (copied.Done()) {
    for (size_t op = 0; op < numbers.size(); ++op) {
      results[numbers[op]] = end(numbers[op], copied.result(op));
    }
    return Transfer::Completed(std::move(results));
  }
  for (uint32_t i : numbers) (*writes)[i].pin = PinForCopy((*writes)[i].lease.slot_);
  return Renumbered(std::move(copied), numbers, std::vector<uint32_t>(requests.size(), 0), results,
                    end);
}

}  // namespace kvcache
