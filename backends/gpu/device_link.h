// DeviceLink: the way to and from one device's memory.
#ifndef KVCACHE_BACKENDS_GPU_DEVICE_LINK_H_
#define KVCACHE_BACKENDS_GPU_DEVICE_LINK_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/backends/gpu/buffer_pool.h"
#include "kvcache/backends/gpu/event_pool.h"
#include "kvcache/backends/gpu/extent_uses.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/backends/gpu/link_batch.h"
#include "kvcache/backends/gpu/link_threads.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/stats/backend_stats.h"
#include "kvcache/core/storage/failure_latch.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

struct DeviceLinkOptions {
  // Smaller pieces are copied by a kernel, others by the device's copy engines. Default: where
  // published figures for PCIe Gen5 cross; //bench:gpu measures it.
  size_t kernel_below_bytes = size_t{24} << 10;
  // Pinned memory, for each direction, through which pageable memory is copied; taken at its first
  // use.
  size_t staging_bytes = size_t{16} << 20;
  // Device memory, for each direction, through which pages are copied to and from the host; taken
  // at its first use. A part of more than a quarter goes without, and so do all when the device has
  // no memory left: kernels then reach over the link, which is slower.
  size_t page_staging_bytes = size_t{64} << 20;
  // Threads that compute checksums and run callbacks. Others, one for each stream, wait for copies.
  uint32_t threads = 4;
};

// Host memory that is registered in steps, over whose ends no copy may go.
struct RegisteredInSteps {
  const std::byte* begin = nullptr;
  size_t bytes = 0;
  size_t step = 0;
};

// Copies batches between a device and the host, or within the device, on streams of its own, one
// for each direction, so that both directions run at once and beside the engine's kernels. Host
// memory is *pinned* (registered; copies run by themselves) or *pageable* (copies go through a
// pinned buffer, in the call).
//
// A copy starts after what is on the caller's stream. Ops of a call end in groups, in their order:
// later work of the caller can wait for a part on its stream (Transfer::WaitPartOn), while the next
// part is still being copied.
//
// Thread-safe. Used by backends, for whose extents it keeps `uses`.
class DeviceLink {
 public:
  // Errors: those of GpuRuntime; kInvalidArgument for options that cannot be. `uses` outlives the
  // link. `lost`: the code with which ops end once the device has failed for good.
  static absl::StatusOr<std::unique_ptr<DeviceLink>> Create(
      std::shared_ptr<GpuRuntime> runtime, int device, const DeviceLinkOptions& options,
      ExtentUses* uses, const RegisteredInSteps& steps = {},
      absl::StatusCode lost = absl::StatusCode::kUnavailable);
  // Waits for the copies under way.
  ~DeviceLink();
  DeviceLink(const DeviceLink&) = delete;
  DeviceLink& operator=(const DeviceLink&) = delete;

  int device() const { return device_; }

  struct Op {
    // Not OK: the op ends with this and does nothing.
    absl::Status status = {};
    uint32_t part = 0;
    CopyDirection direction = CopyDirection::kOnDevice;
    bool pageable = false;
    // Of the backend: what it copies to or from.
    Extent extent = {};
    bool writes_extent = false;
    // [first_piece, first_piece + num_pieces) of the pieces of the call.
    size_t first_piece = 0;
    size_t num_pieces = 0;
    // Called, once, when the host's bytes are there: after a copy to the host, beside one from it.
    // A failure is the op's. May be null.
    std::function<absl::Status()> check = {};
  };
  // `stream`: none, or of any device.
  Transfer Copy(absl::Span<const CopyPiece> pieces, std::vector<Op> ops, Stream stream);

  // Copies between pages on the device and parts of blocks, which are on it too, or pinned.
  struct PagedOp {
    absl::Status status = {};
    uint32_t part = 0;  // the layer
    Extent extent = {};
    TokenRange tokens = {};
    uint32_t skip_tokens = 0;     // of these, the first, which are not copied to pages
    std::byte* memory = nullptr;  // of the part
    size_t bytes = 0;
    std::function<absl::Status()> check = {};
  };
  enum class PagesSide { kGather, kScatter };
  Transfer CopyPages(const PagedKv& kv, absl::Span<const int32_t> page_table, PagesSide side,
                     bool parts_on_host, std::vector<PagedOp> ops, Stream stream);

  // kInvalidArgument for a default stream of a device: copies have no order with it.
  static absl::Status CheckStream(Stream stream);
  // Ends when what is on `stream` now has run.
  Transfer After(Stream stream);

  // OK, or why the device can no longer be used.
  absl::Status status() const { return failure_.status(); }
  // See StorageBackend::OnFailure().
  void OnFailure(std::function<void(const absl::Status&)> callback) {
    failure_.OnFailure(std::move(callback));
  }

  // Appends this link's figures.
  void AddStats(BackendStats* stats) const;

 private:
  // Streams, by what they do. Pages are gathered and scattered beside the copies over the link.
  enum StreamNumber { kToDevice, kToHost, kGather, kScatter };
  static constexpr int kStreams = kScatter + 1;

  // Memory in pieces, used in turn.
  struct Staging {
    struct Chunk {
      MutableBytes memory;
      EventRef busy;  // until it fires; null: whoever uses it waits for that himself
    };
    static constexpr size_t kChunks = 4;

