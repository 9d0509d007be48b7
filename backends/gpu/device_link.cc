#include "kvcache/backends/gpu/device_link.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/gpu/device_link_calls.h"

namespace kvcache {
namespace {

// The more groups, the earlier a stream can go on, and the more events and calls there are.
constexpr size_t kMostGroups = 64;

// A call that was refused did nothing, and what refused it may have passed.
constexpr int kTries = 3;

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceLink>> DeviceLink::Create(
    std::shared_ptr<GpuRuntime> runtime, int device, const DeviceLinkOptions& options,
    ExtentUses* uses, const RegisteredInSteps& steps, absl::StatusCode lost) {
  if (options.threads == 0) return absl::InvalidArgumentError("threads: 0");
  if (options.kernel_below_bytes > kMostKernelBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kernel_below_bytes: ", options.kernel_below_bytes, ", more than ", kMostKernelBytes));
  }
  constexpr size_t kLeast = size_t{64} << 10;
  if (options.staging_bytes < kLeast || options.page_staging_bytes < kLeast) {
    return absl::InvalidArgumentError(absl::StrCat(
        "staging_bytes: ", options.staging_bytes,
        " and page_staging_bytes: ", options.page_staging_bytes, " must be at least ", kLeast));
  }
  std::unique_ptr<DeviceLink> link(
      new DeviceLink(std::move(runtime), device, options, uses, steps, lost));
  if (absl::Status status = link->Start(); !status.ok()) return status;
  return link;
}

DeviceLink::DeviceLink(std::shared_ptr<GpuRuntime> runtime, int device,
                       const DeviceLinkOptions& options, ExtentUses* uses,
                       const RegisteredInSteps& steps, absl::StatusCode lost)
    : runtime_(std::move(runtime)),
      device_(device),
      options_(options),
      steps_(steps),
      lost_(lost),
      uses_(*uses),
      events_(runtime_),
      pinned_buffers_(BufferPool::Pinned(runtime_, device)),
      device_buffers_(BufferPool::OnDevice(runtime_, device)) {}

absl::Status DeviceLink::Start() {
  for (GpuStream& stream : streams_) {
    absl::StatusOr<GpuStream> created = runtime_->CreateStream(device_);
    if (!created.ok()) return created.status();
    stream = *created;
  }
  threads_ = std::make_unique<LinkThreads>(LinkThreads::Options{
      .workers = options_.threads,
      .begin = [this] { runtime_->UseThreadFor(device_); },
      .wait =
          [this](const PooledEvent& event) {
            absl::Status fired = Synchronize(event);
            return event.device == device_ ? NoticedForGood(std::move(fired)) : fired;
          },
  });
  if (absl::Status status = threads_->Start(); !status.ok()) return status;
  // At their first use these might wait for the device's work, or find no memory there.
  if (absl::Status status = runtime_->LoadKernels(device_); !status.ok()) return status;
  return pinned_buffers_.Take(1).status();
}

DeviceLink::~DeviceLink() {
  // They may still notice that the device has failed, which takes one of them to tell.
  if (threads_ != nullptr) threads_->End();
  for (GpuStream stream : streams_) {
    if (stream != nullptr) runtime_->DestroyStream(device_, stream).IgnoreError();
  }
  for (HostStaging* host : {&into_device_, &out_of_device_}) {
    MutexLock lock(host->mu);
    if (!host->staging.taken()) continue;
    std::byte* const memory = host->staging.chunks[0].memory.data();
    runtime_->UnregisterHost(device_, memory).IgnoreError();
    std::free(memory);
  }
  for (Staging& staging : page_staging_) {
    if (!staging.taken()) continue;
    runtime_->FreeDevice(device_, staging.chunks[0].memory.data()).IgnoreError();
  }
}

// --- Failures

absl::Status DeviceLink::Noticed(absl::Status status) {
  if (status.ok() || GpuRuntime::DidNothing(status)) return status;
  const bool first = failure_.Set(absl::Status(
      lost_, absl::StrCat("device ", device_, " has failed for good: ", status.ToString())));
  // Not here: the caller may hold locks that the callback wants.
  if (first) threads_->Run([this] { failure_.Tell(); });
  return failure_.status();
}

// --- Copies

absl::Status DeviceLink::CheckStream(Stream stream) {
  if (stream.space.kind != MemoryKind::kDevice) return absl::OkStatus();
  // 1 and 2: cudaStreamLegacy and cudaStreamPerThread.
  if (reinterpret_cast<uintptr_t>(stream.handle) > 2) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "stream: a default stream of a device; use one of your own, or Stream::None()");
}

absl::StatusOr<EventRef> DeviceLink::Fence(Stream stream) {
  if (absl::Status failed = status(); !failed.ok()) return failed;
  if (absl::Status status = CheckStream(stream); !status.ok()) return status;
  if (stream.is_none()) return EventRef();
  if (stream.space.kind != MemoryKind::kDevice) {
    return absl::InvalidArgumentError("stream: a handle, but not of a device");
  }
  // What fails here may be another device than the link's.
  absl::StatusOr<EventRef> event = events_.Take(stream.space.device);
  absl::Status status = event.status();
  if (status.ok()) {
    status = runtime_->Record(stream.space.device, (*event)->handle, stream.handle);
  }
  status = stream.space.device == device_ ? Noticed(std::move(status)) : OfOther(std::move(status));
  if (!status.ok()) return status;
  return event;
}

absl::Status DeviceLink::WaitFor(StreamNumber stream, absl::Span<const EventRef> events) {
  for (size_t i = 0; i < events.size(); ++i) {
    if (events[i] == nullptr || (i > 0 && events[i] == events[i - 1])) continue;
    absl::Status status = runtime_->MakeWait(device_, streams_[stream], events[i]->handle);
    // A device that has failed copies nothing any more: its events are nothing to wait for.
    if (!status.ok() && !GpuRuntime::DidNothing(status) && events[i]->device != device_) continue;
    status = Noticed(std::move(status));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<EventRef> DeviceLink::TakeEvent() {
  absl::StatusOr<EventRef> event = events_.Take(device_);
  if (!event.ok()) return Noticed(event.status());
  return event;
}

absl::Status DeviceLink::Record(const EventRef& event, StreamNumber stream) {
  return NoticedForGood(
      Insist([&] { return runtime_->Record(device_, event->handle, streams_[stream]); }));
}

absl::Status DeviceLink::Insist(absl::FunctionRef<absl::Status()> call) {
  absl::Status status = call();
  for (int tries = 1; tries < kTries && GpuRuntime::DidNothing(status); ++tries) status = call();
  return status;
}

absl::Status DeviceLink::Synchronize(const PooledEvent& event) {
  return Insist([&] { return runtime_->Synchronize(event.device, event.handle); });
}

// Nobody would know when what is under way has run.
absl::Status DeviceLink::NoticedForGood(absl::Status status) {
  if (!GpuRuntime::DidNothing(status)) return Noticed(std::move(status));
  return Noticed(absl::InternalError(status.ToString()));
}

absl::Status DeviceLink::EnqueuePieces(absl::Span<const CopyPiece> pieces, CopyDirection direction,
                                       StreamNumber stream, Kept* kept, bool join) {
  std::vector<CopyPiece> batched;
  std::vector<CopyPiece> by_kernel;
  size_t batched_bytes = 0;
  size_t kernel_bytes = 0;
  bool joined_any = false;
  const auto add = [&](const CopyPiece& piece) {
    if (piece.bytes < options_.kernel_below_bytes) {
      by_kernel.push_back(piece);
      kernel_bytes += piece.bytes;
    } else {
      batched.push_back(piece);
      batched_bytes += piece.bytes;
    }
  };
  for (size_t i = 0; i < pieces.size();) {
    CopyPiece joined = pieces[i++];
    while (join && i < pieces.size() && pieces[i].to == joined.to + joined.bytes &&
           pieces[i].from == joined.from + joined.bytes) {
      joined.bytes += pieces[i++].bytes;
      joined_any = true;
    }
    // Where the next step of registered memory begins; the device's side has none.
    const std::byte* const host = direction == CopyDirection::kToDevice ? joined.from : joined.to;
    const bool in_steps = direction != CopyDirection::kOnDevice && steps_.step > 0 &&
                          host >= steps_.begin && host < steps_.begin + steps_.bytes;
    size_t to_next = in_steps ? steps_.step - (host - steps_.begin) % steps_.step
                              : std::numeric_limits<size_t>::max();
    while (joined.bytes > 0) {
      const size_t bytes = std::min(joined.bytes, to_next);
      add({joined.to, joined.from, bytes});
      joined = {joined.to + bytes, joined.from + bytes, joined.bytes - bytes};
      to_next = steps_.step;
    }
  }
  if (!batched.empty()) {
    absl::Status status =
        Noticed(runtime_->CopyBatch(device_, batched, direction, streams_[stream]));
    // Neighbours may be of two allocations, which no copy may go over.
    if (absl::IsInvalidArgument(status) && joined_any) {
      return EnqueuePieces(pieces, direction, stream, kept, /*join=*/false);
    }
    if (!status.ok()) return status;
    batched_bytes_.fetch_add(batched_bytes, std::memory_order_relaxed);
  }
  if (!by_kernel.empty()) {
    const size_t list_bytes = by_kernel.size() * sizeof(CopyPiece);
    const absl::StatusOr<BufferRef> list = pinned_buffers_.Take(list_bytes);
    if (!list.ok()) return Noticed(list.status());
    auto* const copies = reinterpret_cast<CopyPiece*>((*list)->data());
    std::copy(by_kernel.begin(), by_kernel.end(), copies);
    kept->push_back(*list);
    absl::Status status =
        Noticed(runtime_->CopyByKernel(device_, {copies, by_kernel.size()}, streams_[stream]));
    if (!status.ok()) return status;
    kernel_bytes_.fetch_add(kernel_bytes, std::memory_order_relaxed);
  }
  return absl::OkStatus();
}

void DeviceLink::CheckBeside(const std::shared_ptr<LinkBatch>& batch, size_t first, size_t end) {
  for (size_t i = first; i < end; ++i) {
    if (!batch->checks_beside(i)) continue;
    threads_->Run([batch, i] { batch->EndStep(i, batch->op(i).check()); });
  }
}

void DeviceLink::EndAfter(const std::shared_ptr<LinkBatch>& batch, size_t first, size_t end,
                          GpuStream stream, EventRef event, absl::Status enqueued, Kept kept) {
  auto end_ops = [this, batch, first, end, enqueued = std::move(enqueued),
                  kept = std::move(kept)](const absl::Status& fired) {
    absl::Status status = enqueued.ok() ? fired : enqueued;
    if (status.ok()) status = CameAfter(batch->after());
    for (size_t i = first; i < end; ++i) batch->EndStep(i, status);
  };
  if (event != nullptr) {
    threads_->RunAfter(stream, std::move(event), std::move(end_ops));
  } else {
    threads_->Run([end_ops = std::move(end_ops)] { end_ops(absl::OkStatus()); });
  }
}

// Copies may go on when the other device fails before it gets there: of what was not made yet.
absl::Status DeviceLink::CameAfter(const EventRef& after) {
  if (after == nullptr || after->device == device_) return absl::OkStatus();
  return OfOther(Synchronize(*after));
}

absl::Status DeviceLink::OfOther(absl::Status status) {
  if (status.ok() || absl::IsInvalidArgument(status)) return status;
  return absl::FailedPreconditionError(
      absl::StrCat("the stream's device is of no use: ", status.ToString()));
}

void DeviceLink::EnqueueGroup(const Call& call, size_t first, size_t end) {
  const CopyDirection direction = call.ops[first].direction;
  const StreamNumber stream = direction == CopyDirection::kToDevice ? kToDevice
                              : direction == CopyDirection::kToHost ? kToHost
                                                                    : kGather;
  Kept kept;
  const absl::StatusOr<EventRef> event = TakeEvent();
  if (event.ok()) {
    MutexLock lock(uses_.enqueue_mu());
    std::vector<EventRef> wait_for = {call.after};
    std::vector<CopyPiece> pieces;
    for (size_t i = first; i < end; ++i) {
      const Op& op = call.ops[i];
      uses_.Begin(op.extent, streams_[stream], op.writes_extent, &wait_for);
      call.batch->ExtentBegun(i);
      const auto of_op = call.pieces.subspan(op.first_piece, op.num_pieces);
      pieces.insert(pieces.end(), of_op.begin(), of_op.end());
    }
    absl::Status status = WaitFor(stream, wait_for);
    const bool enqueued = status.ok();
    if (enqueued) status = EnqueuePieces(pieces, direction, stream, &kept);
    // Also after a refusal: what was enqueued before it runs all the same.
    status.Update(Record(*event, stream));
    for (size_t i = first; i < end && enqueued; ++i) {
      uses_.SetEvent(call.ops[i].extent, streams_[stream], call.ops[i].writes_extent, *event);
    }
    call.batch->Mark(first, end, stream, *event);
    EndAfter(call.batch, first, end, streams_[stream], *event, std::move(status), std::move(kept));
  } else {
    EndAfter(call.batch, first, end, nullptr, nullptr, event.status(), {});
  }
  CheckBeside(call.batch, first, end);
}

Transfer DeviceLink::Copy(absl::Span<const CopyPiece> pieces, std::vector<Op> ops, Stream stream) {
  const absl::StatusOr<EventRef> after = Fence(stream);
  std::vector<LinkBatch::Op> states;
  size_t total_bytes = 0;
  bool ordered = true;
  for (Op& op : ops) {
    op.status.Update(after.status());
    states.push_back({op.part, op.extent, op.status.ok() ? std::move(op.check) : nullptr,
                      op.direction == CopyDirection::kToHost});
    // What a thread of the host delivers is in no stream's order; it has ended when this returns.
    ordered &= !(op.pageable && op.direction == CopyDirection::kToHost);
    for (const CopyPiece& piece : pieces.subspan(op.first_piece, op.num_pieces)) {
      total_bytes += piece.bytes;
    }
  }
  const EventRef fence = after.ok() ? *after : nullptr;
  const auto batch =
      std::make_shared<LinkBatch>(runtime_, &uses_, std::move(states), ordered, fence);
  const Call call = {batch, pieces, ops, fence};
  const size_t group_bytes = total_bytes / kMostGroups;
  for (size_t first = 0; first < ops.size();) {
    if (!ops[first].status.ok()) {
      batch->EndStep(first, ops[first].status);
      ++first;
      continue;
    }
    size_t bytes = 0;
    size_t end = first;
    while (end < ops.size() && ops[end].status.ok() && ops[end].direction == ops[first].direction &&
           ops[end].pageable == ops[first].pageable &&
           (ops[end].part == ops[first].part || bytes < group_bytes)) {
      for (const CopyPiece& piece : pieces.subspan(ops[end].first_piece, ops[end].num_pieces)) {
        bytes += piece.bytes;
      }
      ++end;
    }
    if (!ops[first].pageable) {
      EnqueueGroup(call, first, end);
    } else if (ops[first].direction == CopyDirection::kToDevice) {
      StageIn(call, first, end);
    } else {
      StageOut(call, first, end);
    }
    first = end;
  }
  return batch->transfer();
}

Transfer DeviceLink::After(Stream stream) {
  MutexLock lock(after_mu_);
  const absl::StatusOr<EventRef> event = Fence(stream);
  if (event.ok() && *event == nullptr) return Transfer::Completed(1);
  if (!event.ok()) return Transfer::Completed({event.status()});
  const auto batch =
      std::make_shared<LinkBatch>(runtime_, &uses_, std::vector<LinkBatch::Op>(1), true, nullptr);
  batch->Mark(0, 1, 0, *event);
  EndAfter(batch, 0, 1, stream.handle, *event, absl::OkStatus(), {});
  return batch->transfer();
}

void DeviceLink::AddStats(BackendStats* stats) const {
  const std::string device = absl::StrCat("device_", device_, "_");
  const auto add = [&](const char* name, const char* help, const std::atomic<uint64_t>& bytes) {
    stats->metrics.push_back({absl::StrCat(device, name), help,
                              static_cast<double>(bytes.load(std::memory_order_relaxed)),
                              /*counter=*/true});
  };
  add("batched_bytes", "Bytes given to the device's copy engines.", batched_bytes_);
  add("kernel_bytes", "Bytes of pieces that a kernel copies.", kernel_bytes_);
  add("staged_bytes", "Bytes of these from and to pageable memory.", staged_bytes_);
  add("paged_bytes", "Bytes of parts that were gathered from pages, or scattered to them.",
      paged_bytes_);
  const absl::Status failed = status();
  if (!failed.ok()) stats->facts.push_back({absl::StrCat(device, "error"), failed.ToString()});
}

}  // namespace kvcache
