#include "kvcache/backends/gpu/cuda_runtime.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/mutex.h"

namespace kvcache {
namespace {

absl::StatusCode CodeOf(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
    case cudaErrorLaunchOutOfResources:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorStubLibrary:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInitializationError:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorCudartUnloading:
      return absl::StatusCode::kUnavailable;
    // After these the context is of no use: every later call returns them.
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorMpsConnectionFailed:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return absl::StatusCode::kInternal;
    default:
      return absl::StatusCode::kInvalidArgument;
  }
}

// While an engine records a CUDA graph, other threads must not be refused what they call, nor spoil
// the recording.
class BesideCapture {
 public:
  BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCapture(const BesideCapture&) = delete;
  BesideCapture& operator=(const BesideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Takes the error off the thread, where it would be found by whoever calls CUDA next.
absl::Status Result(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return absl::Status(CodeOf(error),
                      absl::StrCat(call, ": ", cudaGetErrorName(error), " (",
                                   static_cast<int>(error), "): ", cudaGetErrorString(error)));
}

// Of the driver, whose errors have the numbers of the runtime's.
absl::Status Result(const char* call, CUresult error) {
  return Result(call, static_cast<cudaError_t>(error));
}

// The devices' primary contexts, which are those that the runtime works in, by the driver's calls:
// they put back what was current on a thread. cudaSetDevice() cannot: a thread of the engine that
// has used no device so far would be left with one, and with a context in its memory.
class PrimaryContexts {
 public:
  static absl::StatusOr<PrimaryContexts> Find() {
    PrimaryContexts contexts;
    absl::Status status = Load("cuDeviceGet", &contexts.get_device_);
    status.Update(Load("cuDevicePrimaryCtxRetain", &contexts.retain_));
    status.Update(Load("cuCtxGetCurrent", &contexts.get_current_));
    status.Update(Load("cuCtxSetCurrent", &contexts.set_current_));
    status.Update(Load("cuCtxPushCurrent", &contexts.push_));
    status.Update(Load("cuCtxPopCurrent", &contexts.pop_));
    if (!status.ok()) return status;
    return contexts;
  }

  // Made at its first use, and never released: the runtime does not either.
  absl::StatusOr<CUcontext> Of(int device) const {
    CUdevice found;
    absl::Status status = Result("cuDeviceGet", get_device_(&found, device));
    CUcontext context = nullptr;
    if (status.ok()) status = Result("cuDevicePrimaryCtxRetain", retain_(&context, found));
    if (!status.ok()) return status;
    return context;
  }
  CUcontext Current() const {
    CUcontext context = nullptr;
    return get_current_(&context) == CUDA_SUCCESS ? context : nullptr;
  }
  absl::Status SetCurrent(CUcontext context) const {
    return Result("cuCtxSetCurrent", set_current_(context));
  }
  absl::Status Push(CUcontext context) const { return Result("cuCtxPushCurrent", push_(context)); }
  void Pop() const {
    CUcontext context;
    pop_(&context);
  }

 private:
  template <typename Function>
  static absl::Status Load(const char* name, Function* function) {
    constexpr unsigned kVersion = 12000;
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    absl::Status status = Result(
        name, cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result));
    if (status.ok() && (found == nullptr || result != cudaDriverEntryPointSuccess)) {
      status = absl::UnavailableError(absl::StrCat("the CUDA driver has no ", name));
    }
    *function = reinterpret_cast<Function>(found);
    return status;
  }

  decltype(&cuDeviceGet) get_device_;
  decltype(&cuDevicePrimaryCtxRetain) retain_;
  decltype(&cuCtxGetCurrent) get_current_;
  decltype(&cuCtxSetCurrent) set_current_;
  decltype(&cuCtxPushCurrent) push_;
  decltype(&cuCtxPopCurrent) pop_;
};

cudaStream_t StreamOf(GpuStream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t EventOf(GpuEvent event) { return static_cast<cudaEvent_t>(event); }

cudaMemcpyKind KindOf(CopyDirection direction) {
  switch (direction) {
    case CopyDirection::kToDevice:
      return cudaMemcpyHostToDevice;
    case CopyDirection::kToHost:
      return cudaMemcpyDeviceToHost;
    case CopyDirection::kOnDevice:
      break;
  }
  return cudaMemcpyDefault;
}

absl::StatusOr<int> CountDevices() {
  // The cleanest question: it does not initialise anything.
  int driver = 0;
  absl::Status status = Result("cudaDriverGetVersion", cudaDriverGetVersion(&driver));
  if (!status.ok()) return status;
  if (driver == 0) return absl::UnavailableError("no CUDA driver is installed");
  int devices = 0;
  status = Result("cudaGetDeviceCount", cudaGetDeviceCount(&devices));
  if (!status.ok()) return status;
  if (devices == 0) return absl::UnavailableError("there is no CUDA device");
  return devices;
}

class CudaRuntime final : public GpuRuntime {
 public:
  CudaRuntime(int devices, const PrimaryContexts& contexts)
      : contexts_(contexts), of_device_(devices) {}

  void UseThreadFor(int device) override {
    const absl::StatusOr<CUcontext> context = ContextOf(device);
    // Without it every call brings its own.
    if (context.ok()) contexts_.SetCurrent(*context).IgnoreError();
  }

  absl::StatusOr<int> DeviceCount() override { return CountDevices(); }

  absl::StatusOr<GpuDevice> Describe(int device) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    GpuDevice described;
    cudaDeviceProp properties;
    absl::Status status =
        Result("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
    if (status.ok()) {
      described.name = properties.name;
      status =
          Result("cudaMemGetInfo", cudaMemGetInfo(&described.free_bytes, &described.total_bytes));
    }
    if (!status.ok()) return status;
    return described;
  }

  absl::Status EnablePeer(int device, int peer) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
    if (error != cudaErrorPeerAccessAlreadyEnabled) {
      return Result("cudaDeviceEnablePeerAccess", error);
    }
    cudaGetLastError();
    return absl::OkStatus();
  }

  absl::StatusOr<std::byte*> AllocateDevice(int device, size_t bytes) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    void* memory = nullptr;
    absl::Status status = Result("cudaMalloc", cudaMalloc(&memory, bytes));
    if (!status.ok()) {
      return absl::Status(status.code(), absl::StrCat(status.message(), "; bytes = ", bytes,
                                                      " on device ", device));
    }
    return static_cast<std::byte*>(memory);
  }

