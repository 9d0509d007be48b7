#include "kvcache/backends/cpu_ram/cpu_ram.h"

#include <sanitizer/asan_interface.h>

#include <optional>
#include <utility>
#include <vector>

#include "kvcache/backends/cpu_ram/background_fault_in.h"
#include "kvcache/backends/cpu_ram/huge_page_trial.h"
#include "kvcache/backends/cpu_ram/region_allocator.h"
#include "kvcache/backends/host_memory/available_memory.h"
#include "kvcache/backends/host_memory/memory_region.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/storage/extent_allocator.h"
#include "kvcache/core/storage/host_copy.h"

namespace kvcache {
namespace {

using FaultIn = CpuRamOptions::FaultIn;
using HugePages = CpuRamOptions::HugePages;

struct PageChoice {
  bool huge = true;
  const char* decided_by = "option";
  std::optional<HugePageTrial> trial = {};
};

PageChoice ChoosePages(const CpuRamOptions& options) {
  constexpr size_t kWorthATrial = size_t{1} << 30;
  if (options.huge_pages != HugePages::kAuto) {
    return {.huge = options.huge_pages == HugePages::kAdvise};
  }
  if (options.capacity_bytes < kWorthATrial) return {.decided_by = "capacity"};
  const std::optional<HugePageTrial> trial = RunHugePageTrial();
  return {.huge = !trial || trial->PreferHuge(), .decided_by = "trial", .trial = trial};
}

const char* NameOf(FaultIn fault_in) {
  switch (fault_in) {
    case FaultIn::kOnUse:
      return "on_use";
    case FaultIn::kAtCreate:
      return "at_create";
    case FaultIn::kBackground:
      return "background";
  }
  return "";
}

// Refuses when so little memory is left that somebody may soon be killed for it. Looks, which takes
// some 0.1 ms, only now and then.
absl::Status FaultInWhileThereIsMemory(const MemoryRegion& region, size_t offset, size_t size) {
  constexpr size_t kLookEvery = size_t{64} << 20;
  constexpr size_t kLeaveFree = size_t{256} << 20;
  if ((offset + size) % kLookEvery == 0) {
    const AvailableMemory available = ReadAvailableMemory();
    if (available.bytes < kLeaveFree) {
      return internal::Error(absl::StatusCode::kResourceExhausted, "stopped at offset ", offset,
                             ": only ", available.bytes, " bytes are available (", available.limit,
                             ")");
    }
  }
  return region.FaultIn(offset, size);
}

// Under the address sanitizer, bytes outside of extents are poisoned: what uses an extent after it
// was freed is found.
class CpuRamBackend final : public StorageBackend {
 public:
  CpuRamBackend(FaultIn fault_in, const PageChoice& pages, MemoryRegion region,
                ExtentAllocator allocator)
      : traits_{.name = "cpu_ram",
                .memory_space = {MemoryKind::kHost},
                .capacity_bytes = allocator.capacity(),
                .alignment = allocator.alignment(),
                .copies_in_call = true},
        fault_in_(fault_in),
        pages_(pages),
        region_(std::move(region)),
        allocator_(std::move(allocator)) {
    ASAN_POISON_MEMORY_REGION(region_.data(), region_.size());
    if (fault_in == FaultIn::kBackground) {
      background_.emplace(&allocator_, [this](size_t offset, size_t size) {
        return FaultInWhileThereIsMemory(region_, offset, size);
      });
    }
  }

  ~CpuRamBackend() override { ASAN_UNPOISON_MEMORY_REGION(region_.data(), region_.size()); }

  const BackendTraits& traits() const override { return traits_; }

  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) override {
    absl::StatusOr<Extent> extent = allocator_.Allocate(bytes, owner);
    if (extent.ok()) ASAN_UNPOISON_MEMORY_REGION(Address(*extent), extent->size);
    return extent;
  }

  void Free(Extent extent) override {
    // Before somebody else gets it.
    ASAN_POISON_MEMORY_REGION(Address(extent), extent.size);
    allocator_.Free(extent);
  }

  size_t ListExtents(const Extent& from, bool around, size_t bytes,
                     absl::Span<Neighbour> out) override {
    return allocator_.List(from, around, bytes, out);
  }
  void SetOwner(const Extent& extent, uint32_t owner) override {
    allocator_.SetOwner(extent, owner);
  }

  std::byte* Address(Extent extent) const override {
    KVCACHE_CHECK(IsInside(extent), "not an extent of this backend: offset ", extent.offset,
                  ", size ", extent.size, ", capacity ", traits_.capacity_bytes);
    return region_.data() + extent.offset;
  }

  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override {
    return internal::WithoutThrowing(ops.size(), [&] { return Run(ops, stream); });
  }

  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    return internal::WithoutThrowing(ops.size(), [&] { return Run(ops, stream); });
  }

