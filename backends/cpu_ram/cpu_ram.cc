#include "kvcache/backends/cpu_ram/cpu_ram.h"

#include <sanitizer/asan_interface.h>

#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "kvcache/backends/cpu_ram/available_memory.h"
#include "kvcache/backends/cpu_ram/memory_region.h"
#include "kvcache/core/check.h"
#include "kvcache/core/extent_allocator.h"
#include "kvcache/core/mutex.h"

namespace kvcache {
namespace {

// Under the address sanitizer, bytes outside of extents are poisoned: what uses an extent after it
// was freed is found.
class CpuRamBackend final : public StorageBackend {
 public:
  CpuRamBackend(MemoryRegion region, ExtentAllocator allocator)
      : traits_{.name = "cpu_ram",
                .memory_space = {MemoryKind::kHost},
                .capacity_bytes = allocator.capacity(),
                .alignment = allocator.alignment()},
        region_(std::move(region)),
        allocator_(std::move(allocator)) {
    ASAN_POISON_MEMORY_REGION(region_.data(), region_.size());
  }

  ~CpuRamBackend() override { ASAN_UNPOISON_MEMORY_REGION(region_.data(), region_.size()); }

  const BackendTraits& traits() const override { return traits_; }

  absl::StatusOr<Extent> Allocate(size_t bytes) override {
    MutexLock lock(mu_);
    absl::StatusOr<Extent> extent = allocator_.Allocate(bytes);
    if (extent.ok()) ASAN_UNPOISON_MEMORY_REGION(Address(*extent), extent->size);
    return extent;
  }

  void Free(Extent extent) override {
    MutexLock lock(mu_);
    allocator_.Free(extent);
    ASAN_POISON_MEMORY_REGION(Address(extent), extent.size);
  }

  std::byte* Address(Extent extent) const override {
    KVCACHE_CHECK(IsInside(extent), "not an extent of this backend: offset ", extent.offset,
                  ", size ", extent.size, ", capacity ", traits_.capacity_bytes);
    return region_.data() + extent.offset;
  }

  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override { return Run(ops, stream); }

  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override { return Run(ops, stream); }

 private:
  bool IsInside(const Extent& extent) const {
    return extent.offset <= traits_.capacity_bytes &&
           extent.size <= traits_.capacity_bytes - extent.offset;
  }

  static const Extent& ExtentOf(const WriteOp& op) { return op.destination; }
  static const Extent& ExtentOf(const ReadOp& op) { return op.source; }
  static const MemorySpace& SpaceOf(const WriteOp& op) { return op.source_space; }
  static const MemorySpace& SpaceOf(const ReadOp& op) { return op.destination_space; }

  static void Copy(const WriteOp& op, std::byte* at) {
    for (const ConstBytes& piece : op.source) {
      if (piece.empty()) continue;
      std::memcpy(at, piece.data(), piece.size());
      at += piece.size();
    }
  }

  static void Copy(const ReadOp& op, const std::byte* at) {
    for (const MutableBytes& piece : op.destination) {
      if (piece.empty()) continue;
      std::memcpy(piece.data(), at, piece.size());
      at += piece.size();
    }
  }

  template <typename Op>
  absl::Status RunOne(const Op& op, Stream stream) const {
    if (absl::Status status = ValidateOp(op); !status.ok()) return status;
    if (SpaceOf(op).kind == MemoryKind::kDevice) {
      return absl::InvalidArgumentError(
          absl::StrCat("cpu_ram does not reach the memory of device ", SpaceOf(op).device));
    }
    if (!stream.is_none()) {
      return absl::InvalidArgumentError("cpu_ram cannot order a copy behind a stream");
    }
    Copy(op, Address(ExtentOf(op)) + op.offset);
    return absl::OkStatus();
  }

  template <typename Op>
  Transfer Run(absl::Span<const Op> ops, Stream stream) const {
    std::vector<absl::Status> results;  // filled from the first failure on
    for (size_t i = 0; i < ops.size(); ++i) {
      absl::Status status = RunOne(ops[i], stream);
      if (status.ok()) continue;
      results.resize(ops.size());
      results[i] = std::move(status);
    }
    if (results.empty()) return Transfer::Completed(ops.size());
    std::vector<uint32_t> parts;
    for (const Op& op : ops) parts.push_back(op.part);
    const TransferSource source(parts);
    for (size_t i = 0; i < ops.size(); ++i) source.Complete(i, std::move(results[i]));
    return source.transfer();
  }

  const BackendTraits traits_;
  const MemoryRegion region_;
  Mutex mu_;
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<StorageBackend>> CreateCpuRamBackend(const CpuRamOptions& options) {
  absl::StatusOr<ExtentAllocator> allocator =
      ExtentAllocator::Create({.capacity_bytes = options.capacity_bytes});
  if (!allocator.ok()) return allocator.status();
  const AvailableMemory available = ReadAvailableMemory();
  if (options.capacity_bytes > available.bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("capacity_bytes = ", options.capacity_bytes, ", but only ", available.bytes,
                     " bytes are available (", available.limit, ")"));
  }
  absl::StatusOr<MemoryRegion> region = MemoryRegion::Reserve(allocator->capacity());
  if (!region.ok()) return region.status();
  if (options.fault_in == CpuRamOptions::FaultIn::kAtCreate) {
    if (absl::Status status = region->FaultIn(); !status.ok()) return status;
  }
  return std::make_unique<CpuRamBackend>(*std::move(region), *std::move(allocator));
}

}  // namespace kvcache
