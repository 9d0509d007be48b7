#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/gpu/cuda_runtime.h"
#include "kvcache/core/registry.h"

namespace kvcache {
namespace {

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  if (absl::Status status = CheckSettings("cuda_device", settings, {"device"}); !status.ok()) {
    return status;
  }
  CudaDeviceOptions options = {.capacity_bytes = capacity_bytes};
  if (const auto it = settings.find("device");
      it != settings.end() && !absl::SimpleAtoi(it->second, &options.device)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cuda_device: device = '", it->second, "' is not a number"));
  }
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok()) return runtime.status();
  return CreateCudaDeviceBackend(options, *std::move(runtime));
}

[[maybe_unused]] const bool kRegistered = RegisterBackend("cuda_device", Make);

}  // namespace
}  // namespace kvcache
