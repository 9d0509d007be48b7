#ifndef KVCACHE_BACKENDS_GPU_EXTENT_USES_H_
#define KVCACHE_BACKENDS_GPU_EXTENT_USES_H_

#include <array>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "kvcache/backends/gpu/event_pool.h"
#include "kvcache/core/extent.h"
#include "kvcache/core/mutex.h"

namespace kvcache {

// Which copies use the extents of a backend, and the events that fire when they have run: so that
// copies of an extent on different streams run in the order in which they were asked for, and no
// extent is handed out again before its last copy has ended. Knows only extents in use.
//
// Its lock is also what makes enqueueing a batch one step.
class ExtentUses {
 public:
  // Streams of the link's own, numbered.
  static constexpr int kStreams = 4;

  // `free` gives an extent back to its allocator.
  explicit ExtentUses(std::function<void(const Extent&)> free) : free_(std::move(free)) {}

  Mutex& mu() ABSL_LOCK_RETURNED(mu_) { return mu_; }

  // A copy on `stream` will use the extent. Appends the events of other streams that it has to wait
  // for: of the last write, and for a write those of the reads since.
  void Begin(const Extent& extent, int stream, bool write, std::vector<EventRef>* wait_for)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // That copy's event was recorded. REQUIRES: Begin() before, End() not yet.
  void SetEvent(const Extent& extent, int stream, bool write, const EventRef& event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The copy has ended.
  void End(const Extent& extent) ABSL_LOCKS_EXCLUDED(mu_);

  // Events that a copy by this processor has to wait for.
  std::vector<EventRef> Conflicts(const Extent& extent, bool write) ABSL_LOCKS_EXCLUDED(mu_);

  // Gives the extent back, now or when its last copy has ended.
  void Free(const Extent& extent) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Use {
    int copies = 0;
    bool freed = false;
    int write_stream = -1;
    EventRef last_write;
    std::array<EventRef, kStreams> last_reads;  // since then
  };

  const std::function<void(const Extent&)> free_;
  Mutex mu_;
  absl::flat_hash_map<size_t, Use> uses_ ABSL_GUARDED_BY(mu_);  // by offset
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_EXTENT_USES_H_
