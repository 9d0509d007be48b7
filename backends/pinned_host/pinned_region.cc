#include "kvcache/backends/pinned_host/pinned_region.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/host_memory/available_memory.h"

namespace kvcache {

absl::StatusOr<std::unique_ptr<PinnedRegion>> PinnedRegion::Create(
    std::shared_ptr<GpuRuntime> runtime, const PinnedRegionOptions& options) {
  constexpr size_t kHugePage = size_t{2} << 20;
  if (options.chunk_bytes == 0 || options.chunk_bytes % kHugePage != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_bytes: ", options.chunk_bytes, " is not a multiple of 2 MiB"));
  }
  absl::StatusOr<ExtentAllocator> allocator =
      ExtentAllocator::Create({.capacity_bytes = options.capacity_bytes, .initial_bytes = 0});
  if (!allocator.ok()) return allocator.status();
  const AvailableMemory available = ReadAvailableMemory(options.numa_node);
  if (options.capacity_bytes > available.bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("capacity_bytes = ", options.capacity_bytes, ", but only ", available.bytes,
                     " bytes are available (", available.limit, ")"));
  }
  absl::StatusOr<MemoryRegion> memory = MemoryRegion::Reserve(allocator->capacity());
  if (!memory.ok()) return memory.status();
  std::unique_ptr<PinnedRegion> region(
      new PinnedRegion(std::move(runtime), options, *std::move(memory), *std::move(allocator)));
  if (absl::Status status = region->BindToNode(); !status.ok()) return status;
  const absl::Status pinned = region->PinChunk(0);
  if (!pinned.ok() && !options.pageable_if_refused) return pinned;
  if (!region->Note(0, pinned)) return region;
  try {
    region->thread_ = std::thread([region = region.get()] { region->PinRest(); });
  } catch (const std::system_error& error) {
    const absl::Status no_thread =
        absl::ResourceExhaustedError(absl::StrCat("no thread to pin memory: ", error.what()));
    if (!options.pageable_if_refused) return no_thread;
    region->Note(options.chunk_bytes, no_thread);
  }
  return region;
}

PinnedRegion::PinnedRegion(std::shared_ptr<GpuRuntime> runtime, const PinnedRegionOptions& options,
                           MemoryRegion region, ExtentAllocator allocator)
    : runtime_(std::move(runtime)),
      options_(options),
      region_(std::move(region)),
      capacity_(allocator.capacity()),
      alignment_(allocator.alignment()),
      allocator_(std::move(allocator)) {
  region_.AdviseHugePages(true, 0, region_.size());
}

PinnedRegion::~PinnedRegion() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  const size_t pinned_bytes = progress().pinned_bytes;
  for (size_t offset = 0; offset < pinned_bytes; offset += options_.chunk_bytes) {
    runtime_->UnregisterHost(options_.device, data() + offset).IgnoreError();
  }
}

absl::Status PinnedRegion::BindToNode() const {
  if (!options_.numa_node.has_value()) return absl::OkStatus();
  const int node = *options_.numa_node;
  constexpr int kMostNodes = 1024;
  if (node < 0 || node >= kMostNodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("numa_node: ", node, " is not 0 to ", kMostNodes - 1));
  }
  constexpr int kBits = 8 * sizeof(unsigned long);
  unsigned long nodes[kMostNodes / kBits + 1] = {};
  nodes[node / kBits] = 1ul << node % kBits;
  if (syscall(SYS_mbind, region_.data(), region_.size(), MPOL_BIND, nodes, kMostNodes + 1, 0) !=
      0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("numa_node: ", node, ": mbind"));
  }
  return absl::OkStatus();
}

absl::Status PinnedRegion::PinChunk(size_t offset) {
  if (runtime_ == nullptr) return absl::UnavailableError("no GPU runtime to pin memory with");
  const size_t bytes = std::min(options_.chunk_bytes, region_.size() - offset);
  const auto start = std::chrono::steady_clock::now();
  // Somebody may soon be killed for want of memory.
  constexpr size_t kLeaveFree = size_t{256} << 20;
  const AvailableMemory available = ReadAvailableMemory(options_.numa_node);
  absl::Status status;
  if (available.bytes < kLeaveFree || available.bytes - kLeaveFree < bytes) {
    status = absl::ResourceExhaustedError(
        absl::StrCat("only ", available.bytes, " bytes are available (", available.limit, ")"));
  }
  if (status.ok()) status = region_.FaultInOnThreads(offset, bytes);
  if (status.ok()) status = runtime_->RegisterHost(options_.device, {data() + offset, bytes});
  const auto took = std::chrono::steady_clock::now() - start;
  MutexLock lock(mu_);
  progress_.pinning += absl::FromChrono(took);
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("pinning ", bytes, " bytes at offset ", offset,
                                                  ": ", status.message()));
}

bool PinnedRegion::Note(size_t offset, const absl::Status& pinned) {
  MutexLock lock(mu_);
  if (pinned.ok()) {
    progress_.pinned_bytes = std::min(offset + options_.chunk_bytes, region_.size());
    allocator_.GrowTo(progress_.pinned_bytes);
    progress_.ended = progress_.pinned_bytes == region_.size();
  } else {
    progress_.refused = pinned;
    progress_.ended = true;
    if (options_.pageable_if_refused) allocator_.GrowTo(capacity_);
  }
  changed_.NotifyAll();
  return !progress_.ended;
}

void PinnedRegion::PinRest() {
  runtime_->UseThreadFor(options_.device);
  for (size_t offset = options_.chunk_bytes;; offset += options_.chunk_bytes) {
    {
      MutexLock lock(mu_);
      if (stopping_) return;
    }
    if (!Note(offset, PinChunk(offset))) return;
  }
}

absl::StatusOr<Extent> PinnedRegion::Allocate(size_t bytes, uint32_t owner) {
  MutexLock lock(mu_);
  for (;;) {
    const size_t grown = allocator_.grown_bytes();
    absl::StatusOr<Extent> extent = allocator_.Allocate(bytes, owner);
    if (extent.ok() || !absl::IsResourceExhausted(extent.status())) return extent;
    if (progress_.ended && progress_.refused.ok()) return extent;
    if (progress_.ended) {
      return absl::ResourceExhaustedError(
          absl::StrCat(extent.status().message(), "; of ", capacity_, " bytes only ", grown,
                       " could be pinned: ", progress_.refused.message()));
    }
    while (!progress_.ended && allocator_.grown_bytes() == grown) changed_.Wait(mu_);
  }
}

void PinnedRegion::Free(const Extent& extent) {
  MutexLock lock(mu_);
  allocator_.Free(extent);
}

void PinnedRegion::SetOwner(const Extent& extent, uint32_t owner) {
  MutexLock lock(mu_);
  allocator_.SetOwner(extent, owner);
}

size_t PinnedRegion::List(const Extent& from, bool around, size_t bytes,
                          absl::Span<Neighbour> out) {
  MutexLock lock(mu_);
  return allocator_.List(from, around, bytes, out);
}

bool PinnedRegion::IsPinned(const Extent& extent) const {
  MutexLock lock(mu_);
  return extent.offset + extent.size <= progress_.pinned_bytes;
}

PinnedRegion::Progress PinnedRegion::progress() const {
  MutexLock lock(mu_);
  return progress_;
}

void PinnedRegion::WaitUntilPinned() const {
  MutexLock lock(mu_);
  while (!progress_.ended) changed_.Wait(mu_);
}

}  // namespace kvcache
