#include "kvcache/tests/fake_backend/fake_backend.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/core/storage/extent_allocator.h"
#include "kvcache/core/storage/failure_latch.h"
#include "kvcache/core/storage/host_copy.h"

namespace kvcache {
namespace {

// An op under way.
struct Copy {
  bool writes;
  Extent extent;
  size_t begin;  // in the medium
  size_t end;
  std::function<absl::Status(std::byte* at)> perform;  // at: where its bytes begin
  uint64_t call = 0;                                   // which call it came with
  std::optional<TransferSource> source = std::nullopt;
  size_t op = 0;

  bool Overlaps(const Copy& other) const { return begin < other.end && other.begin < end; }
};

template <typename Piece>
size_t TotalSize(const std::vector<Piece>& pieces) {
  size_t size = 0;
  for (const Piece& piece : pieces) size += piece.size();
  return size;
}

Copy MakeCopy(const WriteOp& op) {
  const size_t begin = op.destination.offset + op.offset;
  std::vector<ConstBytes> source(op.source.begin(), op.source.end());
  const size_t end = begin + TotalSize(source);
  return {true, op.destination, begin, end,
          [source = std::move(source), sums = op.checksums](std::byte* at) {
            CopyIn({.source = source, .checksums = sums}, at);
            return absl::OkStatus();
          }};
}

Copy MakeCopy(const ReadOp& op) {
  const size_t begin = op.source.offset + op.offset;
  std::vector<MutableBytes> destination(op.destination.begin(), op.destination.end());
  const size_t end = begin + TotalSize(destination);
  return {false, op.source, begin, end,
          [destination = std::move(destination), sums = op.checksums](std::byte* at) {
            return CopyOut({.destination = destination, .checksums = sums}, at);
          }};
}

// An engine's pages, as they were said to be in a call.
struct Pages {
  PagedKv kv;
  std::vector<int32_t> table;
};

Copy MakeCopy(const PagedWriteOp& op, const std::shared_ptr<const Pages>& pages) {
  const size_t begin = op.destination.offset + op.offset;
  const size_t bytes = *pages->kv.layout.PartBytes(op.tokens.count);
  return {true, op.destination, begin, begin + bytes, [op, pages, bytes](std::byte* at) {
            GatherPart(pages->kv, pages->table, op.part, op.tokens, at);
            if (op.checksum != nullptr) *op.checksum = ChecksumOf({at, bytes});
            return absl::OkStatus();
          }};
}

Copy MakeCopy(const PagedReadOp& op, const std::shared_ptr<const Pages>& pages) {
  const size_t begin = op.source.offset + op.offset;
  const size_t bytes = *pages->kv.layout.PartBytes(op.tokens.count);
  return {false, op.source, begin, begin + bytes, [op, pages, bytes](std::byte* at) {
            if (op.checksum != 0 && op.checksum != ChecksumOf({at, bytes})) return CorruptBytes();
            ScatterPart(pages->kv, pages->table, op.part, op.tokens, at, nullptr, op.skip_tokens);
            return absl::OkStatus();
          }};
}

MemorySpace SpaceOf(const WriteOp& op) { return op.source_space; }
MemorySpace SpaceOf(const ReadOp& op) { return op.destination_space; }

absl::Status CheckReach(MemorySpace space, Stream stream) {
  if (space.kind == MemoryKind::kDevice) {
    return absl::InvalidArgumentError(
        absl::StrCat("fake does not reach the memory of device ", space.device));
  }
  if (!stream.is_none()) {
    return absl::InvalidArgumentError("fake cannot order a copy behind a stream");
  }
  return absl::OkStatus();
}

}  // namespace

class FakeBackend::Medium : public std::enable_shared_from_this<Medium> {
 public:
  explicit Medium(ExtentAllocator allocator)
      : traits_{.name = "fake",
                .memory_space = {},
                .addressable = false,
                .capacity_bytes = allocator.capacity(),
                .alignment = allocator.alignment()},
        bytes_(allocator.capacity()),
        allocator_(std::move(allocator)) {}

  const BackendTraits& traits() const { return traits_; }

  size_t pending() {
    MutexLock lock(mu_);
    return pending_.size();
  }

  void WaitForPending(size_t ops) {
    MutexLock lock(mu_);
    while (pending_.size() < ops) started_.Wait(mu_);
  }

  void set_auto_complete(bool auto_complete) {
    MutexLock lock(mu_);
    auto_complete_ = auto_complete;
  }

  void FailNextAllocate(absl::Status status) {
    KVCACHE_CHECK(!status.ok(), "FailNextAllocate with an OK status");
    MutexLock lock(mu_);
    next_allocate_ = std::move(status);
  }

  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) {
    if (absl::Status failed = failure_.status(); !failed.ok()) return failed;
    MutexLock lock(mu_);
    if (absl::Status status = std::exchange(next_allocate_, absl::OkStatus()); !status.ok()) {
      return status;
    }
    std::map<size_t, Extent> entry;  // made first: it may throw
    entry[0];
    absl::StatusOr<Extent> extent = allocator_.Allocate(bytes, owner);
    if (!extent.ok()) return extent;
    auto node = entry.extract(entry.begin());
    node.key() = extent->offset;
    node.mapped() = *extent;
    allocated_.insert(std::move(node));
    std::fill_n(bytes_.begin() + extent->offset, extent->size, kFreshByte);
    return extent;
  }

