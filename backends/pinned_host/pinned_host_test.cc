#include "kvcache/backends/pinned_host/pinned_host.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/backends/pinned_host/pinned_region.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr MemorySpace kDevice = {MemoryKind::kDevice, 0};
using IfNotPinnable = PinnedHostOptions::IfNotPinnable;

std::shared_ptr<FakeGpuRuntime> MakeGpu(int devices = 1) {
  return std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{.devices = devices});
}

std::unique_ptr<StorageBackend> MakeBackend(std::shared_ptr<GpuRuntime> gpu,
                                            PinnedHostOptions options) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
      CreatePinnedHostBackend(options, std::move(gpu));
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

TEST(PinnedRegionTest, PinsTheFirstChunkAtOnceAndTheRestLater) {
  const auto gpu = MakeGpu();
  auto region = PinnedRegion::Create(gpu, {.capacity_bytes = 7 * kMiB, .chunk_bytes = 2 * kMiB});
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_GE(gpu->registered_bytes(), 2 * kMiB);
  (*region)->WaitUntilPinned();
  EXPECT_EQ(gpu->registered_bytes(), 7 * kMiB);
  EXPECT_EQ(gpu->calls("RegisterHost"), 4);
  EXPECT_EQ((*region)->progress().pinned_bytes, 7 * kMiB);
  EXPECT_GT((*region)->progress().pinning, absl::ZeroDuration());
  region->reset();
  EXPECT_EQ(gpu->registered_bytes(), 0u);
}

TEST(PinnedRegionTest, WhoNeedsMoreThanIsPinnedWaitsForIt) {
  const auto gpu = MakeGpu();
  auto region = PinnedRegion::Create(gpu, {.capacity_bytes = 64 * kMiB, .chunk_bytes = 2 * kMiB});
  ASSERT_TRUE(region.ok()) << region.status();
  const absl::StatusOr<Extent> all = (*region)->Allocate(64 * kMiB);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_TRUE((*region)->IsPinned(*all));
  EXPECT_TRUE(absl::IsResourceExhausted((*region)->Allocate(64).status()));
  (*region)->Free(*all);
}

TEST(PinnedRegionTest, EndsWherePinningIsRefused) {
  const auto gpu = MakeGpu();
  gpu->FailCall("RegisterHost", absl::InvalidArgumentError("not permitted"), /*skip=*/2);
  auto region = PinnedRegion::Create(gpu, {.capacity_bytes = 8 * kMiB, .chunk_bytes = 2 * kMiB});
  ASSERT_TRUE(region.ok()) << region.status();
  const absl::StatusOr<Extent> too_much = (*region)->Allocate(6 * kMiB);
  EXPECT_TRUE(absl::IsResourceExhausted(too_much.status()));
  EXPECT_NE(too_much.status().message().find("not permitted"), std::string::npos)
      << too_much.status();
  const absl::StatusOr<Extent> what_there_is = (*region)->Allocate(4 * kMiB);
  ASSERT_TRUE(what_there_is.ok()) << what_there_is.status();
  (*region)->Free(*what_there_is);
}

TEST(PinnedRegionTest, GoesOnWithPageableMemoryIfThatWillDo) {
  const auto gpu = MakeGpu();
  gpu->FailCall("RegisterHost", absl::InvalidArgumentError("not permitted"), /*skip=*/1);
  auto region = PinnedRegion::Create(
      gpu, {.capacity_bytes = 8 * kMiB, .chunk_bytes = 2 * kMiB, .pageable_if_refused = true});
  ASSERT_TRUE(region.ok()) << region.status();
  (*region)->WaitUntilPinned();
  const absl::StatusOr<Extent> pinned = (*region)->Allocate(2 * kMiB);
  const absl::StatusOr<Extent> pageable = (*region)->Allocate(6 * kMiB);
  ASSERT_TRUE(pinned.ok() && pageable.ok());
  EXPECT_FALSE((*region)->IsPinned(pinned->offset < pageable->offset ? *pageable : *pinned));
  EXPECT_EQ((*region)->progress().pinned_bytes, 2 * kMiB);
}

TEST(PinnedHostTest, RefusesWithoutADriver) {
  const absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
      CreatePinnedHostBackend({.capacity_bytes = kMiB}, nullptr);
  EXPECT_TRUE(absl::IsUnavailable(backend.status())) << backend.status();
}

