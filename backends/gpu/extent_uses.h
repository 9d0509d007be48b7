#ifndef KVCACHE_BACKENDS_GPU_EXTENT_USES_H_
#define KVCACHE_BACKENDS_GPU_EXTENT_USES_H_

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "kvcache/backends/gpu/event_pool.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/storage/extent.h"

namespace kvcache {

// Which copies use the extents of a backend, and the events that fire when they have run: so that
// copies of an extent on different streams, of any device, run in the order in which they were
// asked for, and no extent is handed out again before its last copy has ended. Knows only extents
// in use. Thread-safe.
class ExtentUses {
 public:
  // `free` gives an extent back to its allocator.
  explicit ExtentUses(std::function<void(const Extent&)> free) : free_(std::move(free)) {}

  // Makes enqueueing a batch one step: held from Begin() to SetEvent(), also over calls of the
  // driver that may block. Free() and End() do not need it.
  Mutex& enqueue_mu() ABSL_LOCK_RETURNED(enqueue_mu_) { return enqueue_mu_; }

  // A copy on `stream` will use the extent. Appends the events of other streams that it has to wait
  // for: of the last write, and for a write those of the reads since.
  void Begin(const Extent& extent, GpuStream stream, bool write, std::vector<EventRef>* wait_for);
  // That copy's event was recorded. REQUIRES: Begin() before, End() not yet.
  void SetEvent(const Extent& extent, GpuStream stream, bool write, const EventRef& event);
  // The copy has ended.
  void End(const Extent& extent);

  // Events that a copy by this processor has to wait for.
  std::vector<EventRef> Conflicts(const Extent& extent, bool write);

  // Gives the extent back, now or when its last copy has ended.
  void Free(const Extent& extent);

 private:
  struct StreamEvent {
    GpuStream stream = nullptr;
    EventRef event;
  };
  struct Use {
    int copies = 0;
    bool freed = false;
    StreamEvent last_write;
    absl::InlinedVector<StreamEvent, 2> last_reads;  // since then, the last of each stream
  };

  const std::function<void(const Extent&)> free_;
  Mutex enqueue_mu_;  // before mu_
  Mutex mu_;
  absl::flat_hash_map<size_t, Use> uses_ ABSL_GUARDED_BY(mu_);  // by offset
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_EXTENT_USES_H_
