#ifndef KVCACHE_BACKENDS_GPU_PINNED_BUFFERS_H_
#define KVCACHE_BACKENDS_GPU_PINNED_BUFFERS_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/memory_space.h"

namespace kvcache {

// Small buffers of registered host memory for what a device reads when it gets there: lists of
// pieces, page tables. Registering one takes longer than using it, so they are used again. There
// are as many as were ever in use at once. Those that are held may outlive the pool. Thread-safe.
class PinnedBuffers {
 public:
  explicit PinnedBuffers(std::shared_ptr<GpuRuntime> runtime);

  // At least `bytes`, aligned to 64 bytes. Errors: those of GpuRuntime; kResourceExhausted when
  // there is no memory.
  absl::StatusOr<std::shared_ptr<const MutableBytes>> Take(size_t bytes);

 private:
  class Spares;
  const std::shared_ptr<Spares> spares_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_PINNED_BUFFERS_H_