TEST(PinnedHostTest, RefusesOptionsThatCannotBe) {
  const auto gpu = MakeGpu();
  const auto refusal = [&](const PinnedHostOptions& options) {
    return std::string(CreatePinnedHostBackend(options, gpu).status().ToString());
  };
  EXPECT_NE(refusal({.capacity_bytes = kMiB, .chunk_bytes = 4096}).find("chunk_bytes: 4096"),
            std::string::npos);
  EXPECT_NE(refusal({.capacity_bytes = kMiB, .numa_node = 999}).find("numa_node: 999"),
            std::string::npos);
  EXPECT_NE(refusal({.capacity_bytes = kMiB, .numa_node = -1}).find("numa_node: -1"),
            std::string::npos);
  EXPECT_NE(refusal({.capacity_bytes = size_t{1} << 50}).find("capacity_bytes = "),
            std::string::npos);
}

TEST(PinnedHostTest, TakesMemoryFromANode) {
  const auto backend = CreatePinnedHostBackend({.capacity_bytes = kMiB, .numa_node = 0}, MakeGpu());
  const absl::Status& status = backend.status();
  if (absl::IsPermissionDenied(status) || absl::IsUnimplemented(status)) {
    GTEST_SKIP() << "the container, or the kernel, lets nobody choose: " << status;
  }
  ASSERT_TRUE(status.ok()) << status;
  std::byte* const address = (*backend)->Address(*(*backend)->Allocate(kMiB));
  int policy = -1;
  constexpr unsigned long kMostNodes = 1024;
  unsigned long nodes[kMostNodes / 64] = {};
  ASSERT_EQ(syscall(SYS_get_mempolicy, &policy, nodes, kMostNodes, address, MPOL_F_ADDR), 0);
  EXPECT_EQ(policy, MPOL_BIND);
  EXPECT_EQ(nodes[0], 1u) << "node 0, and no other";
  int node = -1;
  ASSERT_EQ(syscall(SYS_get_mempolicy, &node, nullptr, 0, address, MPOL_F_ADDR | MPOL_F_NODE), 0);
  EXPECT_EQ(node, 0);
}

TEST(PinnedHostTest, WithoutPinnedMemoryItIsHostMemory) {
  const auto backend = MakeBackend(
      nullptr, {.capacity_bytes = kMiB, .if_not_pinnable = IfNotPinnable::kUsePageable});
  EXPECT_EQ(backend->traits().memory_space.kind, MemoryKind::kHost);
  EXPECT_EQ(backend->stats().Value("pinned_bytes"), 0);
  EXPECT_TRUE(backend->stats().Text("pin_error").has_value());
}

// A block and a device: what is copied there and back.
class ToDeviceTest : public testing::Test {
 protected:
  void Use(PinnedHostOptions options, size_t bytes, int devices = 1) {
    gpu_ = MakeGpu(devices);
    backend_ = MakeBackend(gpu_, options);
    bytes_ = bytes;
    extent_ = *backend_->Allocate(bytes);
    for (size_t i = 0; i < bytes; ++i) backend_->Address(extent_)[i] = Expected(i);
    memory_ = *gpu_->AllocateDevice(0, bytes);
  }
  void TearDown() override {
    backend_->Free(extent_);
    backend_.reset();
    gpu_->FreeDevice(0, memory_).IgnoreError();  // of a device that may be lost
    EXPECT_TRUE(gpu_->violations().empty()) << gpu_->violations()[0];
  }

  static std::byte Expected(size_t i) { return static_cast<std::byte>(i * 31 + i / 251); }
  bool OnDeviceIsRight() const {
    for (size_t i = 0; i < bytes_; ++i) {
      if (memory_[i] != Expected(i)) return false;
    }
    return true;
  }
  Transfer ToDevice(MemorySpace space = kDevice) {
    destination_ = {memory_, bytes_};
    const ReadOp op = {extent_, 0, {&destination_, 1}, space, 0, {}};
    return backend_->Read({&op, 1}, Stream::None());
  }
  Transfer FromDevice() {
    source_ = {memory_, bytes_};
    const WriteOp op = {extent_, 0, {&source_, 1}, kDevice, 0, {}};
    return backend_->Write({&op, 1}, Stream::None());
  }

  std::shared_ptr<FakeGpuRuntime> gpu_;
  std::unique_ptr<StorageBackend> backend_;
  size_t bytes_ = 0;
  Extent extent_;
  std::byte* memory_ = nullptr;
  MutableBytes destination_;
  ConstBytes source_;
};

