// DeviceLink: copies from and to pageable memory, through a pinned buffer.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/gpu/device_link.h"
#include "kvcache/backends/gpu/device_link_calls.h"
#include "kvcache/core/copy/copy_bytes.h"

namespace kvcache {

void DeviceLink::Staging::Use(MutableBytes memory) {
  const size_t bytes = memory.size() / kChunks / 4096 * 4096;
  for (size_t i = 0; i < kChunks; ++i) chunks[i].memory = memory.subspan(i * bytes, bytes);
}

absl::Status DeviceLink::TakeHostStaging(HostStaging* host) {
  if (host->staging.taken()) return absl::OkStatus();
  constexpr size_t kPage = 4096;
  const size_t bytes = options_.staging_bytes / kPage * kPage;
  void* const memory = std::aligned_alloc(kPage, bytes);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for staging_bytes = ", bytes));
  }
  const MutableBytes buffer(static_cast<std::byte*>(memory), bytes);
  if (absl::Status status = Noticed(runtime_->RegisterHost(device_, buffer)); !status.ok()) {
    std::free(memory);
    return status;
  }
  host->staging.Use(buffer);
  return absl::OkStatus();
}

namespace {

// Cuts the pieces of ops [first, end) into stretches.
class Cutter {
 public:
  Cutter(absl::Span<const CopyPiece> pieces, absl::Span<const DeviceLink::Op> ops, size_t first,
         size_t end)
      : pieces_(pieces), ops_(ops), op_(first), end_(end) {
    SkipEnded();
  }

  // The first op that has not been cut to its end, and the one behind all that have been begun.
  size_t op() const { return op_; }
  size_t end_begun() const { return piece_ > 0 || done_ > 0 ? op_ + 1 : op_; }

  // Calls visit(piece) for the next `most` bytes, or as many as there are; returns how many.
  template <typename Visit>
  size_t Cut(size_t most, const Visit& visit) {
    size_t cut = 0;
    while (op_ < end_ && cut < most) {
      const CopyPiece& whole = pieces_[ops_[op_].first_piece + piece_];
      const size_t bytes = std::min(whole.bytes - done_, most - cut);
      visit(CopyPiece{whole.to + done_, whole.from + done_, bytes});
      cut += bytes;
      done_ += bytes;
      if (done_ == whole.bytes) {
        ++piece_;
        done_ = 0;
      }
      SkipEnded();
    }
    return cut;
  }

 private:
  void SkipEnded() {
    while (op_ < end_ && piece_ == ops_[op_].num_pieces) {
      ++op_;
      piece_ = 0;
    }
  }

  const absl::Span<const CopyPiece> pieces_;
  const absl::Span<const DeviceLink::Op> ops_;
  size_t op_;
  const size_t end_;
  size_t piece_ = 0;  // of the op
  size_t done_ = 0;   // bytes of the piece
};

}  // namespace

absl::Status DeviceLink::EnqueueChunk(const Call& call, size_t first, size_t end,
                                      absl::Span<const CopyPiece> pieces, CopyDirection direction,
                                      const EventRef& event, Kept* kept) {
  const bool in = direction == CopyDirection::kToDevice;
  const StreamNumber stream = in ? kToDevice : kToHost;
  std::vector<EventRef> wait_for = {call.after};
  for (size_t i = first; i < end; ++i) {
    if (call.batch->extent_begun(i)) continue;
    uses_.Begin(call.ops[i].extent, streams_[stream], /*write=*/in, &wait_for);
    call.batch->ExtentBegun(i);
  }
  absl::Status status = WaitFor(stream, wait_for);
  const bool enqueued = status.ok();
  if (enqueued) status = EnqueuePieces(pieces, direction, stream, kept);
  status.Update(Record(event, stream));
  for (size_t i = first; i < end && enqueued; ++i) {
    uses_.SetEvent(call.ops[i].extent, streams_[stream], /*write=*/in, event);
  }
  return status;
}

