#ifndef KVCACHE_BACKENDS_GPU_LINK_BATCH_H_
#define KVCACHE_BACKENDS_GPU_LINK_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/backends/gpu/event_pool.h"
#include "kvcache/backends/gpu/extent_uses.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

// The ops of one call to a DeviceLink on their way: what each still waits for, and the events that
// tell a stream which parts have been copied. Thread-safe.
class LinkBatch {
 public:
  struct Op {
    uint32_t part = 0;
    Extent extent = {};
    // Compares or computes checksums; may be null.
    std::function<absl::Status()> check = {};
    // Whether the check follows the copy, and then only one that went well, rather than running
    // beside it as a step of its own.
    bool check_after_copy = false;
  };

  // `uses` outlives all ops. With `ordered`, streams can wait for the transfer by its marks.
  // `after`: what the copies come after, or null.
  LinkBatch(std::shared_ptr<GpuRuntime> runtime, ExtentUses* uses, std::vector<Op> ops,
            bool ordered, EventRef after);

  Transfer transfer() const { return source_.transfer(); }
  const EventRef& after() const { return after_; }
  const Op& op(size_t i) const { return states_[i].op; }
  // Whether a step of the op is to run its check.
  bool checks_beside(size_t i) const { return states_[i].checks_beside; }
  // The op's extent is in use, until the op ends. REQUIRES: it is not yet.
  void ExtentBegun(size_t i) { states_[i].extent_begun = true; }
  bool extent_begun(size_t i) const { return states_[i].extent_begun; }

  // `event` fires when everything of the ops [first, end) has been copied, and earlier work of the
  // same stream.
  void Mark(size_t first, size_t end, int stream, EventRef event);

  // A step of the op has ended: its copy, or its check. Ends the op after the last. The caller
  // holds no lock.
  void EndStep(size_t i, const absl::Status& status);

 private:
  struct MarkedGroup {
    int stream;
    EventRef event;
    std::vector<uint32_t> parts;
  };
  // What the transfer's hook needs: it must not keep the batch, which keeps the transfer.
  struct Marks {
    Mutex mu;
    std::vector<MarkedGroup> groups ABSL_GUARDED_BY(mu);
    absl::Status Order(GpuRuntime& runtime, Stream stream, int64_t part);
  };
  struct State {
    Op op;
    bool checks_beside = false;  // stays when the op, which may have ended, has no check any more
    int steps_left = 0;
    absl::Status status;
    bool extent_begun = false;
  };

  static TransferSource::Hooks MakeHooks(std::shared_ptr<Marks> marks,
                                         std::shared_ptr<GpuRuntime> runtime);
  static std::vector<uint32_t> PartsOf(absl::Span<const Op> ops);

  ExtentUses& uses_;
  const EventRef after_;
  const std::shared_ptr<Marks> marks_;
  const TransferSource source_;
  Mutex mu_;  // of steps_left and status
  std::vector<State> states_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_LINK_BATCH_H_
