// Cache: copies into and out of blocks.
#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/advice/advisor.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/check_sizes.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::CheckSizes;
using internal::Nanos;
using internal::Removed;

namespace {

// Batches of up to so many allocate nothing.
constexpr size_t kInlineRequests = 16;

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

// --- Batches

void Cache::CountRead(Slot slot, size_t bytes) {
  MutexLock lock(mu_);
  table_->CountersOf(table_->block(slot)).bytes_read += bytes;
}

Transfer Cache::ReadInto(absl::Span<const ReadRequest> requests, Stream stream) {
  absl::InlinedVector<ReadLease, kInlineRequests> leases(requests.size());
  absl::InlinedVector<absl::Status, kInlineRequests> results(requests.size());
  Nanos now = 0;
  for (size_t i = 0; i < requests.size();) {
    const size_t end = std::min(i + internal::kBlocksPerLock, requests.size());
    Removed removed;
    if (!LockSupplied(0, end - i, 0)) {
      std::fill(results.begin() + i, results.end(), internal::NoMemory());
      break;
    }
    {
      MutexLock lock(mu_, AdoptLock());
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
