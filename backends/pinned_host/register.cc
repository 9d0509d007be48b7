#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/cuda_runtime.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache {
namespace {

using IfNotPinnable = PinnedHostOptions::IfNotPinnable;

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  PinnedHostOptions options = {.capacity_bytes = capacity_bytes};
  SettingsReader reader("pinned_host", settings);
  reader.Number("chunk_bytes", &options.chunk_bytes);
  reader.Number("device", &options.device);
  reader.Choice("if_not_pinnable",
                {{"refuse", IfNotPinnable::kRefuse}, {"use_pageable", IfNotPinnable::kUsePageable}},
                &options.if_not_pinnable);
  reader.Number("kernel_below_bytes", &options.link.kernel_below_bytes);
  reader.Number("numa_node", &options.numa_node);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok() && options.if_not_pinnable == IfNotPinnable::kRefuse) return runtime.status();
  return CreatePinnedHostBackend(options, runtime.ok() ? *std::move(runtime) : nullptr);
}

[[maybe_unused]] const bool kRegistered = RegisterBackend("pinned_host", Make);

}  // namespace
}  // namespace kvcache
