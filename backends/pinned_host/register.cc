#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kvcache/backends/gpu/cuda_runtime.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/registry.h"

namespace kvcache {
namespace {

using IfNotPinnable = PinnedHostOptions::IfNotPinnable;

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  absl::Status status = CheckSettings("pinned_host", settings, {"if_not_pinnable", "numa_node"});
  if (!status.ok()) return status;
  PinnedHostOptions options = {.capacity_bytes = capacity_bytes};
  if (const auto it = settings.find("if_not_pinnable"); it != settings.end()) {
    if (it->second != "refuse" && it->second != "use_pageable") {
      return absl::InvalidArgumentError(absl::StrCat("pinned_host: if_not_pinnable = '", it->second,
                                                     "' is none of: refuse, use_pageable"));
    }
    if (it->second == "use_pageable") options.if_not_pinnable = IfNotPinnable::kUsePageable;
  }
  if (const auto it = settings.find("numa_node"); it != settings.end()) {
    int node;
    if (!absl::SimpleAtoi(it->second, &node)) {
      return absl::InvalidArgumentError(
          absl::StrCat("pinned_host: numa_node = '", it->second, "' is not a number"));
    }
    options.numa_node = node;
  }
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok() && options.if_not_pinnable == IfNotPinnable::kRefuse) return runtime.status();
  return CreatePinnedHostBackend(options, runtime.ok() ? *std::move(runtime) : nullptr);
}

[[maybe_unused]] const bool kRegistered = RegisterBackend("pinned_host", Make);

}  // namespace
}  // namespace kvcache
