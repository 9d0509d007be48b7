#include "kvcache/backends/cuda_device/cuda_device.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

constexpr size_t kKiB = 1024;
constexpr MemorySpace kDevice = {MemoryKind::kDevice, 0};

class CudaDeviceTest : public testing::Test {
 protected:
  void Use(FakeGpuRuntime::Options gpu, CudaDeviceOptions options) {
    gpu_ = std::make_shared<FakeGpuRuntime>(gpu);
    absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
        CreateCudaDeviceBackend(options, gpu_);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }
  void TearDown() override {
    if (backend_ == nullptr) return;
    gpu_->RunAll();
    backend_.reset();
    for (std::byte* memory : device_memory_) gpu_->FreeDevice(0, memory).IgnoreError();
    for (auto& memory : pinned_) gpu_->UnregisterHost(0, memory.data()).IgnoreError();
    EXPECT_TRUE(gpu_->violations().empty()) << gpu_->violations()[0];
  }

  MutableBytes DeviceMemory(size_t bytes) {
    device_memory_.push_back(*gpu_->AllocateDevice(0, bytes));
    return {device_memory_.back(), bytes};
  }
  MutableBytes Pinned(size_t bytes) {
    pinned_.reserve(16);
    pinned_.emplace_back(bytes);
    EXPECT_TRUE(gpu_->RegisterHost(0, absl::MakeSpan(pinned_.back())).ok());
    return absl::MakeSpan(pinned_.back());
  }
  Transfer Write(const Extent& extent, ConstBytes source, MemorySpace space,
                 Stream stream = Stream::None(), uint32_t part = 0) {
    const WriteOp op = {extent, 0, {&source, 1}, space, part, {}};
    return backend_->Write({&op, 1}, stream);
  }
  Transfer Read(const Extent& extent, MutableBytes destination, MemorySpace space,
                Stream stream = Stream::None()) {
    const ReadOp op = {extent, 0, {&destination, 1}, space, 0, {}};
    return backend_->Read({&op, 1}, stream);
  }

  std::shared_ptr<FakeGpuRuntime> gpu_;
  std::unique_ptr<StorageBackend> backend_;
  std::vector<std::byte*> device_memory_;
  std::vector<std::vector<std::byte>> pinned_;
};

TEST_F(CudaDeviceTest, TakesAShareOfWhatIsFree) {
  Use({.device_bytes = 1000 * kKiB}, {.share_of_free = 0.5});
  EXPECT_EQ(backend_->traits().capacity_bytes, 500 * kKiB);
  EXPECT_EQ(backend_->traits().memory_space, kDevice);
}

