// Cache: copies into and out of blocks.
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
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
using internal::LeasedCopies;
using internal::Nanos;
using internal::Removed;

namespace {

// Batches of up to so many allocate nothing.
constexpr size_t kInlineRequests = 16;

// A transfer with an op for each request of a call, of which op ops[i] ends with what `end` returns
// once op i of the copies has ended. Made before these are started.
class Renumbered {
 public:
  using End = std::function<absl::Status(uint32_t op, const absl::Status& copied)>;

  // `parts` has one for each request.
  Renumbered(absl::Span<const uint32_t> parts, absl::Span<const uint32_t> ops, End end)
      : source_(parts, {.order =
                            [copies = copies_](Stream stream, int64_t part) {
                              return part < 0 ? copies->WaitOn(stream)
                                              : copies->WaitPartOn(stream, part);
                            },
                        .cancel = [copies = copies_] { copies->Cancel(); }}),
        hook_(std::make_unique<Hook>(source_, ops, std::move(end))) {}

  // Ops that are not copied end with their result.
  Transfer Follow(Transfer copies, absl::Span<const absl::Status> results) {
    *copies_ = std::move(copies);
    const std::vector<uint32_t>& ops = hook_->ops;
    for (size_t op = 0, i = 0; op < results.size(); ++op) {
      if (i < ops.size() && ops[i] == op) {
        ++i;
      } else {
        source_.Complete(op, results[op]);
      }
    }
    internal::Attach(*copies_, std::move(hook_));
    return source_.transfer();
  }

 private:
  struct Hook final : public internal::TransferHook {
    Hook(const TransferSource& source, absl::Span<const uint32_t> ops, End end)
        : source(source), ops(ops.begin(), ops.end()), end(std::move(end)) {}
    void OpEnded(size_t i, const absl::Status& copied) override {
      source->Complete(ops[i], end(ops[i], copied));
    }
    void AllEnded() override {
      end = nullptr;
      source.reset();
    }

    std::optional<TransferSource> source;
    const std::vector<uint32_t> ops;  // ascending
    End end;
  };

  const std::shared_ptr<Transfer> copies_ = std::make_shared<Transfer>();
  const TransferSource source_;
  std::unique_ptr<Hook> hook_;
};

}  // namespace

Transfer Cache::ReadInto(absl::Span<const ReadRequest> requests, Stream stream) {
  return internal::WithoutThrowing(requests.size(), [&] { return ReadFound(requests, stream); });
}

Transfer Cache::ReadFound(absl::Span<const ReadRequest> requests, Stream stream) {
  absl::InlinedVector<ReadLease, kInlineRequests> leases(requests.size());
  absl::InlinedVector<absl::Status, kInlineRequests> results(requests.size());
  Nanos now = 0;
  for (size_t i = 0; i < requests.size();) {
    if (i > 0) mu_.GiveWay();
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
          results[i] = UnknownNamespace(request.ns, "requests[", i, "].ns");
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
  const LeasedCopies leased(*this);
  const bool all_found = copies.size() == requests.size();
  absl::InlinedVector<Slot, kInlineRequests> slots;
  std::unique_ptr<internal::TransferHook> pins;
  std::optional<Renumbered> renumbered;
  if (!backend_->traits().copies_in_call) {
    for (const ReadLease& lease : leases) slots.push_back(lease.holds() ? lease.slot_ : kNoSlot);
    pins = leased.Prepare(slots, LeasedCopies::Use::kRead);
    if (!all_found) {
      renumbered.emplace(parts, numbers,
                         [](uint32_t, const absl::Status& copied) { return copied; });
    }
  }
  Transfer copied = backend_->Read(copies, stream);
  if (copied.Done()) {
    for (size_t op = 0; op < numbers.size(); ++op) {
      leased.DropIfUnreadable(leases[numbers[op]].slot_, copied.result(op));
    }
    Release(absl::MakeSpan(leases));
    if (all_found) return copied;
    for (size_t op = 0; op < numbers.size(); ++op) results[numbers[op]] = copied.result(op);
    return Transfer::Completed(std::vector<absl::Status>(results.begin(), results.end()));
  }
  Transfer read = all_found ? std::move(copied) : renumbered->Follow(std::move(copied), results);
  leased.Follow(read, slots, LeasedCopies::Use::kRead, std::move(pins));
  Release(absl::MakeSpan(leases));
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
  return internal::WithoutThrowing(requests.size(), [&] { return PutAll(requests, stream); });
}

Transfer Cache::PutAll(absl::Span<const PutRequest> requests, Stream stream) {
  // They live until the last copy has ended.
  const auto writes = std::make_shared<std::vector<WriteLease>>(requests.size());
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
  Renumbered renumbered(std::vector<uint32_t>(requests.size(), 0), numbers,
                        [writes](uint32_t i, const absl::Status& status) {
                          WriteLease& lease = (*writes)[i];
                          if (status.ok()) return lease.Commit();
                          lease.Abort();
                          return status;
                        });
  const LeasedCopies leased(*this);
  std::unique_ptr<internal::TransferHook> in_flight = leased.Prepare({}, LeasedCopies::Use::kWrite);
  Transfer copied = backend_->Write(copies, stream);
  Transfer put = renumbered.Follow(std::move(copied), results);
  leased.Follow(put, {}, LeasedCopies::Use::kWrite, std::move(in_flight));
  return put;
}

}  // namespace kvcache
