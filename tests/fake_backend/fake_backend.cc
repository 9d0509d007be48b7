#include "kvcache/tests/fake_backend/fake_backend.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/check.h"
#include "kvcache/core/extent_allocator.h"
#include "kvcache/core/host_copy.h"
#include "kvcache/core/mutex.h"

namespace kvcache {
namespace {

// An op under way. One of `from` and `to` is empty.
struct Copy {
  bool writes;
  Extent extent;
  size_t begin;  // in the medium
  size_t end;
  std::vector<ConstBytes> from;
  std::vector<MutableBytes> to;
  absl::Span<uint64_t> sums_in;
  absl::Span<const uint64_t> sums_out;
  uint32_t part;
  uint64_t call;  // which call it came with
  TransferSource source;
  size_t op;

  bool Overlaps(const Copy& other) const { return begin < other.end && other.begin < end; }
};

template <typename Piece>
size_t TotalSize(absl::Span<const Piece> pieces) {
  size_t size = 0;
  for (const Piece& piece : pieces) size += piece.size();
  return size;
}

Copy MakeCopy(const WriteOp& op, uint64_t call, const TransferSource& source, size_t i) {
  const size_t begin = op.destination.offset + op.offset;
  return {.writes = true,
          .extent = op.destination,
          .begin = begin,
          .end = begin + TotalSize(op.source),
          .from = {op.source.begin(), op.source.end()},
          .to = {},
          .sums_in = op.checksums,
          .sums_out = {},
          .part = op.part,
          .call = call,
          .source = source,
          .op = i};
}

Copy MakeCopy(const ReadOp& op, uint64_t call, const TransferSource& source, size_t i) {
  const size_t begin = op.source.offset + op.offset;
  return {.writes = false,
          .extent = op.source,
          .begin = begin,
          .end = begin + TotalSize(op.destination),
          .from = {},
          .to = {op.destination.begin(), op.destination.end()},
          .sums_in = {},
          .sums_out = op.checksums,
          .part = op.part,
          .call = call,
          .source = source,
          .op = i};
}

MemorySpace SpaceOf(const WriteOp& op) { return op.source_space; }
MemorySpace SpaceOf(const ReadOp& op) { return op.destination_space; }

template <typename Op>
absl::Status Validate(const Op& op, Stream stream) {
  if (absl::Status status = ValidateOp(op); !status.ok()) return status;
  if (SpaceOf(op).kind == MemoryKind::kDevice) {
    return absl::InvalidArgumentError(
        absl::StrCat("fake does not reach the memory of device ", SpaceOf(op).device));
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

  absl::StatusOr<Extent> Allocate(size_t bytes) {
    MutexLock lock(mu_);
    if (absl::Status status = std::exchange(next_allocate_, absl::OkStatus()); !status.ok()) {
      return status;
    }
    absl::StatusOr<Extent> extent = allocator_.Allocate(bytes);
    if (!extent.ok()) return extent;
    allocated_[extent->offset] = *extent;
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

  template <typename Op>
  Transfer Start(absl::Span<const Op> ops, Stream stream) {
    std::vector<uint32_t> parts;
    for (const Op& op : ops) parts.push_back(op.part);
    const uint64_t call = NextCall();
    const TransferSource source(parts,
                                {.order = nullptr, .cancel = [medium = weak_from_this(), call] {
                                   if (const auto alive = medium.lock()) alive->Cancel(call);
                                 }});
    for (size_t i = 0; i < ops.size(); ++i) {
      absl::Status status = Validate(ops[i], stream);
      if (!status.ok()) {
        source.Complete(i, std::move(status));
      } else if (std::optional<absl::Status> copied = Defer(MakeCopy(ops[i], call, source, i))) {
        source.Complete(i, *std::move(copied));
      }
    }
    return source.transfer();
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
    for (size_t i = 0; i < ended.size(); ++i) ended[i].source.Complete(ended[i].op, results[i]);
  }

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
      copy.source.Complete(copy.op, absl::CancelledError("the copy was cancelled"));
    }
  }

  void CheckAllocated(const Extent& extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto it = allocated_.find(extent.offset);
    KVCACHE_CHECK(it != allocated_.end() && it->second == extent, "no extent of ", extent.size,
                  " bytes at ", extent.offset, " is allocated");
  }

  absl::Status Perform(const Copy& copy) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    CheckAllocated(copy.extent);
    std::byte* at = bytes_.data() + copy.begin;
    if (!copy.writes) {
      return CopyOut({.destination = copy.to, .part = copy.part, .checksums = copy.sums_out}, at);
    }
    CopyIn({.source = copy.from, .part = copy.part, .checksums = copy.sums_in}, at);
    return absl::OkStatus();
  }

  const BackendTraits traits_;
  Mutex mu_;
  CondVar started_;
  std::vector<std::byte> bytes_ ABSL_GUARDED_BY(mu_);
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<size_t, Extent> allocated_ ABSL_GUARDED_BY(mu_);  // by offset
  std::vector<Copy> pending_ ABSL_GUARDED_BY(mu_);
  uint64_t calls_ ABSL_GUARDED_BY(mu_) = 0;
  bool auto_complete_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status next_allocate_ ABSL_GUARDED_BY(mu_);
};

std::unique_ptr<FakeBackend> FakeBackend::Create(size_t capacity_bytes) {
  auto allocator = ExtentAllocator::Create({.capacity_bytes = capacity_bytes});
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

void FakeBackend::FlipBit(size_t offset, int bit) { medium_->FlipBit(offset, bit); }

const BackendTraits& FakeBackend::traits() const { return medium_->traits(); }
absl::StatusOr<Extent> FakeBackend::Allocate(size_t bytes) { return medium_->Allocate(bytes); }
void FakeBackend::Free(Extent extent) { medium_->Free(extent); }

Transfer FakeBackend::Write(absl::Span<const WriteOp> ops, Stream stream) {
  return medium_->Start(ops, stream);
}

Transfer FakeBackend::Read(absl::Span<const ReadOp> ops, Stream stream) {
  return medium_->Start(ops, stream);
}

}  // namespace kvcache