  void Free(Extent extent) {
    MutexLock lock(mu_);
    CheckAllocated(extent);
    for (const Copy& copy : pending_) {
      KVCACHE_CHECK(copy.extent != extent, "the extent at ", extent.offset,
                    " is freed while an op is pending there");
    }
    allocated_.erase(extent.offset);
    allocator_.Free(extent);
  }

  size_t ListExtents(const Extent& from, bool around, size_t bytes, absl::Span<Neighbour> out) {
    MutexLock lock(mu_);
    return allocator_.List(from, around, bytes, out);
  }

  void SetOwner(const Extent& extent, uint32_t owner) {
    MutexLock lock(mu_);
    CheckAllocated(extent);
    allocator_.SetOwner(extent, owner);
  }

  // validate(op) and make_copy(op) of each.
  template <typename Op, typename Validate, typename MakeCopy>
  Transfer Start(absl::Span<const Op> ops, const Validate& validate, const MakeCopy& make_copy) {
    std::vector<uint32_t> parts;
    for (const Op& op : ops) parts.push_back(op.part);
    const uint64_t call = NextCall();
    const TransferSource source(parts,
                                {.order = nullptr, .cancel = [medium = weak_from_this(), call] {
                                   if (const auto alive = medium.lock()) alive->Cancel(call);
                                 }});
    for (size_t i = 0; i < ops.size(); ++i) {
      absl::Status status = validate(ops[i]);
      if (status.ok()) status = failure_.status();
      if (!status.ok()) {
        source.Complete(i, std::move(status));
        continue;
      }
      std::optional<absl::Status> ended;
      try {
        Copy copy = make_copy(ops[i]);
        copy.call = call;
        copy.source = source;
        copy.op = i;
        ended = Defer(std::move(copy));
      } catch (const std::bad_alloc&) {
        ended = internal::NoMemory();
      }
      if (ended.has_value()) source.Complete(i, *std::move(ended));
    }
    return source.transfer();
  }

  template <typename Op>
  Transfer StartCopies(absl::Span<const Op> ops, Stream stream) {
    const auto validate = [stream](const Op& op) {
      absl::Status status = ValidateOp(op);
      return status.ok() ? CheckReach(SpaceOf(op), stream) : status;
    };
    return Start(ops, validate, [](const Op& op) { return MakeCopy(op); });
  }

  template <typename Op>
  Transfer StartPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                      absl::Span<const Op> ops, Stream stream) {
    absl::Status valid = kv.Validate();
    if (valid.ok()) valid = CheckReach(kv.space, stream);
    const auto pages = std::make_shared<const Pages>(
        Pages{kv, std::vector<int32_t>(page_table.begin(), page_table.end())});
    const auto validate = [&](const Op& op) {
      return valid.ok() ? ValidateOp(kv, page_table, op) : valid;
    };
    return Start(ops, validate, [&pages](const Op& op) { return MakeCopy(op, pages); });
  }

  // Ends the pending ops [first, last) with `status`, copying when it is OK.
  void End(size_t first, std::optional<size_t> last, const absl::Status& status) {
    std::vector<Copy> ended;
    std::vector<absl::Status> results;
    {
      MutexLock lock(mu_);
      const size_t end = last.value_or(pending_.size());
      KVCACHE_CHECK(end <= pending_.size(), "op ", end - 1, " of ", pending_.size(), " pending");
      const auto from = pending_.begin() + first;
      const auto to = pending_.begin() + end;
      for (auto copy = from; copy != to; ++copy) {
        results.push_back(status.ok() ? Perform(*copy) : status);
      }
      ended.assign(std::make_move_iterator(from), std::make_move_iterator(to));
      pending_.erase(from, to);
    }
    for (size_t i = 0; i < ended.size(); ++i) ended[i].source->Complete(ended[i].op, results[i]);
  }

  void FailForGood(const absl::Status& status) {
    const bool first = failure_.Set(status);
    End(0, std::nullopt, status);
    if (first) failure_.Tell();
  }

  FailureLatch& failure() { return failure_; }

  void FlipBit(size_t offset, int bit) {
    MutexLock lock(mu_);
    bytes_[offset] ^= std::byte{1} << bit;
  }

 private:
  uint64_t NextCall() {
    MutexLock lock(mu_);
    return calls_++;
  }

  // The result when the copy was made at once.
  std::optional<absl::Status> Defer(Copy copy) {
    MutexLock lock(mu_);
    CheckAllocated(copy.extent);
    for (const Copy& other : pending_) {
      KVCACHE_CHECK(!copy.Overlaps(other) || (!copy.writes && !other.writes), "bytes [", copy.begin,
                    ", ", copy.end, ") are ", copy.writes ? "written" : "read",
                    " while an op that ", other.writes ? "writes" : "reads", " [", other.begin,
                    ", ", other.end, ") is pending");
    }
    if (auto_complete_) {
      return Perform(copy);
    }
    pending_.push_back(std::move(copy));
    started_.NotifyAll();
    return std::nullopt;
  }

  void Cancel(uint64_t call) {
    std::vector<Copy> ended;
    {
      MutexLock lock(mu_);
      const auto first = std::stable_partition(
          pending_.begin(), pending_.end(), [call](const Copy& copy) { return copy.call != call; });
      ended.assign(std::make_move_iterator(first), std::make_move_iterator(pending_.end()));
      pending_.erase(first, pending_.end());
    }
    for (const Copy& copy : ended) {
      copy.source->Complete(copy.op, absl::CancelledError("the copy was cancelled"));
    }
  }

  void CheckAllocated(const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto it = allocated_.find(extent.offset);
    KVCACHE_CHECK(it != allocated_.end() && it->second == extent, "no extent of ", extent.size,
                  " bytes at ", extent.offset, " is allocated");
  }

  absl::Status Perform(const Copy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    CheckAllocated(copy.extent);
    return copy.perform(bytes_.data() + copy.begin);
  }

  const BackendTraits traits_;
  FailureLatch failure_;
  Mutex mu_;
  CondVar started_;
  std::vector<std::byte> bytes_ ABSL_GUARDED_BY(mu_);
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mu_);
  std::map<size_t, Extent> allocated_ ABSL_GUARDED_BY(mu_);  // by offset
  std::vector<Copy> pending_ ABSL_GUARDED_BY(mu_);
  uint64_t calls_ ABSL_GUARDED_BY(mu_) = 0;
  bool auto_complete_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status next_allocate_ ABSL_GUARDED_BY(mu_);
};

