#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/gpu/cuda_runtime.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache {
namespace {

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  CudaDeviceOptions options = {.capacity_bytes = capacity_bytes};
  SettingsReader reader("cuda_device", settings);
  reader.Number("device", &options.device);
  reader.Number("kernel_below_bytes", &options.link.kernel_below_bytes);
  reader.Number("share_of_free", &options.share_of_free);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok()) return runtime.status();
  return CreateCudaDeviceBackend(options, *std::move(runtime));
}

[[maybe_unused]] const bool kRegistered = RegisterBackend("cuda_device", Make);

}  // namespace
}  // namespace kvcache
