#ifndef KVCACHE_BACKENDS_GPU_BUFFER_POOL_H_
#define KVCACHE_BACKENDS_GPU_BUFFER_POOL_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

// A buffer that nobody else uses while anybody holds it.
using BufferRef = std::shared_ptr<const MutableBytes>;

// Small buffers of one kind of memory, for what a device reads when it gets there: lists of pieces,
// page tables. Making one takes longer than using it, so they are used again. There are as many as
// were ever in use at once. Those that are held may outlive the pool. Thread-safe.
class BufferPool {
 public:
  // Of host memory that is registered in a device's context, or of the device's.
  static BufferPool Pinned(std::shared_ptr<GpuRuntime> runtime, int device);
  static BufferPool OnDevice(std::shared_ptr<GpuRuntime> runtime, int device);

  // At least `bytes`, aligned to 64 bytes. Errors: those of GpuRuntime; kResourceExhausted when
  // there is no memory.
  absl::StatusOr<BufferRef> Take(size_t bytes);

 private:
  class Spares;
  explicit BufferPool(std::shared_ptr<Spares> spares) : spares_(std::move(spares)) {}

  const std::shared_ptr<Spares> spares_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_BUFFER_POOL_H_