TEST_F(ToDeviceTest, CopiesGoOverNoEndOfWhatIsRegisteredTogether) {
  Use({.capacity_bytes = 8 * kMiB, .chunk_bytes = 2 * kMiB}, 7 * kMiB + 12345);
  ASSERT_TRUE(ToDevice().Wait().ok()) << ToDevice().Wait();
  EXPECT_TRUE(OnDeviceIsRight());
  std::memset(backend_->Address(extent_), 0, bytes_);
  ASSERT_TRUE(FromDevice().Wait().ok());
  for (size_t i = 0; i < bytes_; ++i) ASSERT_EQ(backend_->Address(extent_)[i], Expected(i));
}

TEST_F(ToDeviceTest, PageableMemoryIsCopiedThroughAPinnedBuffer) {
  Use({.capacity_bytes = 4 * kMiB, .chunk_bytes = 2 * kMiB}, 64);
  backend_->Free(extent_);
  backend_.reset();
  ASSERT_TRUE(gpu_->FreeDevice(0, memory_).ok());
  gpu_->FailCall("RegisterHost", absl::InvalidArgumentError("not permitted"));
  PinnedHostOptions options = {.capacity_bytes = 4 * kMiB,
                               .chunk_bytes = 2 * kMiB,
                               .if_not_pinnable = IfNotPinnable::kUsePageable};
  options.link.staging_bytes = size_t{64} << 10;
  backend_ = MakeBackend(gpu_, options);
  EXPECT_EQ(backend_->traits().memory_space.kind, MemoryKind::kHost);
  bytes_ = 3 * kMiB + 77;
  extent_ = *backend_->Allocate(bytes_);
  for (size_t i = 0; i < bytes_; ++i) backend_->Address(extent_)[i] = Expected(i);
  memory_ = *gpu_->AllocateDevice(0, bytes_);
  ASSERT_TRUE(ToDevice().Wait().ok());
  EXPECT_TRUE(OnDeviceIsRight());
  std::memset(backend_->Address(extent_), 0, bytes_);
  const Transfer back = FromDevice();
  ASSERT_TRUE(back.Done());
  ASSERT_TRUE(back.Wait().ok()) << back.Wait();
  for (size_t i = 0; i < bytes_; ++i) ASSERT_EQ(backend_->Address(extent_)[i], Expected(i));
  EXPECT_EQ(backend_->stats().Value("device_0_staged_bytes"), 2.0 * bytes_);
}

TEST_F(ToDeviceTest, OneCallIsForOneDevice) {
  Use({.capacity_bytes = kMiB}, 512, /*devices=*/2);
  MutableBytes first = {memory_, 256};
  MutableBytes second = {memory_ + 256, 256};
  const ReadOp ops[] = {{extent_, 0, {&first, 1}, kDevice, 0, {}},
                        {extent_, 256, {&second, 1}, {MemoryKind::kDevice, 1}, 1, {}}};
  const Transfer transfer = backend_->Read(ops, Stream::None());
  transfer.Wait().IgnoreError();
  EXPECT_TRUE(transfer.result(0).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(transfer.result(1))) << transfer.result(1);
}

TEST_F(ToDeviceTest, ADeviceThatIsNotThereIsRefused) {
  Use({.capacity_bytes = kMiB}, 512);
  EXPECT_TRUE(absl::IsInvalidArgument(ToDevice({MemoryKind::kDevice, 5}).Wait()));
  EXPECT_TRUE(ToDevice().Wait().ok());
}

TEST(PinnedHostTest, CopiesOfOneBlockByTwoDevicesKeepTheirOrder) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    const auto gpu = std::make_shared<FakeGpuRuntime>(
        FakeGpuRuntime::Options{.devices = 2, .seed = seed, .run_when_waited_for = false});
    std::unique_ptr<StorageBackend> backend = MakeBackend(gpu, {.capacity_bytes = kMiB});
    const Extent extent = *backend->Allocate(256);
    std::vector<Transfer> copies;
    std::vector<std::byte*> memory;
    for (int device : {0, 1}) {
      memory.push_back(*gpu->AllocateDevice(device, 256));
      std::memset(memory.back(), device + 1, 256);
      const ConstBytes source = {memory.back(), 256};
      const WriteOp op = {extent, 0, {&source, 1}, {MemoryKind::kDevice, device}, 0, {}};
      copies.push_back(backend->Write({&op, 1}, Stream::None()));
    }
    gpu->RunAll();
    for (const Transfer& copy : copies) EXPECT_TRUE(copy.Wait().ok());
    EXPECT_EQ(backend->Address(extent)[0], std::byte{2}) << "seed " << seed;
    EXPECT_EQ(backend->Address(extent)[255], std::byte{2}) << "seed " << seed;
    backend->Free(extent);
    backend.reset();
    for (int device : {0, 1}) EXPECT_TRUE(gpu->FreeDevice(device, memory[device]).ok());
    EXPECT_TRUE(gpu->violations().empty());
  }
}

