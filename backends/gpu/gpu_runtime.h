// GpuRuntime: what this project asks of a GPU and its driver.
#ifndef KVCACHE_BACKENDS_GPU_GPU_RUNTIME_H_
#define KVCACHE_BACKENDS_GPU_GPU_RUNTIME_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/backends/gpu/device_kernels.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

// A cudaStream_t or a cudaEvent_t. Never null: the legacy default stream has no order that copies
// could be fitted into.
using GpuStream = void*;
using GpuEvent = void*;

struct GpuDevice {
  std::string name;
  size_t total_bytes = 0;
  size_t free_bytes = 0;
};

enum class CopyDirection { kToDevice, kToHost, kOnDevice };  // kOnDevice: also between devices

// The CUDA runtime, as thin as it can be, so that everything about order, lifetime and errors is
// above it and can be tested without a GPU.
//
// Streams and events belong to a device; work on a stream runs in order, and beside the caller and
// other streams. What queued work names must stay until it has run: host memory, which has to be
// registered, is read and written only then.
//
// Errors of all calls:
//   kInvalidArgument, kResourceExhausted   the call did nothing
//   kUnavailable                           there is no driver, or no such device, or it cannot do
//                                          what this project needs
//   any other                              the device has failed for good: every later call that
//                                          concerns it fails too
//
// Thread-safe.
class GpuRuntime {
 public:
  virtual ~GpuRuntime() = default;

  // Whether this is an error of one call, after which the device is as good as before.
  static bool DidNothing(const absl::Status& status) {
    return absl::IsInvalidArgument(status) || absl::IsResourceExhausted(status);
  }

  // For threads of this project's own: the calling thread works for this device alone. Calls on
  // other threads leave their current device, or none, as it was.
  virtual void UseThreadFor(int device) = 0;

  // kUnavailable rather than 0.
  virtual absl::StatusOr<int> DeviceCount() = 0;
  virtual absl::StatusOr<GpuDevice> Describe(int device) = 0;
  // Loads what the calls below run on the device, which might otherwise wait for its work, or need
  // memory, at the first call. kUnavailable for a device that it was not compiled for.
  virtual absl::Status LoadKernels(int device) = 0;
  // Lets kernels and copies of `device` reach memory of `peer`. OK when they can already.
  virtual absl::Status EnablePeer(int device, int peer) = 0;

  // Aligned to 256 bytes.
  virtual absl::StatusOr<std::byte*> AllocateDevice(int device, size_t bytes) = 0;
  virtual absl::Status FreeDevice(int device, std::byte* memory) = 0;
  // Pins memory of this process, for all devices, in the context of this one. A copy must not go
  // over the end of what one call registered, also when the next call's begins there.
  virtual absl::Status RegisterHost(int device, MutableBytes memory) = 0;
  virtual absl::Status UnregisterHost(int device, std::byte* memory) = 0;

  // Waits for no other stream, the default ones included.
  virtual absl::StatusOr<GpuStream> CreateStream(int device) = 0;
  virtual absl::Status DestroyStream(int device, GpuStream stream) = 0;
  virtual absl::StatusOr<GpuEvent> CreateEvent(int device) = 0;
  virtual absl::Status DestroyEvent(int device, GpuEvent event) = 0;
  // The event fires when all work that is on the stream now has run.
  virtual absl::Status Record(int device, GpuEvent event, GpuStream stream) = 0;
  // Later work on the stream waits for what was last recorded: other devices' events too.
  virtual absl::Status MakeWait(int device, GpuStream stream, GpuEvent event) = 0;
  // Blocks until what was last recorded has fired.
  virtual absl::Status Synchronize(int device, GpuEvent event) = 0;

  // Enqueue copies. No order among the pieces of a call, none of which may overlap; `pieces` is
  // read before the call returns.
  virtual absl::Status CopyBatch(int device, absl::Span<const CopyPiece> pieces,
                                 CopyDirection direction, GpuStream stream) = 0;
  // The same, by a kernel; `pieces` is in registered memory and read when the stream gets there.
  virtual absl::Status CopyByKernel(int device, absl::Span<const CopyPiece> pieces,
                                    GpuStream stream) = 0;
  // `copy` is read before the call returns, what it points to when the stream gets there.
  virtual absl::Status CopyPages(int device, const PagedCopy& copy, GpuStream stream) = 0;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_GPU_RUNTIME_H_