  std::optional<ExportedMemory> exported_memory() const override {
    if (region_.fd() < 0) return std::nullopt;
    return ExportedMemory{region_.fd(), region_.data(), region_.size()};
  }

  BackendStats stats() const override {
    BackendStats stats;
    stats.facts = {{"fault_in", NameOf(fault_in_)},
                   {"huge_pages", pages_.huge ? "advise" : "never"},
                   {"huge_pages_decided_by", pages_.decided_by}};
    if (background_) {
      if (const absl::Status status = background_->status(); !status.ok()) {
        stats.facts.push_back({"fault_in_error", status.ToString()});
      }
    }
    stats.metrics = {
        {"faulted_bytes", "Memory that was taken from the system.",
         static_cast<double>(allocator_.faulted_bytes())},
        {"page_fault_bytes", "Bytes of blocks put into memory that was not faulted in yet.",
         static_cast<double>(allocator_.page_fault_bytes()), /*counter=*/true}};
    if (pages_.trial) {
      stats.metrics.push_back({"small_pages_first_touch_bytes_per_second",
                               "The trial's speed of faulting in small pages.",
                               pages_.trial->small_bytes_per_second});
      stats.metrics.push_back({"huge_pages_first_touch_bytes_per_second",
                               "The trial's speed of faulting in huge pages.",
                               pages_.trial->huge_bytes_per_second});
    }
    return stats;
  }

 private:
  bool IsInside(const Extent& extent) const {
    return extent.offset <= traits_.capacity_bytes &&
           extent.size <= traits_.capacity_bytes - extent.offset;
  }

  static const Extent& ExtentOf(const WriteOp& op) { return op.destination; }
  static const Extent& ExtentOf(const ReadOp& op) { return op.source; }
  static const MemorySpace& SpaceOf(const WriteOp& op) { return op.source_space; }
  static const MemorySpace& SpaceOf(const ReadOp& op) { return op.destination_space; }

  static absl::Status Copy(const WriteOp& op, std::byte* at) {
    CopyIn(op, at);
    return absl::OkStatus();
  }
  static absl::Status Copy(const ReadOp& op, const std::byte* at) { return CopyOut(op, at); }

  template <typename Op>
  absl::Status RunOne(const Op& op, Stream stream) const {
    if (absl::Status status = ValidateOp(op); !status.ok()) return status;
    if (SpaceOf(op).kind == MemoryKind::kDevice) {
      return internal::Error(absl::StatusCode::kInvalidArgument,
                             "cpu_ram does not reach the memory of device ", SpaceOf(op).device);
    }
    if (!stream.is_none()) {
      return internal::Error(absl::StatusCode::kInvalidArgument,
                             "cpu_ram cannot order a copy behind a stream");
    }
    return Copy(op, Address(ExtentOf(op)) + op.offset);
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
  const FaultIn fault_in_;
  const PageChoice pages_;
  const MemoryRegion region_;
  RegionAllocator allocator_;
  std::optional<BackgroundFaultIn> background_;  // uses the two before it
};

absl::StatusOr<std::unique_ptr<StorageBackend>> CreateOrThrow(const CpuRamOptions& options) {
  const bool at_create = options.fault_in == FaultIn::kAtCreate;
  absl::StatusOr<ExtentAllocator> allocator =
      ExtentAllocator::Create({.capacity_bytes = options.capacity_bytes,
                               .initial_bytes = at_create ? options.capacity_bytes : 0});
  if (!allocator.ok()) return allocator.status();
  const AvailableMemory available = ReadAvailableMemory();
  if (options.capacity_bytes > available.bytes) {
    return internal::Error(absl::StatusCode::kResourceExhausted,
                           "capacity_bytes = ", options.capacity_bytes, ", but only ",
                           available.bytes, " bytes are available (", available.limit, ")");
  }
  absl::StatusOr<MemoryRegion> region = MemoryRegion::Reserve(
      allocator->capacity(), options.sharing == CpuRamOptions::Sharing::kExported
                                 ? MemoryRegion::Kind::kShared
                                 : MemoryRegion::Kind::kPrivate);
  if (!region.ok()) return region.status();
  const PageChoice pages = ChoosePages(options);
  region->AdviseHugePages(pages.huge, 0, region->size());
  if (at_create) {
    if (absl::Status status = region->FaultInOnThreads(0, region->size()); !status.ok())
      return status;
  }
  return std::make_unique<CpuRamBackend>(options.fault_in, pages, *std::move(region),
                                         *std::move(allocator));
}

}  // namespace

absl::StatusOr<std::unique_ptr<StorageBackend>> CreateCpuRamBackend(const CpuRamOptions& options) {
  return internal::WithoutThrowing([&] { return CreateOrThrow(options); });
}

}  // namespace kvcache
