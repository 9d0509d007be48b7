// Blocks in host memory that devices copy from and to by themselves.
#ifndef KVCACHE_BACKENDS_PINNED_HOST_PINNED_HOST_H_
#define KVCACHE_BACKENDS_PINNED_HOST_PINNED_HOST_H_

#include <cstddef>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kvcache/backends/gpu/device_link.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

struct PinnedHostOptions {
  // For all extents together; what does not fill a last unit of 64 bytes, the alignment, is not
  // used.
  size_t capacity_bytes = 0;
  // How much is pinned at a time, a multiple of 2 MiB: the first of it before Create returns, the
  // rest in the background, 0.1 to 0.35 s for each GiB. A block that finds no room in what is
  // pinned waits for the next.
  size_t chunk_bytes = size_t{1} << 30;
  // Where to take the memory, and from nowhere else: the node next to the GPU is the fastest.
  // Default: the system's choice.
  std::optional<int> numa_node = std::nullopt;

  // In whose context memory is pinned, for all devices. A process that uses one device names it
  // here: so it takes no memory for a context on another.
  int device = 0;

  // What to do where memory cannot be pinned: no driver, or a limit of the system.
  enum class IfNotPinnable {
    // The first chunk: an error of Create. Later ones: the backend is as large as what was pinned,
    // and Allocate and the statistics (pin_error) say why.
    kRefuse,
    // Go on with pageable memory: slower to and from devices, copied in the call through a small
    // buffer that must still be pinnable, and not for pages on a device.
    kUsePageable,
  };
  IfNotPinnable if_not_pinnable = IfNotPinnable::kRefuse;

  // For the way to each device.
  DeviceLinkOptions link = {};
};

// A backend named "pinned_host": addressable, in memory of kind kPinnedHost (kHost with
// kUsePageable), extents aligned to 64 bytes. It reaches host memory and that of all devices; one
// call reaches one device. `runtime` may be null, which is the same as no driver.
//
// Copies between host memory have ended when the call returns, as those of cpu_ram, and cannot be
// given a stream. Copies from and to a device run by themselves, behind the work that is on the
// stream; see DeviceLink. The checksums of what comes from a device are computed when it has
// arrived; those of what goes to one are compared while it goes, so an op may end with kDataLoss
// after later work of a stream has used its bytes: look at the transfer before you use the results
// of that work.
//
// When a device fails for good, what concerns it ends with kFailedPrecondition; the blocks stay.
//
// Statistics: pinned_bytes, pinning_seconds, and those of the link to each device that was used.
//
// Errors: kInvalidArgument for a capacity below 64 bytes, chunks that are not of 2 MiB, a NUMA node
// that is not there; kPermissionDenied or kUnimplemented where nobody may choose a node;
// kResourceExhausted for more memory than the system, or the node, has; why the first chunk
// cannot be pinned (kUnavailable: no driver).
absl::StatusOr<std::unique_ptr<StorageBackend>> CreatePinnedHostBackend(
    const PinnedHostOptions& options, std::shared_ptr<GpuRuntime> runtime);

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_PINNED_HOST_PINNED_HOST_H_