    // Cuts `memory` up.
    void Use(MutableBytes memory);
    bool taken() const { return chunks[0].memory.data() != nullptr; }
    Chunk& Next() { return chunks[next++ % kChunks]; }

    std::array<Chunk, kChunks> chunks;
    size_t next = 0;
  };
  // Held by one copy at a time, also while it waits: those of a direction are in order anyway.
  struct HostStaging {
    Mutex mu;  // taken before uses_.enqueue_mu()
    Staging staging ABSL_GUARDED_BY(mu);
  };
  using Kept = std::vector<std::shared_ptr<const void>>;

  DeviceLink(std::shared_ptr<GpuRuntime> runtime, int device, const DeviceLinkOptions& options,
             ExtentUses* uses, const RegisteredInSteps& steps, absl::StatusCode lost);
  absl::Status Start();

  // What a call comes after: an event behind the work on `stream`, nullptr for none. Refuses when
  // the device has failed.
  absl::StatusOr<EventRef> Fence(Stream stream);
  // Whether copies that have run did so behind it. REQUIRES: they have.
  absl::Status CameAfter(const EventRef& after);
  // What an error of a caller's stream on another device means: nothing about the extents.
  static absl::Status OfOther(absl::Status status);
  // Each enqueues the copies of ops [first, end), of one direction, as one group, and sees to it
  // that they end. StageOut() has ended them when it returns.
  struct Call;
  void EnqueueGroup(const Call& call, size_t first, size_t end);
  void StageIn(const Call& call, size_t first, size_t end);
  void StageOut(const Call& call, size_t first, size_t end);
  struct PagedCall;
  absl::Status PrepareDescriptors(absl::Span<const int32_t> page_table, size_t num_ops,
                                  PagedCall* call);
  void EnqueuePages(PagedCall& call, size_t first, size_t end);

  // Copies between the device and a chunk that holds bytes of ops [first, end).
  absl::Status EnqueueChunk(const Call& call, size_t first, size_t end,
                            absl::Span<const CopyPiece> pieces, CopyDirection direction,
                            const EventRef& event, Kept* kept)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(uses_.enqueue_mu());
  absl::Status TakeHostStaging(HostStaging* staging) ABSL_EXCLUSIVE_LOCKS_REQUIRED(staging->mu);
  // Takes it at its first use; false when the device has no memory for it.
  absl::StatusOr<bool> HavePageStaging(Staging* staging);
  // What goes through the staging of pages at once.
  size_t StageBytes() const { return options_.page_staging_bytes / Staging::kChunks / 4096 * 4096; }

  // Joins neighbours, cuts where registered memory is cut, and chooses how to copy what is left.
  // What the device will read later is kept in `kept`.
  absl::Status EnqueuePieces(absl::Span<const CopyPiece> pieces, CopyDirection direction,
                             StreamNumber stream, Kept* kept, bool join = true);
  absl::Status WaitFor(StreamNumber stream, absl::Span<const EventRef> events);
  // Taken before anything is enqueued, so that what is enqueued has an event for sure, unless the
  // device fails.
  absl::StatusOr<EventRef> TakeEvent();
  absl::Status Record(const EventRef& event, StreamNumber stream);
  // Makes a call, some times if need be, without which nobody would know when what is under way has
  // run.
  static absl::Status Insist(absl::FunctionRef<absl::Status()> call);
  absl::Status Synchronize(const PooledEvent& event);
  // Lets ops [first, end) end with `enqueued`, and not before `event` of `stream` has fired, if
  // there is one: then the caller holds, since it was recorded, the lock under which that stream's
  // events are, so that they are awaited in their order.
  void EndAfter(const std::shared_ptr<LinkBatch>& batch, size_t first, size_t end, GpuStream stream,
                EventRef event, absl::Status enqueued, Kept kept);

  // Starts those checks of ops [first, end) that run beside the copies.
  void CheckBeside(const std::shared_ptr<LinkBatch>& batch, size_t first, size_t end);

  // Notices errors after which the device is of no use; returns `status`, or what it means. The
  // other takes any error for one.
  absl::Status Noticed(absl::Status status);
  absl::Status NoticedForGood(absl::Status status);

  const std::shared_ptr<GpuRuntime> runtime_;
  const int device_;
  const DeviceLinkOptions options_;
  const RegisteredInSteps steps_;
  const absl::StatusCode lost_;
  ExtentUses& uses_;  // its lock makes enqueueing one step
  EventPool events_;
  BufferPool pinned_buffers_;
  BufferPool device_buffers_;
  std::array<GpuStream, kStreams> streams_ = {};

  Mutex after_mu_;  // callers' streams; uses_.enqueue_mu() is for streams_
  HostStaging into_device_;
  HostStaging out_of_device_;
  std::array<Staging, 2> page_staging_;  // by PagesSide; guarded by uses_.enqueue_mu()

  std::atomic<uint64_t> batched_bytes_ = 0;
  std::atomic<uint64_t> kernel_bytes_ = 0;
  std::atomic<uint64_t> staged_bytes_ = 0;
  std::atomic<uint64_t> paged_bytes_ = 0;

  FailureLatch failure_;
  std::unique_ptr<LinkThreads> threads_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_DEVICE_LINK_H_
