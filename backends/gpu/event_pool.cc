#include "kvcache/backends/gpu/event_pool.h"

#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {

// Lives as long as the pool or any of its events.
class EventPool::Spares {
 public:
  explicit Spares(std::shared_ptr<GpuRuntime> runtime) : runtime_(std::move(runtime)) {}
  ~Spares() {
    for (const auto& [device, events] : spares_) {
      for (GpuEvent event : events) runtime_->DestroyEvent(device, event).IgnoreError();
    }
  }

  absl::StatusOr<GpuEvent> Take(int device) {
    {
      MutexLock lock(mu_);
      std::vector<GpuEvent>& events = spares_[device];
      if (!events.empty()) {
        const GpuEvent event = events.back();
        events.pop_back();
        return event;
      }
    }
    return runtime_->CreateEvent(device);
  }

  void Return(const PooledEvent& event) {
    MutexLock lock(mu_);
    spares_[event.device].push_back(event.handle);
  }

 private:
  const std::shared_ptr<GpuRuntime> runtime_;
  Mutex mu_;
  absl::flat_hash_map<int, std::vector<GpuEvent>> spares_ ABSL_GUARDED_BY(mu_);
};

EventPool::EventPool(std::shared_ptr<GpuRuntime> runtime)
    : spares_(std::make_shared<Spares>(std::move(runtime))) {}

absl::StatusOr<EventRef> EventPool::Take(int device) {
  const absl::StatusOr<GpuEvent> event = spares_->Take(device);
  if (!event.ok()) return event.status();
  return EventRef(new PooledEvent{device, *event}, [spares = spares_](const PooledEvent* event) {
    spares->Return(*event);
    delete event;
  });
}

}  // namespace kvcache