// Fills a chunk with the bytes of as many ops as go into it, and sends it off. An op that goes over
// several chunks ends with its last: they arrive in order.
void DeviceLink::StageIn(const Call& call, size_t first, size_t end) {
  CheckBeside(call.batch, first, end);
  Cutter cutter(call.pieces, call.ops, first, end);
  EventRef last;
  absl::Status status;
  {
    MutexLock staging_lock(into_device_.mu);
    status = TakeHostStaging(&into_device_);
    while (status.ok() && cutter.op() < end) {
      Staging::Chunk& chunk = into_device_.staging.Next();
      if (chunk.busy != nullptr) {
        status = NoticedForGood(Synchronize(*chunk.busy));
      }
      const absl::StatusOr<EventRef> event = TakeEvent();
      status.Update(event.status());
      if (!status.ok()) break;
      std::vector<CopyPiece> pieces;
      const size_t first_here = cutter.op();
      std::byte* at = chunk.memory.data();
      const size_t bytes = cutter.Cut(chunk.memory.size(), [&](const CopyPiece& piece) {
        CopyBytes(at, {piece.from, piece.bytes}, NextRead::kLater);
        pieces.push_back({piece.to, at, piece.bytes});
        at += piece.bytes;
      });
      staged_bytes_.fetch_add(bytes, std::memory_order_relaxed);
      last = chunk.busy = *event;
      Kept kept;
      MutexLock lock(uses_.enqueue_mu());
      status = EnqueueChunk(call, first_here, cutter.end_begun(), pieces, CopyDirection::kToDevice,
                            last, &kept);
      call.batch->Mark(first_here, cutter.end_begun(), kToDevice, last);
      EndAfter(call.batch, first, cutter.op(), streams_[kToDevice], last, status, std::move(kept));
      first = cutter.op();
    }
  }
  // What was not sent off, or only in part.
  if (first == end) return;
  if (last != nullptr) status.Update(NoticedForGood(Synchronize(*last)));
  for (size_t i = first; i < end; ++i) call.batch->EndStep(i, status);
}

// Copies a chunk out while the next ones are on their way.
void DeviceLink::StageOut(const Call& call, size_t first, size_t end) {
  struct Arriving {
    EventRef event;
    std::vector<CopyPiece> pieces;  // out of the chunk
    Kept kept;
  };
  std::deque<Arriving> arriving;
  absl::Status status;
  const auto copy_out = [&] {
    const Arriving& chunk = arriving.front();
    status.Update(NoticedForGood(Synchronize(*chunk.event)));
    for (const CopyPiece& piece : chunk.pieces) {
      if (status.ok()) CopyBytes(piece.to, {piece.from, piece.bytes}, NextRead::kSoon);
    }
    arriving.pop_front();
  };
  {
    MutexLock staging_lock(out_of_device_.mu);
    status = TakeHostStaging(&out_of_device_);
    Cutter cutter(call.pieces, call.ops, first, end);
    while (status.ok() && cutter.op() < end) {
      if (arriving.size() == Staging::kChunks) copy_out();
      const Staging::Chunk& chunk = out_of_device_.staging.Next();
      const absl::StatusOr<EventRef> event = TakeEvent();
      status.Update(event.status());
      if (!status.ok()) break;
      Arriving next = {*event, {}, {}};
      std::vector<CopyPiece> pieces;
      const size_t first_here = cutter.op();
      std::byte* at = chunk.memory.data();
      const size_t bytes = cutter.Cut(chunk.memory.size(), [&](const CopyPiece& piece) {
        pieces.push_back({at, piece.from, piece.bytes});
        next.pieces.push_back({piece.to, at, piece.bytes});
        at += piece.bytes;
      });
      staged_bytes_.fetch_add(bytes, std::memory_order_relaxed);
      {
        MutexLock lock(uses_.enqueue_mu());
        status = EnqueueChunk(call, first_here, cutter.end_begun(), pieces, CopyDirection::kToHost,
                              *event, &next.kept);
      }
      arriving.push_back(std::move(next));
    }
    while (!arriving.empty()) copy_out();
  }
  if (status.ok()) status = CameAfter(call.after);
  for (size_t i = first; i < end; ++i) call.batch->EndStep(i, status);
}

}  // namespace kvcache