TEST_F(CudaDeviceTest, RefusesOptionsThatCannotBe) {
  const auto gpu = std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{});
  const auto code = [&](const CudaDeviceOptions& options) {
    return CreateCudaDeviceBackend(options, gpu).status().code();
  };
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.capacity_bytes = kKiB, .share_of_free = 0.5}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.share_of_free = 1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.share_of_free = -0.1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.device = 1, .capacity_bytes = kKiB}), absl::StatusCode::kUnavailable);
  EXPECT_EQ(code({.capacity_bytes = size_t{1} << 40}), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code({.capacity_bytes = kKiB, .link = {.threads = 0}}),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateCudaDeviceBackend({.capacity_bytes = kKiB}, nullptr).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(CudaDeviceTest, LargePiecesGoInOneBatchAndSmallOnesByOneKernel) {
  Use({}, {.capacity_bytes = 400 * kKiB, .link = {.kernel_below_bytes = 4 * kKiB}});
  const Extent extent = *backend_->Allocate(200 * kKiB);
  const MutableBytes host = Pinned(200 * kKiB);
  // Neighbours on one side only, so that nothing can be joined.
  std::vector<ConstBytes> pieces;
  for (int i = 4; i >= 0; --i) pieces.push_back(host.subspan(i * 20 * kKiB, 20 * kKiB));
  for (int i = 20; i >= 0; --i) pieces.push_back(host.subspan(100 * kKiB + i * kKiB, kKiB));
  const WriteOp op = {extent, 0, pieces, {MemoryKind::kPinnedHost}, 0, {}};
  ASSERT_TRUE(backend_->Write({&op, 1}, Stream::None()).Wait().ok());
  EXPECT_EQ(gpu_->calls("CopyBatch"), 1);
  EXPECT_EQ(gpu_->calls("CopyByKernel"), 1);
  EXPECT_EQ(backend_->stats().Value("device_0_batched_bytes"), 100 * kKiB);
  EXPECT_EQ(backend_->stats().Value("device_0_kernel_bytes"), 21 * kKiB);
  backend_->Free(extent);
}

TEST_F(CudaDeviceTest, NeighboursAreJoined) {
  Use({}, {.capacity_bytes = 400 * kKiB, .link = {.kernel_below_bytes = 4 * kKiB}});
  const Extent extent = *backend_->Allocate(64 * kKiB);
  const MutableBytes host = Pinned(64 * kKiB);
  std::vector<ConstBytes> pieces;
  for (int i = 0; i < 64; ++i) pieces.push_back(host.subspan(i * kKiB, kKiB));
  const WriteOp op = {extent, 0, pieces, {MemoryKind::kPinnedHost}, 0, {}};
  ASSERT_TRUE(backend_->Write({&op, 1}, Stream::None()).Wait().ok());
  EXPECT_EQ(gpu_->calls("CopyBatch"), 1);
  EXPECT_EQ(gpu_->calls("CopyByKernel"), 0);
  backend_->Free(extent);
}

TEST_F(CudaDeviceTest, ALayerCanBeUsedWhileTheNextIsOnItsWay) {
  Use({.run_when_waited_for = false}, {.capacity_bytes = 400 * kKiB});
  const Extent extent = *backend_->Allocate(128 * kKiB);
  const MutableBytes host = Pinned(128 * kKiB);
  const Stream stream = gpu_->EngineStream();
  MutableBytes halves[] = {host.subspan(0, 64 * kKiB), host.subspan(64 * kKiB)};
  const ReadOp ops[] = {{extent, 0, {&halves[0], 1}, {MemoryKind::kPinnedHost}, 0, {}},
                        {extent, 64 * kKiB, {&halves[1], 1}, {MemoryKind::kPinnedHost}, 1, {}}};
  const Transfer transfer = backend_->Read(ops, stream);
  std::atomic<bool> used = false;
  ASSERT_TRUE(transfer.WaitPartOn(stream, 0).ok());
  size_t pending = 0;
  gpu_->Enqueue(stream, [&] {
    used = true;
    pending = gpu_->pending();
  });
  // The second layer is the last that a stream can go on with.
  while (!used && gpu_->Step()) {
  }
  ASSERT_TRUE(used);
  EXPECT_TRUE(transfer.WaitPart(0).ok());
  gpu_->RunAll();
  EXPECT_TRUE(transfer.Wait().ok());
  backend_->Free(extent);
}

TEST_F(CudaDeviceTest, AnExtentIsNotHandedOutBeforeItsCopiesHaveRun) {
  Use({.run_when_waited_for = false}, {.capacity_bytes = 64 * kKiB});
  const Extent extent = *backend_->Allocate(64 * kKiB);
  const MutableBytes host = Pinned(64 * kKiB);
  const Transfer read = Read(extent, host, {MemoryKind::kPinnedHost});
  backend_->Free(extent);
  EXPECT_TRUE(absl::IsResourceExhausted(backend_->Allocate(64).status()));
  gpu_->RunAll();
  ASSERT_TRUE(read.Wait().ok());
  const absl::StatusOr<Extent> again = backend_->Allocate(64 * kKiB);
  ASSERT_TRUE(again.ok()) << again.status();
  backend_->Free(*again);
}

TEST_F(CudaDeviceTest, CopiesOfOneExtentKeepTheirOrderAcrossStreams) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    Use({.seed = seed, .run_when_waited_for = false}, {.capacity_bytes = 64 * kKiB});
    const Extent extent = *backend_->Allocate(kKiB);
    const MutableBytes first = Pinned(kKiB);
    const MutableBytes second = Pinned(kKiB);
    const MutableBytes seen = Pinned(kKiB);
    std::fill(first.begin(), first.end(), std::byte{1});
    std::fill(second.begin(), second.end(), std::byte{2});
    const Transfer write = Write(extent, first, {MemoryKind::kPinnedHost});
    const Transfer read = Read(extent, seen, {MemoryKind::kPinnedHost});
    const Transfer overwrite = Write(extent, second, {MemoryKind::kPinnedHost});
    gpu_->RunAll();
    ASSERT_TRUE(write.Wait().ok() && read.Wait().ok() && overwrite.Wait().ok());
    EXPECT_EQ(seen, ConstBytes(first)) << "seed " << seed;
    backend_->Free(extent);
    TearDown();
    backend_ = nullptr;
    pinned_.clear();
  }
}

