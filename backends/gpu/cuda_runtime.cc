#include "kvcache/backends/gpu/cuda_runtime.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvcache {
namespace {

// The driver has the same numbers; of those that its headers alone have names for, or that are
// newer than the oldest toolkit's, the number is given.
absl::StatusCode CodeOf(int error) {
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
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
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
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
    case CUDA_ERROR_INVALID_CONTEXT:
    case 226:  // cudaErrorContained
    case 721:  // cudaErrorTensorMemoryLeak
      return absl::StatusCode::kInternal;
    default:
      return absl::StatusCode::kInvalidArgument;
  }
}

// Takes the error off the thread, where it would be found by whoever calls CUDA next.
absl::Status Result(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return absl::Status(CodeOf(error),
                      absl::StrCat(call, ": ", cudaGetErrorName(error), " (",
                                   static_cast<int>(error), "): ", cudaGetErrorString(error)));
}

// Of the driver, which leaves nothing behind on the thread.
absl::Status Result(const char* call, CUresult error) {
  if (error == CUDA_SUCCESS) return absl::OkStatus();
  return absl::Status(CodeOf(error), absl::StrCat(call, ": error ", static_cast<int>(error)));
}

// The driver's calls that put a thread's state back as it was, also where it had none. The runtime
// has no such calls: cudaSetDevice() would leave a thread of the engine that has used no device so
// far with one, and with a context in its memory. They are looked up in the driver that the runtime
// has loaded, since asking the runtime for them would make a context, too.
class Driver {
 public:
  static absl::StatusOr<Driver> Find() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      return absl::UnavailableError(absl::StrCat("the CUDA driver cannot be opened: ", dlerror()));
    }
    Driver driver;
    absl::Status status = Load(library, "cuDeviceGet", &driver.get_device_);
    status.Update(Load(library, "cuDevicePrimaryCtxRetain", &driver.retain_));
    status.Update(Load(library, "cuCtxGetCurrent", &driver.get_current_));
    status.Update(Load(library, "cuCtxSetCurrent", &driver.set_current_));
    status.Update(Load(library, "cuCtxPushCurrent_v2", &driver.push_));
    status.Update(Load(library, "cuCtxPopCurrent_v2", &driver.pop_));
    status.Update(Load(library, "cuThreadExchangeStreamCaptureMode", &driver.exchange_mode_));
    if (!status.ok()) return status;
    return driver;
  }

  // The context of a device that the runtime works in. Made at its first use, which takes long, and
  // never released: the runtime does not either.
  absl::StatusOr<CUcontext> PrimaryContext(int device) const {
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
  void ExchangeCaptureMode(CUstreamCaptureMode* mode) const { exchange_mode_(mode); }

 private:
  template <typename Function>
  static absl::Status Load(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    if (*function != nullptr) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("the CUDA driver has no ", name));
  }

  decltype(&cuDeviceGet) get_device_;
  decltype(&cuDevicePrimaryCtxRetain) retain_;
  decltype(&cuCtxGetCurrent) get_current_;
  decltype(&cuCtxSetCurrent) set_current_;
  decltype(&cuCtxPushCurrent) push_;
  decltype(&cuCtxPopCurrent) pop_;
  decltype(&cuThreadExchangeStreamCaptureMode) exchange_mode_;
};

// While an engine records a CUDA graph, other threads must not be refused what they call, nor spoil
// the recording.
class BesideCapture {
 public:
  explicit BesideCapture(const Driver& driver) : driver_(driver) {
    driver_.ExchangeCaptureMode(&mode_);
  }
  ~BesideCapture() { driver_.ExchangeCaptureMode(&mode_); }
  BesideCapture(const BesideCapture&) = delete;
  BesideCapture& operator=(const BesideCapture&) = delete;

 private:
  const Driver& driver_;
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
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
  CudaRuntime(int devices, const Driver& driver) : driver_(driver), contexts_(devices) {}

  void UseThreadFor(int device) override {
    const BesideCapture beside_capture(driver_);
    const absl::StatusOr<CUcontext> context = ContextOf(device);
    // Without it every call brings its own.
    if (context.ok()) driver_.SetCurrent(*context).IgnoreError();
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

  absl::Status LoadKernels(int device) override {
    const OnDevice on(*this, device);
    if (!on.status().ok()) return on.status();
    return Result("loading the kernels", static_cast<cudaError_t>(::kvcache::LoadKernels()));
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
    absl::Status status = on.status();
    if (status.ok()) status = CheckNoGraph(stream);
    if (!status.ok()) return status;
    return Result("cudaEventRecord", cudaEventRecord(EventOf(event), StreamOf(stream)));
  }

  absl::Status MakeWait(int device, GpuStream stream, GpuEvent event) override {
    const OnDevice on(*this, device);
    absl::Status status = on.status();
    if (status.ok()) status = CheckNoGraph(stream);
    if (!status.ok()) return status;
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
  // A stream whose work becomes a graph takes no part in the order of others, and would be spoiled
  // for it.
  static absl::Status CheckNoGraph(GpuStream stream) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    absl::Status status =
        Result("cudaStreamIsCapturing", cudaStreamIsCapturing(StreamOf(stream), &capture));
    if (!status.ok() || capture == cudaStreamCaptureStatusNone) return status;
    return absl::InvalidArgumentError("the stream is recording a CUDA graph");
  }

  absl::StatusOr<CUcontext> ContextOf(int device) {
    if (device < 0 || static_cast<size_t>(device) >= contexts_.size()) {
      return absl::UnavailableError(
          absl::StrCat("device: ", device, ", but there are ", contexts_.size()));
    }
    std::atomic<CUcontext>& known = contexts_[device];
    if (const CUcontext context = known.load(std::memory_order_acquire)) return context;
    // Two threads may both do so; the driver gives them the same.
    const absl::StatusOr<CUcontext> made = driver_.PrimaryContext(device);
    if (made.ok()) known.store(*made, std::memory_order_release);
    return made;
  }

  // Makes a device the thread's current one for as long as it lives.
  class OnDevice {
   public:
    OnDevice(CudaRuntime& runtime, int device)
        : driver_(runtime.driver_), beside_capture_(driver_) {
      const absl::StatusOr<CUcontext> context = runtime.ContextOf(device);
      status_ = context.status();
      if (!status_.ok() || driver_.Current() == *context) return;
      status_ = driver_.Push(*context);
      pushed_ = status_.ok();
    }
    ~OnDevice() {
      if (pushed_) driver_.Pop();
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    const absl::Status& status() const { return status_; }

   private:
    const Driver& driver_;
    const BesideCapture beside_capture_;
    absl::Status status_;
    bool pushed_ = false;
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

  const Driver driver_;
  std::vector<std::atomic<CUcontext>> contexts_;  // by device; null until it is needed
};

}  // namespace

absl::StatusOr<std::shared_ptr<GpuRuntime>> CreateCudaRuntime() {
  const absl::StatusOr<int> devices = CountDevices();
  if (!devices.ok()) return devices.status();
  const absl::StatusOr<Driver> driver = Driver::Find();
  if (!driver.ok()) return driver.status();
  return std::make_shared<CudaRuntime>(*devices, *driver);
}

}  // namespace kvcache
