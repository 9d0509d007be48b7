#ifndef KVCACHE_BACKENDS_GPU_EVENT_POOL_H_
#define KVCACHE_BACKENDS_GPU_EVENT_POOL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/gpu_runtime.h"

namespace kvcache {

// An event that nobody else records while anybody holds it.
struct PooledEvent {
  int device = 0;
  GpuEvent handle = nullptr;
};
using EventRef = std::shared_ptr<const PooledEvent>;

// Events to use again and again, since making one takes longer than recording it. Those that are
// held may outlive the pool. Thread-safe.
class EventPool {
 public:
  explicit EventPool(std::shared_ptr<GpuRuntime> runtime);

  // Errors: those of GpuRuntime.
  absl::StatusOr<EventRef> Take(int device);

 private:
  class Spares;
  const std::shared_ptr<Spares> spares_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_EVENT_POOL_H_