TEST_F(CudaDeviceTest, PeersAreEnabledOnceAndRefusedByName) {
  Use({.devices = 2}, {.capacity_bytes = 64 * kKiB});
  const Extent extent = *backend_->Allocate(kKiB);
  std::byte* const peer = *gpu_->AllocateDevice(1, kKiB);
  gpu_->FailCall("EnablePeer", absl::InvalidArgumentError("not supported"));
  const absl::Status refused = Write(extent, {peer, kKiB}, {MemoryKind::kDevice, 1}).Wait();
  EXPECT_TRUE(absl::IsInvalidArgument(refused));
  EXPECT_NE(refused.message().find("device 0 cannot reach the memory of device 1"),
            std::string::npos)
      << refused;
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = Write(extent, {peer, kKiB}, {MemoryKind::kDevice, 1}).Wait();
    EXPECT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(gpu_->calls("EnablePeer"), 2);
  backend_->Free(extent);
  EXPECT_TRUE(gpu_->FreeDevice(1, peer).ok());
}

TEST_F(CudaDeviceTest, AfterALossEverythingIsRefusedAndSaysWhy) {
  Use({}, {.capacity_bytes = 64 * kKiB});
  const Extent extent = *backend_->Allocate(kKiB);
  std::atomic<int> told = 0;
  backend_->OnFailure([&](const absl::Status& status) {
    EXPECT_TRUE(absl::IsUnavailable(status));
    ++told;
  });
  const MutableBytes host = Pinned(kKiB);
  gpu_->LoseDevice(0);
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = Write(extent, host, {MemoryKind::kPinnedHost}).Wait();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_NE(status.message().find("the device is lost"), std::string::npos) << status;
  }
  EXPECT_TRUE(absl::IsUnavailable(backend_->Allocate(64).status()));
  while (told == 0) std::this_thread::yield();
  EXPECT_TRUE(backend_->stats().Text("device_0_error").has_value());
  backend_->Free(extent);
  backend_->OnFailure(nullptr);
  EXPECT_EQ(told, 1);
}

TEST_F(CudaDeviceTest, NeighboursOfTwoAllocationsAreCopiedOneByOne) {
  Use({}, {.capacity_bytes = 400 * kKiB, .link = {.kernel_below_bytes = 0}});
  const Extent extent = *backend_->Allocate(64 * kKiB);
  const MutableBytes host = Pinned(64 * kKiB);
  // What a driver says to a copy that goes over the end of an allocation.
  gpu_->FailCall("CopyBatch", absl::InvalidArgumentError("invalid value"));
  const ConstBytes pieces[] = {host.subspan(0, 32 * kKiB), host.subspan(32 * kKiB)};
  const WriteOp op = {extent, 0, pieces, {MemoryKind::kPinnedHost}, 0, {}};
  const absl::Status status = backend_->Write({&op, 1}, Stream::None()).Wait();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(gpu_->calls("CopyBatch"), 2);
  backend_->Free(extent);
}