  absl::Status FreeDevice(int device, std::byte* memory) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("cudaFree", cudaFree(memory));
  }

  absl::Status RegisterHost(int device, MutableBytes memory) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    int same_pointers = 0;
    absl::Status status =
        Result("cudaDeviceGetAttribute",
               cudaDeviceGetAttribute(&same_pointers, cudaDevAttrCanUseHostPointerForRegisteredMem,
                                      device));
    if (!status.ok()) return status;
    if (same_pointers == 0) {
      return absl::UnavailableError(absl::StrCat(
          "device ", device, " has other pointers than the host for registered memory"));
    }
    return Result("cudaHostRegister",
                  cudaHostRegister(memory.data(), memory.size(),
                                   cudaHostRegisterPortable | cudaHostRegisterMapped));
  }

  absl::Status UnregisterHost(int device, std::byte* memory) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("cudaHostUnregister", cudaHostUnregister(memory));
  }

  absl::StatusOr<GpuStream> CreateStream(int device) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    cudaStream_t stream = nullptr;
    absl::Status status = Result("cudaStreamCreateWithFlags",
                                 cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    if (!status.ok()) return status;
    return stream;
  }

  absl::Status DestroyStream(int device, GpuStream stream) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("cudaStreamDestroy", cudaStreamDestroy(StreamOf(stream)));
  }

  absl::StatusOr<GpuEvent> CreateEvent(int device) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    cudaEvent_t event = nullptr;
    // A thread that waits sleeps: there are several of them, and the engine wants the processors.
    absl::Status status =
        Result("cudaEventCreateWithFlags",
               cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync));
    if (!status.ok()) return status;
    return event;
  }

  absl::Status DestroyEvent(int device, GpuEvent event) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("cudaEventDestroy", cudaEventDestroy(EventOf(event)));
  }

  absl::Status Record(int device, GpuEvent event, GpuStream stream) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    absl::Status status =
        Result("cudaStreamIsCapturing", cudaStreamIsCapturing(StreamOf(stream), &capture));
    if (!status.ok()) return status;
    if (capture != cudaStreamCaptureStatusNone) {
      return absl::InvalidArgumentError("the stream is recording a CUDA graph");
    }
    return Result("cudaEventRecord", cudaEventRecord(EventOf(event), StreamOf(stream)));
  }

  absl::Status MakeWait(int device, GpuStream stream, GpuEvent event) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("cudaStreamWaitEvent",
                  cudaStreamWaitEvent(StreamOf(stream), EventOf(event), cudaEventWaitDefault));
  }

  absl::Status Synchronize(int device, GpuEvent event) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("cudaEventSynchronize", cudaEventSynchronize(EventOf(event)));
  }

  absl::Status CopyBatch(int device, absl::Span<const CopyPiece> pieces, CopyDirection direction,
                         GpuStream stream) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    if (pieces.size() > 1) {
      const cudaError_t error = CopyMany(pieces, stream);
      if (error != cudaErrorCallRequiresNewerDriver) return Result("cudaMemcpyBatchAsync", error);
      cudaGetLastError();
    }
    for (const CopyPiece& piece : pieces) {
      absl::Status status = Result(
          "cudaMemcpyAsync",
          cudaMemcpyAsync(piece.to, piece.from, piece.bytes, KindOf(direction), StreamOf(stream)));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status CopyByKernel(int device, absl::Span<const CopyPiece> pieces,
                            GpuStream stream) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("the kernel that copies pieces",
                  static_cast<cudaError_t>(LaunchCopyPieces(pieces.data(), pieces.size(), stream)));
  }

  absl::Status CopyPages(int device, const PagedCopy& copy, GpuStream stream) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("the kernel that copies pages",
                  static_cast<cudaError_t>(LaunchPagedCopy(copy, stream)));
  }

 private:
  absl::StatusOr<CUcontext> ContextOf(int device) {
    MutexLock lock(mu_);
    if (device < 0 || static_cast<size_t>(device) >= of_device_.size()) {
      return absl::UnavailableError(
          absl::StrCat("device: ", device, ", but there are ", of_device_.size()));
    }
    CUcontext& context = of_device_[device];
    if (context == nullptr) {
      const absl::StatusOr<CUcontext> made = contexts_.Of(device);
      if (!made.ok()) return made.status();
      context = *made;
    }
    return context;
  }

  // Makes a device the thread's current one for as long as it lives.
  class OnDevice {
   public:
    OnDevice(CudaRuntime& runtime, int device) : current_(runtime, device) {}
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    const absl::Status& status() const { return current_.status; }

   private:
    struct Current {
      Current(CudaRuntime& runtime, int device) : contexts(runtime.contexts_) {
        const absl::StatusOr<CUcontext> context = runtime.ContextOf(device);
        status = context.status();
        if (!status.ok() || contexts.Current() == *context) return;
        status = contexts.Push(*context);
        pushed = status.ok();
      }
      ~Current() {
        if (pushed) contexts.Pop();
      }

      const PrimaryContexts& contexts;
      absl::Status status;
      bool pushed = false;
    };

    const Current current_;
    const BesideCapture beside_capture_;  // within it: it would make a context where there is none
  };

  static cudaError_t CopyMany(absl::Span<const CopyPiece> pieces, GpuStream stream) {
    std::vector<void*> to;
    std::vector<void*> from;
    std::vector<size_t> sizes;
    to.reserve(pieces.size());
    from.reserve(pieces.size());
    sizes.reserve(pieces.size());
    for (const CopyPiece& piece : pieces) {
      to.push_back(piece.to);
      from.push_back(const_cast<std::byte*>(piece.from));
      sizes.push_back(piece.bytes);
    }
    // Sources are read in the order of the stream: with any other, a copy from the device may run
    // beside the kernel that writes its source.
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first = 0;
#if CUDART_VERSION >= 13000
    return cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attributes,
                                &first, 1, StreamOf(stream));
#else
    size_t failed = 0;
    return cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), sizes.size(), &attributes,
                                &first, 1, &failed, StreamOf(stream));
#endif
  }

  const PrimaryContexts contexts_;
  Mutex mu_;
  std::vector<CUcontext> of_device_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::shared_ptr<GpuRuntime>> CreateCudaRuntime() {
  const absl::StatusOr<int> devices = CountDevices();
  if (!devices.ok()) return devices.status();
  const absl::StatusOr<PrimaryContexts> contexts = PrimaryContexts::Find();
  if (!contexts.ok()) return contexts.status();
  return std::make_shared<CudaRuntime>(*devices, *contexts);
}

}  // namespace kvcache
