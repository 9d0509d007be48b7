#include "kvcache/backends/gpu/link_batch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvcache {

absl::Status LinkBatch::Marks::Order(GpuRuntime& runtime, Stream stream, int64_t part) {
  if (stream.space.kind != MemoryKind::kDevice) {
    return absl::InvalidArgumentError("stream: not of a device");
  }
  MutexLock lock(mu);
  for (size_t i = 0; i < groups.size(); ++i) {
    const MarkedGroup& group = groups[i];
    if (part >= 0) {
      if (!std::binary_search(group.parts.begin(), group.parts.end(), part)) continue;
    } else {
      // A stream's last event stands for those before it.
      const bool last =
          std::none_of(groups.begin() + i + 1, groups.end(),
                       [&](const MarkedGroup& g) { return g.stream == group.stream; });
      if (!last) continue;
    }
    absl::Status status = runtime.MakeWait(stream.space.device, stream.handle, group.event->handle);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

TransferSource::Hooks LinkBatch::MakeHooks(std::shared_ptr<Marks> marks,
                                           std::shared_ptr<GpuRuntime> runtime) {
  TransferSource::Hooks hooks;
  hooks.order = [marks = std::move(marks), runtime = std::move(runtime)](
                    Stream stream, int64_t part) { return marks->Order(*runtime, stream, part); };
  return hooks;
}

LinkBatch::LinkBatch(std::shared_ptr<GpuRuntime> runtime, ExtentUses* uses, std::vector<Op> ops,
                     bool ordered, EventRef after)
    : uses_(*uses),
      after_(std::move(after)),
      marks_(std::make_shared<Marks>()),
      source_(PartsOf(ops),
              ordered ? MakeHooks(marks_, std::move(runtime)) : TransferSource::Hooks{}),
      states_(ops.size()) {
  for (size_t i = 0; i < ops.size(); ++i) {
    State& state = states_[i];
    state.op = std::move(ops[i]);
    state.checks_beside = state.op.check != nullptr && !state.op.check_after_copy;
    state.steps_left = state.checks_beside ? 2 : 1;
  }
}

std::vector<uint32_t> LinkBatch::PartsOf(absl::Span<const Op> ops) {
  std::vector<uint32_t> parts;
  parts.reserve(ops.size());
  for (const Op& op : ops) parts.push_back(op.part);
  return parts;
}

void LinkBatch::Mark(size_t first, size_t end, int stream, EventRef event) {
  std::vector<uint32_t> parts;
  for (size_t i = first; i < end; ++i) {
    if (parts.empty() || parts.back() != states_[i].op.part) parts.push_back(states_[i].op.part);
  }
  std::sort(parts.begin(), parts.end());
  MutexLock lock(marks_->mu);
  marks_->groups.push_back({stream, std::move(event), std::move(parts)});
}

void LinkBatch::EndStep(size_t i, const absl::Status& status) {
  State& state = states_[i];
  {
    MutexLock lock(mu_);
    state.status.Update(status);
    if (--state.steps_left > 0) return;
  }
  if (state.op.check_after_copy && state.op.check != nullptr && state.status.ok()) {
    state.status = state.op.check();
  }
  state.op.check = nullptr;
  if (state.extent_begun) uses_.End(state.op.extent);
  source_.Complete(i, state.status);
}

}  // namespace kvcache
