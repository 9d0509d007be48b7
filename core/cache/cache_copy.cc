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
#include "kvcache/core/cache/leased_copies.h"
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
  internal::OnOpDone(
      *shared,
      [source, end = std::move(end), ops = std::vector<uint32_t>(ops.begin(), ops.end())](
          size_t i, const absl::Status& status) { source.Complete(ops[i], end(ops[i], status)); });
  return source.transfer();
}

}  // namespace

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
  const internal::LeasedCopies leased(*this);
  Transfer copied = backend_->Read(copies, stream);
  const bool all_found = copies.size() == requests.size();
  if (copied.Done()) {
    for (size_t op = 0; op < numbers.size(); ++op) {
      leased.DropIfUnreadable(leases[numbers[op]].slot_, copied.result(op));
    }
    Release(absl::MakeSpan(leases));
    if (all_found) return copied;
    for (size_t op = 0; op < numbers.size(); ++op) results[numbers[op]] = copied.result(op);
    return Transfer::Completed(std::vector<absl::Status>(results.begin(), results.end()));
  }
  std::vector<Slot> slots;
  for (uint32_t i : numbers) slots.push_back(leases[i].slot_);
  std::shared_ptr<void> pins = leased.Pin(slots);
  Release(absl::MakeSpan(leases));
  if (all_found) {
    internal::Keep(copied, std::move(pins));
    internal::OnOpDone(copied,
                       [leased, slots = std::move(slots)](size_t op, const absl::Status& status) {
                         leased.DropIfUnreadable(slots[op], status);
                       });
    return copied;
  }
  std::vector<Slot> slot_of(requests.size(), kNoSlot);
  for (size_t op = 0; op < numbers.size(); ++op) slot_of[numbers[op]] = slots[op];
  Transfer read =
      Renumbered(std::move(copied), numbers, parts, results,
                 [leased, slot_of = std::move(slot_of)](uint32_t i, const absl::Status& status) {
                   leased.DropIfUnreadable(slot_of[i], status);
                   return status;
                 });
  internal::Keep(read, std::move(pins));
  return read;
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
  // They live until the last copy has ended.
  auto writes = std::make_shared<std::vector<WriteLease>>(requests.size());
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
    (*writes)[i] = *std::move(lease);
  }
  Transfer copied = backend_->Write(copies, stream);
  const auto end = [writes](uint32_t i, const absl::Status& status) {
    WriteLease& lease = (*writes)[i];
    if (status.ok()) return lease.Commit();
    lease.Abort();
    return status;
  };
  if (copied.Done()) {
    for (size_t op = 0; op < numbers.size(); ++op) {
      results[numbers[op]] = end(numbers[op], copied.result(op));
    }
    return Transfer::Completed(std::move(results));
  }
  std::shared_ptr<void> in_flight = internal::LeasedCopies(*this).Pin({});
  Transfer put = Renumbered(std::move(copied), numbers, std::vector<uint32_t>(requests.size(), 0),
                            results, end);
  internal::Keep(put, std::move(in_flight));
  return put;
}

}  // namespace kvcache