TEST_F(CudaDeviceTest, OpsOfNoBytesEndWell) {
  Use({}, {.capacity_bytes = 64 * kKiB});
  const Extent extent = *backend_->Allocate(kKiB);
  const std::vector<std::byte> host(kKiB);
  const ConstBytes source = host;
  const WriteOp none = {extent, 0, {}, {MemoryKind::kHost}, 0, {}};
  const WriteOp some = {extent, 0, {&source, 1}, {MemoryKind::kHost}, 1, {}};
  const WriteOp ops[] = {none, some, none};
  const absl::Status status = backend_->Write(ops, Stream::None()).Wait();
  EXPECT_TRUE(status.ok()) << status;
  backend_->Free(extent);
}

// Otherwise nobody would know when the copy has run.
TEST_F(CudaDeviceTest, ARecordOrAWaitThatIsRefusedIsAskedForAgain) {
  for (const char* call : {"Record", "Synchronize"}) {
    for (const int refusals : {1, 2, 3}) {
      Use({}, {.capacity_bytes = 64 * kKiB});
      const Extent extent = *backend_->Allocate(kKiB);
      const MutableBytes host = Pinned(kKiB);
      for (int i = 0; i < refusals; ++i) {
        gpu_->FailCall(call, absl::InvalidArgumentError("injected"));
      }
      const absl::Status status = Write(extent, host, {MemoryKind::kPinnedHost}).Wait();
      if (refusals < 3) {
        EXPECT_TRUE(status.ok()) << call << ": " << status;
      } else {
        EXPECT_TRUE(absl::IsUnavailable(status)) << call << ": " << status;
        EXPECT_TRUE(absl::IsUnavailable(backend_->Allocate(64).status())) << call;
      }
      backend_->Free(extent);
      TearDown();
      backend_ = nullptr;
      pinned_.clear();
    }
  }
}

TEST_F(CudaDeviceTest, ACopyBehindADeviceThatFailsFails) {
  Use({.devices = 2, .run_when_waited_for = false}, {.capacity_bytes = 64 * kKiB});
  const Extent extent = *backend_->Allocate(kKiB);
  const MutableBytes source = DeviceMemory(kKiB);
  const Stream other = gpu_->EngineStream(1);
  // The kernel that makes the source.
  gpu_->Enqueue(other, [] {});
  const Transfer write = Write(extent, source, kDevice, other);
  gpu_->LoseDevice(1);
  gpu_->RunAll();
  EXPECT_FALSE(write.Wait().ok());
  const Transfer again = Write(extent, source, kDevice);
  gpu_->RunAll();
  EXPECT_TRUE(again.Wait().ok()) << again.Wait();
  backend_->Free(extent);
}

// Its threads are ending, and one of them notices.
TEST_F(CudaDeviceTest, ADeviceMayFailWhileTheBackendGoes) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    Use({.seed = seed}, {.capacity_bytes = 64 * kKiB});
    const Stream stream = gpu_->EngineStream();
    for (int i = 0; i < 500; ++i) gpu_->Enqueue(stream, [] {});
    backend_->After(stream);
    gpu_->LoseDevice(0, 400);
    TearDown();
    backend_ = nullptr;
  }
}

TEST_F(CudaDeviceTest, AStreamThatStallsHoldsUpNobodyElse) {
  Use({.run_when_waited_for = false}, {.capacity_bytes = 64 * kKiB, .link = {.threads = 1}});
  const Extent extent = *backend_->Allocate(kKiB);
  const MutableBytes host = Pinned(kKiB);
  const Stream stalled = gpu_->EngineStream();
  const Stream other = gpu_->EngineStream();
  gpu_->Enqueue(stalled, [] {});
  gpu_->Hold(stalled, true);
  std::vector<Transfer> behind_it;
  for (int i = 0; i < 8; ++i) behind_it.push_back(backend_->After(stalled));
  const Transfer after_other = backend_->After(other);
  const Transfer write = Write(extent, host, {MemoryKind::kPinnedHost});
  const Transfer read = Read(extent, host, {MemoryKind::kPinnedHost});
  gpu_->RunAll();
  EXPECT_TRUE(write.Wait().ok());
  EXPECT_TRUE(read.Wait().ok());
  EXPECT_TRUE(after_other.Wait().ok());
  for (const Transfer& transfer : behind_it) EXPECT_FALSE(transfer.Done());
  gpu_->Hold(stalled, false);
  gpu_->RunAll();
  for (const Transfer& transfer : behind_it) EXPECT_TRUE(transfer.Wait().ok());
  backend_->Free(extent);
}