TEST(PinnedHostTest, ACopyOnTheHostOvertakesNoneThatItCannotWaitFor) {
  const auto gpu =
      std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{.run_when_waited_for = false});
  std::unique_ptr<StorageBackend> backend = MakeBackend(gpu, {.capacity_bytes = kMiB});
  const Extent extent = *backend->Allocate(256);
  std::byte* const memory = *gpu->AllocateDevice(0, 256);
  const ConstBytes on_device = {memory, 256};
  const WriteOp from_device = {extent, 0, {&on_device, 1}, kDevice, 0, {}};
  const Transfer first = backend->Write({&from_device, 1}, Stream::None());
  // The link's thread has asked, so that the refusal is not for it.
  while (gpu->calls("Synchronize") == 0) std::this_thread::yield();
  gpu->FailCall("Synchronize", absl::ResourceExhaustedError("injected"));
  const std::vector<std::byte> bytes(256, std::byte{2});
  const ConstBytes on_host = bytes;
  const WriteOp from_host = {extent, 0, {&on_host, 1}, {}, 1, {}};
  const Transfer second = backend->Write({&from_host, 1}, Stream::None());
  EXPECT_TRUE(absl::IsResourceExhausted(second.Wait())) << second.Wait();
  EXPECT_NE(backend->Address(extent)[0], std::byte{2});
  gpu->RunAll();
  EXPECT_TRUE(first.Wait().ok());
  backend->Free(extent);
  backend.reset();
  EXPECT_TRUE(gpu->FreeDevice(0, memory).ok());
  EXPECT_TRUE(gpu->violations().empty());
}

TEST(PinnedHostTest, MemoryIsPinnedByTheDeviceThatIsNamed) {
  const auto gpu = MakeGpu(/*devices=*/2);
  gpu->LoseDevice(0);
  EXPECT_TRUE(CreatePinnedHostBackend({.capacity_bytes = kMiB, .device = 1}, gpu).ok());
  EXPECT_FALSE(CreatePinnedHostBackend({.capacity_bytes = kMiB, .device = 0}, gpu).ok());
}

TEST_F(ToDeviceTest, OneDeviceIsLostAndTheOtherGoesOn) {
  Use({.capacity_bytes = kMiB}, 512, /*devices=*/2);
  ASSERT_TRUE(ToDevice().Wait().ok());
  gpu_->LoseDevice(0);
  EXPECT_FALSE(ToDevice().Wait().ok());
  std::byte* const other = *gpu_->AllocateDevice(1, 512);
  const MutableBytes destination = {other, 512};
  const ReadOp op = {extent_, 0, {&destination, 1}, {MemoryKind::kDevice, 1}, 0, {}};
  const absl::Status status = backend_->Read({&op, 1}, Stream::None()).Wait();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(other[511], Expected(511));
  EXPECT_TRUE(gpu_->FreeDevice(1, other).ok());
}

TEST_F(ToDeviceTest, BlocksOutliveTheDevice) {
  Use({.capacity_bytes = kMiB}, 512);
  ASSERT_TRUE(ToDevice().Wait().ok());
  gpu_->LoseDevice(0);
  const absl::Status lost = ToDevice().Wait();
  EXPECT_TRUE(absl::IsFailedPrecondition(lost)) << lost;
  EXPECT_NE(lost.message().find("device 0 has failed"), std::string::npos) << lost;
  EXPECT_TRUE(backend_->stats().Text("device_0_error").has_value());
  std::vector<std::byte> copy(bytes_);
  const MutableBytes destination = absl::MakeSpan(copy);
  const ReadOp op = {extent_, 0, {&destination, 1}, {}, 0, {}};
  ASSERT_TRUE(backend_->Read({&op, 1}, Stream::None()).Wait().ok());
  for (size_t i = 0; i < bytes_; ++i) ASSERT_EQ(copy[i], Expected(i));
}

}  // namespace
}  // namespace kvcache
