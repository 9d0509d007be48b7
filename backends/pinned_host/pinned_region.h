#ifndef KVCACHE_BACKENDS_PINNED_HOST_PINNED_REGION_H_
#define KVCACHE_BACKENDS_PINNED_HOST_PINNED_REGION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/backends/host_memory/memory_region.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/extent_allocator.h"

namespace kvcache {

struct PinnedRegionOptions {
  size_t capacity_bytes = 0;
  size_t chunk_bytes = 0;
  std::optional<int> numa_node = std::nullopt;
  bool pageable_if_refused = false;
  int device = 0;  // in whose context it is pinned
};

// Memory that is faulted in and registered with a device's driver chunk by chunk: the first before
// Create() returns, the others by a thread of its own. Hands out extents of what is registered; who
// asks for more than there is so far waits for the next chunk.
//
// When registering is refused, either the region ends there, or, if pageable memory will do, the
// rest is handed out unregistered. Thread-safe.
class PinnedRegion {
 public:
  // Null `runtime`: registering is refused. Errors: kInvalidArgument for options that cannot be, or
  // a NUMA node that is not there; kPermissionDenied or kUnimplemented where nobody may choose a
  // node; kResourceExhausted when there is not so much memory; what refused to register the first
  // chunk, unless pageable memory will do.
  static absl::StatusOr<std::unique_ptr<PinnedRegion>> Create(std::shared_ptr<GpuRuntime> runtime,
                                                              const PinnedRegionOptions& options);
  ~PinnedRegion();
  PinnedRegion(const PinnedRegion&) = delete;
  PinnedRegion& operator=(const PinnedRegion&) = delete;

  // Like ExtentAllocator's; kResourceExhausted names what ended the region early.
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner = 0);
  void Free(const Extent& extent);
  void SetOwner(const Extent& extent, uint32_t owner);
  size_t List(const Extent& from, bool around, size_t bytes, absl::Span<Neighbour> out);

  std::byte* data() const { return region_.data(); }
  size_t capacity() const { return capacity_; }
  size_t alignment() const { return alignment_; }
  size_t chunk_bytes() const { return options_.chunk_bytes; }
  bool IsPinned(const Extent& extent) const;

  struct Progress {
    size_t pinned_bytes = 0;
    absl::Duration pinning = absl::ZeroDuration();  // time spent on it
    absl::Status refused = absl::OkStatus();        // what ended it early
    bool ended = false;
  };
  Progress progress() const;
  // Blocks until nothing more will be pinned.
  void WaitUntilPinned() const;

 private:
  PinnedRegion(std::shared_ptr<GpuRuntime> runtime, const PinnedRegionOptions& options,
               MemoryRegion region, ExtentAllocator allocator);
  absl::Status BindToNode() const;
  // Faults in and registers what begins at `offset`.
  absl::Status PinChunk(size_t offset);
  // Hands out the chunk, or notes why not; false when that was the last.
  bool Note(size_t offset, const absl::Status& pinned);
  void PinRest();

  const std::shared_ptr<GpuRuntime> runtime_;
  const PinnedRegionOptions options_;
  const MemoryRegion region_;
  const size_t capacity_;
  const size_t alignment_;

  mutable Mutex mu_;
  mutable CondVar changed_;
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mu_);
  Progress progress_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_PINNED_HOST_PINNED_REGION_H_