TEST_F(CudaDeviceTest, APageableCopyThatStallsHoldsUpNoneInTheOtherDirection) {
  Use({.run_when_waited_for = false}, {.capacity_bytes = 64 * kKiB});
  const Extent first = *backend_->Allocate(kKiB);
  const Extent second = *backend_->Allocate(kKiB);
  std::vector<std::byte> out(kKiB);
  const std::vector<std::byte> in(kKiB);
  const Stream stalled = gpu_->EngineStream();
  gpu_->Enqueue(stalled, [] {});
  gpu_->Hold(stalled, true);
  const int waits = gpu_->calls("Synchronize");
  std::thread reader([&] {
    EXPECT_TRUE(Read(first, absl::MakeSpan(out), {MemoryKind::kHost}, stalled).Wait().ok());
  });
  while (gpu_->calls("Synchronize") == waits) std::this_thread::yield();
  const Transfer written = Write(second, in, {MemoryKind::kHost});
  gpu_->RunAll();
  EXPECT_TRUE(written.Wait().ok()) << written.Wait();
  gpu_->Hold(stalled, false);
  gpu_->RunAll();
  reader.join();
  backend_->Free(first);
  backend_->Free(second);
}

TEST_F(CudaDeviceTest, ARefusedWaitForgetsNoEarlierCopy) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    Use({.seed = seed, .run_when_waited_for = false}, {.capacity_bytes = 64 * kKiB});
    const Extent extent = *backend_->Allocate(kKiB);
    const MutableBytes first = Pinned(kKiB);
    const MutableBytes seen = Pinned(kKiB);
    const MutableBytes second = Pinned(kKiB);
    std::fill(first.begin(), first.end(), std::byte{1});
    std::fill(second.begin(), second.end(), std::byte{2});
    const Transfer write = Write(extent, first, {MemoryKind::kPinnedHost});
    const Transfer read = Read(extent, seen, {MemoryKind::kPinnedHost});
    gpu_->FailCall("MakeWait", absl::ResourceExhaustedError("injected"));
    const Transfer refused = Write(extent, second, {MemoryKind::kPinnedHost});
    const Transfer overwrite = Write(extent, second, {MemoryKind::kPinnedHost});
    gpu_->RunAll();
    EXPECT_TRUE(absl::IsResourceExhausted(refused.Wait())) << refused.Wait();
    ASSERT_TRUE(write.Wait().ok() && read.Wait().ok() && overwrite.Wait().ok());
    EXPECT_EQ(seen, ConstBytes(first)) << "seed " << seed;
    backend_->Free(extent);
    TearDown();
    backend_ = nullptr;
    pinned_.clear();
  }
}

TEST_F(CudaDeviceTest, DefaultStreamsAreRefused) {
  Use({}, {.capacity_bytes = 64 * kKiB});
  const Extent extent = *backend_->Allocate(kKiB);
  const MutableBytes host = Pinned(kKiB);
  // Null, cudaStreamLegacy and cudaStreamPerThread.
  for (uintptr_t handle : {0, 1, 2}) {
    const Stream stream = {kDevice, reinterpret_cast<void*>(handle)};
    EXPECT_TRUE(
        absl::IsInvalidArgument(Write(extent, host, {MemoryKind::kPinnedHost}, stream).Wait()));
    EXPECT_TRUE(absl::IsInvalidArgument(backend_->After(stream).Wait()));
  }
  backend_->Free(extent);
}

TEST_F(CudaDeviceTest, AStreamOfNoDeviceIsRefused) {
  Use({}, {.capacity_bytes = 64 * kKiB});
  int engine = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(backend_->After({{MemoryKind::kHost}, &engine}).Wait()));
  EXPECT_TRUE(backend_->After(Stream::None()).Wait().ok());
}

}  // namespace
}  // namespace kvcache