std::unique_ptr<FakeBackend> FakeBackend::Create(size_t capacity_bytes, size_t alignment) {
  auto allocator =
      ExtentAllocator::Create({.capacity_bytes = capacity_bytes, .alignment = alignment});
  KVCACHE_CHECK(allocator.ok(), allocator.status().ToString());
  return std::unique_ptr<FakeBackend>(
      new FakeBackend(std::make_shared<Medium>(*std::move(allocator))));
}

FakeBackend::FakeBackend(std::shared_ptr<Medium> medium) : medium_(std::move(medium)) {}

FakeBackend::~FakeBackend() {
  KVCACHE_CHECK(pending() == 0, "destroyed while ", pending(), " ops are pending");
}

size_t FakeBackend::pending() const { return medium_->pending(); }
void FakeBackend::WaitForPending(size_t ops) const { medium_->WaitForPending(ops); }
void FakeBackend::Complete(size_t index) { medium_->End(index, index + 1, absl::OkStatus()); }
void FakeBackend::CompleteAll() { medium_->End(0, std::nullopt, absl::OkStatus()); }

void FakeBackend::Fail(size_t index, const absl::Status& status) {
  KVCACHE_CHECK(!status.ok(), "Fail with an OK status");
  medium_->End(index, index + 1, status);
}

void FakeBackend::set_auto_complete(bool auto_complete) {
  medium_->set_auto_complete(auto_complete);
}

void FakeBackend::FailNextAllocate(absl::Status status) {
  medium_->FailNextAllocate(std::move(status));
}

void FakeBackend::FailForGood(const absl::Status& status) { medium_->FailForGood(status); }

void FakeBackend::OnFailure(std::function<void(const absl::Status&)> callback) {
  medium_->failure().OnFailure(std::move(callback));
}

void FakeBackend::FlipBit(size_t offset, int bit) { medium_->FlipBit(offset, bit); }

const BackendTraits& FakeBackend::traits() const { return medium_->traits(); }
absl::StatusOr<Extent> FakeBackend::Allocate(size_t bytes, uint32_t owner) {
  return internal::WithoutThrowing([&] { return medium_->Allocate(bytes, owner); });
}
void FakeBackend::Free(Extent extent) { medium_->Free(extent); }
size_t FakeBackend::ListExtents(const Extent& from, bool around, size_t bytes,
                                absl::Span<Neighbour> out) {
  return medium_->ListExtents(from, around, bytes, out);
}
void FakeBackend::SetOwner(const Extent& extent, uint32_t owner) {
  medium_->SetOwner(extent, owner);
}

Transfer FakeBackend::Write(absl::Span<const WriteOp> ops, Stream stream) {
  return internal::WithoutThrowing(ops.size(), [&] { return medium_->StartCopies(ops, stream); });
}

Transfer FakeBackend::Read(absl::Span<const ReadOp> ops, Stream stream) {
  return internal::WithoutThrowing(ops.size(), [&] { return medium_->StartCopies(ops, stream); });
}

Transfer FakeBackend::WritePages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                                 absl::Span<const PagedWriteOp> ops, Stream stream) {
  return internal::WithoutThrowing(
      ops.size(), [&] { return medium_->StartPages(kv, page_table, ops, stream); });
}

Transfer FakeBackend::ReadPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                                absl::Span<const PagedReadOp> ops, Stream stream) {
  return internal::WithoutThrowing(
      ops.size(), [&] { return medium_->StartPages(kv, page_table, ops, stream); });
}

}  // namespace kvcache
