// Blocks in the memory of a GPU.
#ifndef KVCACHE_BACKENDS_CUDA_DEVICE_CUDA_DEVICE_H_
#define KVCACHE_BACKENDS_CUDA_DEVICE_CUDA_DEVICE_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/device_link.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

struct CudaDeviceOptions {
  int device = 0;
  // For all extents together, taken at once: either bytes, or a share of what is free when it is
  // created, more than 0 and less than 1.
  size_t capacity_bytes = 0;
  double share_of_free = 0;
  DeviceLinkOptions link = {};
};

// A backend named "cuda_device": addressable, in memory of kind kDevice, extents aligned to 256
// bytes. It reaches host memory, pinned and pageable, that of its own device, and that of devices
// that its own can reach as peers. Copies run by themselves, behind the work that is on the stream;
// those from and to pageable memory, and pages there, in the call. See DeviceLink. A device that
// reads what it cannot reach fails for good: memory that is said to be pinned must be registered
// with the driver, and that of a peer be cudaMalloc's, or mapped for this device.
//
// Checksums are computed and compared on the host's side of a copy, beside or behind it; what is
// copied on the device has none. An op to the host ends when its bytes have been compared.
//
// Who reads a block in place by work on a stream keeps it with Cache::After(), or
// ReadLease::ReleaseAfter(), until that work has run.
//
// After an error for good every call fails with kUnavailable, which says what happened.
//
// Errors: kInvalidArgument for options that cannot be; kUnavailable without a driver or the device;
// kResourceExhausted when it has less free memory.
absl::StatusOr<std::unique_ptr<StorageBackend>> CreateCudaDeviceBackend(
    const CudaDeviceOptions& options, std::shared_ptr<GpuRuntime> runtime);

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CUDA_DEVICE_CUDA_DEVICE_H_
