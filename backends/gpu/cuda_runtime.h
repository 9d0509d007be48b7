// The GPUs of this machine.
#ifndef KVCACHE_BACKENDS_GPU_CUDA_RUNTIME_H_
#define KVCACHE_BACKENDS_GPU_CUDA_RUNTIME_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/gpu_runtime.h"

namespace kvcache {

// The CUDA runtime. Errors: kUnavailable when there is no driver, one that is too old, or no
// device. Calls leave the calling thread's current device as it was, and no error of theirs behind.
absl::StatusOr<std::shared_ptr<GpuRuntime>> CreateCudaRuntime();

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_CUDA_RUNTIME_H_
