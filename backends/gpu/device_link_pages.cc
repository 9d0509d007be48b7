// DeviceLink: between pages on the device and parts of blocks.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/gpu/device_link.h"
#include "kvcache/backends/gpu/device_link_calls.h"

namespace kvcache {

// Engines take nearly all of a device's memory: without any for this, kernels reach over the link.
absl::StatusOr<bool> DeviceLink::HavePageStaging(Staging* staging) {
  MutexLock lock(uses_.enqueue_mu());
  if (staging->taken()) return true;
  const absl::StatusOr<std::byte*> memory =
      runtime_->AllocateDevice(device_, options_.page_staging_bytes);
  if (absl::IsResourceExhausted(memory.status())) return false;
  if (!memory.ok()) return Noticed(memory.status());
  staging->Use({*memory, options_.page_staging_bytes});
  return true;
}

// From pages:  gather -> parts on the device, or -> staging, to_host -> pinned parts
// To pages:    parts on the device, or pinned parts, to_device -> staging, -> scatter
//
// Everything is enqueued at once; events keep the order, also of who uses the staging next.
void DeviceLink::EnqueuePages(PagedCall& call, size_t first, size_t end) {
  const bool gather = call.side == PagesSide::kGather;
  const StreamNumber pages_stream = gather ? kGather : kScatter;
  Staging& staging = page_staging_[gather ? 0 : 1];
  absl::StatusOr<bool> staged = false;
  if (call.parts_on_host && call.ops[first].bytes <= StageBytes())
    staged = HavePageStaging(&staging);
  const bool stage = staged.ok() && *staged;
  const StreamNumber link_stream = gather ? kToHost : kToDevice;
  // Where the last copy is, and where the parts are used.
  const StreamNumber last_stream = stage && gather ? link_stream : pages_stream;
  const StreamNumber parts_stream = stage ? link_stream : pages_stream;

  PartOfTokens* const parts = call.parts + first;
  const uint32_t row_bytes =
      static_cast<uint32_t>(call.kv.layout.head_dim * DTypeSize(call.kv.layout.dtype));
  const size_t token_bytes = size_t{call.kv.layout.kv_heads} * row_bytes;
  size_t bytes = 0;
  uint32_t most_tokens = 0;
  uintptr_t addresses = 16;
  for (size_t i = first; i < end; ++i) {
    const PagedOp& op = call.ops[i];
    call.parts[i] = {op.memory + op.skip_tokens * token_bytes, op.tokens.first + op.skip_tokens,
                     op.tokens.count - op.skip_tokens, op.tokens.count};
    addresses |= reinterpret_cast<uintptr_t>(op.memory);
    addresses |= op.bytes;  // in the staging, parts follow each other
    bytes += op.bytes;
    most_tokens = std::max(most_tokens, call.parts[i].tokens);
  }
  const PagedKv::Layer& layer = call.kv.layers[call.ops[first].part];
  const PagedCopy copy = {
      .k = layer.k,
      .v = layer.v,
      .page_stride = call.kv.page_stride,
      .page_tokens = call.kv.page_tokens,
      .heads = call.kv.layout.kv_heads,
      .row_bytes = row_bytes,
      .head_token_dim = call.kv.order == PagedKv::Order::kHeadTokenDim,
      .to_pages = !gather,
      .page_table = reinterpret_cast<const int32_t*>(call.table.to),
      .parts = parts,
      .num_parts = static_cast<uint32_t>(end - first),
      .most_tokens = most_tokens,
      .alignment = static_cast<uint32_t>(addresses & -addresses),
      .host_page_table = reinterpret_cast<const int32_t*>(call.table.from),
  };

  Kept kept = call.descriptors;
  absl::StatusOr<EventRef> event = TakeEvent();
  absl::StatusOr<EventRef> between = stage ? TakeEvent() : EventRef();
  absl::Status status = staged.status();
  status.Update(event.status());
  status.Update(between.status());
  if (!status.ok()) {
    EndAfter(call.batch, first, end, nullptr, nullptr, std::move(status), {});
  } else {
    MutexLock lock(uses_.enqueue_mu());
    std::vector<EventRef> wait_for;
    for (size_t i = first; i < end; ++i) {
      uses_.Begin(call.ops[i].extent, streams_[parts_stream], /*write=*/gather, &wait_for);
      call.batch->ExtentBegun(i);
    }
    std::vector<CopyPiece> pieces;
    Staging::Chunk* chunk = nullptr;
    if (stage) {
      chunk = &staging.Next();
      std::byte* at = chunk->memory.data();
      for (size_t i = first; i < end; ++i) {
        const PagedOp& op = call.ops[i];
        pieces.push_back(gather ? CopyPiece{op.memory, at, op.bytes}
                                : CopyPiece{at, op.memory, op.bytes});
        call.parts[i].k = at + op.skip_tokens * token_bytes;
        at += op.bytes;
      }
    }
    const EventRef busy = chunk == nullptr ? nullptr : chunk->busy;
    bool ordered = false;  // behind earlier copies of the extents
    const auto copy_pages = [&](absl::Span<const EventRef> after) {
      status.Update(WaitFor(pages_stream, {call.after}));
      status.Update(WaitFor(pages_stream, after));
      ordered |= !stage && status.ok();
      if (status.ok() && !call.table_copied) {
        status = Noticed(runtime_->CopyBatch(device_, {&call.table, 1}, CopyDirection::kToDevice,
                                             streams_[pages_stream]));
        call.table_copied = status.ok();
      }
      if (status.ok()) {
        status = Noticed(runtime_->CopyPages(device_, copy, streams_[pages_stream]));
      }
    };
    const auto copy_parts = [&](absl::Span<const EventRef> after) {
      status.Update(WaitFor(link_stream, wait_for));
      ordered = status.ok();
      status.Update(WaitFor(link_stream, after));
      if (status.ok()) {
        status = EnqueuePieces(pieces, gather ? CopyDirection::kToHost : CopyDirection::kToDevice,
                               link_stream, &kept);
      }
    };
    if (!stage) {
      copy_pages(wait_for);
    } else if (gather) {
      copy_pages({busy});
      status.Update(Record(*between, pages_stream));
      copy_parts({*between});
    } else {
      copy_parts({busy});
      status.Update(Record(*between, link_stream));
      copy_pages({*between});
    }
    // Behind everything that was enqueued, also when something was refused.
    status.Update(NoticedForGood(Insist([&] { return WaitFor(last_stream, {*between}); })));
    status.Update(Record(*event, last_stream));
    if (chunk != nullptr) chunk->busy = *event;
    for (size_t i = first; i < end && ordered; ++i) {
      uses_.SetEvent(call.ops[i].extent, streams_[parts_stream], /*write=*/gather, *event);
    }
    call.batch->Mark(first, end, last_stream, *event);
    paged_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    EndAfter(call.batch, first, end, streams_[last_stream], *event, std::move(status),
             std::move(kept));
  }
  CheckBeside(call.batch, first, end);
}

absl::Status DeviceLink::PrepareDescriptors(absl::Span<const int32_t> page_table, size_t num_ops,
                                            PagedCall* call) {
  const size_t parts_bytes = num_ops * sizeof(PartOfTokens);
  const size_t table_bytes = page_table.size() * sizeof(int32_t);
  const absl::StatusOr<BufferRef> pinned = pinned_buffers_.Take(parts_bytes + table_bytes);
  if (!pinned.ok()) return pinned.status();
  call->descriptors = {*pinned};
  call->parts = reinterpret_cast<PartOfTokens*>((*pinned)->data());
  std::byte* const table = (*pinned)->data() + parts_bytes;
  std::memcpy(table, page_table.data(), table_bytes);
  const absl::StatusOr<BufferRef> on_device = device_buffers_.Take(table_bytes);
  if (on_device.ok()) {
    call->descriptors.push_back(*on_device);
    call->table = {(*on_device)->data(), table, table_bytes};
    return absl::OkStatus();
  }
  // The kernels can read it where it is, too.
  call->table = {table, table, table_bytes};
  call->table_copied = true;
  return absl::IsResourceExhausted(on_device.status()) ? absl::OkStatus() : on_device.status();
}

Transfer DeviceLink::CopyPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                               PagesSide side, bool parts_on_host, std::vector<PagedOp> ops,
                               Stream stream) {
  const absl::StatusOr<EventRef> after = Fence(stream);
  absl::Status ready = after.status();
  PagedCall call = {nullptr, kv, ops, side, parts_on_host, nullptr, {}, false, nullptr, {}};
  if (ready.ok()) {
    call.after = *after;
    ready = Noticed(PrepareDescriptors(page_table, ops.size(), &call));
  }
  std::vector<LinkBatch::Op> states;
  for (PagedOp& op : ops) {
    op.status.Update(ready);
    const size_t end_token = size_t{op.tokens.first} + op.tokens.count;
    if (end_token >= kMostKernelBytes || kv.PageBytes() >= kMostKernelBytes) {
      op.status.Update(absl::InvalidArgumentError(
          absl::StrCat("tokens to ", end_token, " in pages of ", kv.PageBytes(), " bytes, ",
                       kMostKernelBytes, " or more")));
    }
    if (op.bytes >= kMostKernelBytes) {
      op.status.Update(
          absl::InvalidArgumentError(absl::StrCat("part ", op.part, ": ", op.bytes, " bytes, ",
                                                  kMostKernelBytes, " or more for one part")));
    }
    states.push_back({op.part, op.extent, op.status.ok() ? std::move(op.check) : nullptr,
                      /*check_after_copy=*/side == PagesSide::kGather});
  }
  const auto batch = std::make_shared<LinkBatch>(runtime_, &uses_, std::move(states),
                                                 /*ordered=*/true, call.after);
  call.batch = batch;
  for (size_t first = 0; first < ops.size();) {
    if (!ops[first].status.ok()) {
      batch->EndStep(first, ops[first].status);
      ++first;
      continue;
    }
    size_t end = first;
    size_t bytes = 0;
    while (end < ops.size() && ops[end].status.ok() && ops[end].part == ops[first].part &&
           (!parts_on_host || end == first || bytes + ops[end].bytes <= StageBytes())) {
      bytes += ops[end].bytes;
      ++end;
    }
    EnqueuePages(call, first, end);
    first = end;
  }
  return batch->transfer();
}

}  // namespace kvcache
