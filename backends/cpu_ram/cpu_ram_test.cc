#include "kvcache/backends/cpu_ram/cpu_ram.h"

#include <array>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/registry.h"

namespace kvcache {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

std::unique_ptr<StorageBackend> Make(size_t capacity_bytes) {
  return CreateCpuRamBackend({.capacity_bytes = capacity_bytes}).value();
}

TEST(CpuRamTest, TraitsSayWhatItIs) {
  const auto backend = Make(1000);
  EXPECT_EQ(backend->traits().name, "cpu_ram");
  EXPECT_EQ(backend->traits().memory_space, MemorySpace{MemoryKind::kHost});
  EXPECT_TRUE(backend->traits().addressable);
  EXPECT_TRUE(backend->traits().stores_bytes);
  EXPECT_EQ(backend->traits().capacity_bytes, 960u) << "whole units of 64 bytes";
  EXPECT_EQ(backend->traits().alignment, 64u);
}

TEST(CpuRamTest, ACapacityBelowOneUnitIsInvalid) {
  for (const size_t capacity_bytes : {0, 1, 63}) {
    EXPECT_EQ(CreateCpuRamBackend({.capacity_bytes = capacity_bytes}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(CpuRamTest, MoreThanTheSystemHasIsRefusedWithBothValues) {
  for (const auto fault_in : {CpuRamOptions::FaultIn::kOnUse, CpuRamOptions::FaultIn::kAtCreate}) {
    const absl::Status status =
        CreateCpuRamBackend({.capacity_bytes = size_t{1} << 60, .fault_in = fault_in}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("capacity_bytes = 1152921504606846976, but only "),
                      HasSubstr("bytes are available (")));
  }
}

TEST(CpuRamTest, MemoryIsUsableAlsoWhenTakenAtCreate) {
  const auto backend = CreateCpuRamBackend({.capacity_bytes = 1 << 20,
                                            .fault_in = CpuRamOptions::FaultIn::kAtCreate})
                           .value();
  const Extent extent = backend->Allocate(1 << 20).value();
  std::memset(backend->Address(extent), 1, extent.size);
  backend->Free(extent);
}

TEST(CpuRamTest, DeviceMemoryIsRefusedOpByOp) {
  const auto backend = Make(4096);
  const Extent extent = backend->Allocate(128).value();
  std::array<std::byte, 64> bytes = {};
  const ConstBytes source[] = {bytes};
  const MutableBytes destination[] = {absl::MakeSpan(bytes)};
  const MemorySpace device = {MemoryKind::kDevice, 3};
  const MemorySpace pinned = {MemoryKind::kPinnedHost};
  const WriteOp writes[] = {{extent, 0, source, device, 0}, {extent, 0, source, pinned, 0}};
  const Transfer written = backend->Write(writes, Stream::None());
  EXPECT_EQ(written.result(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(written.result(0).message()), HasSubstr("device 3"));
  EXPECT_TRUE(written.result(1).ok()) << written.result(1);
  const ReadOp reads[] = {{extent, 0, destination, device, 0}, {extent, 0, destination, pinned, 0}};
  const Transfer read = backend->Read(reads, Stream::None());
  EXPECT_EQ(read.result(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(read.result(1).ok()) << read.result(1);
  backend->Free(extent);
}

TEST(CpuRamTest, EveryOpOfACallWithAStreamIsRefused) {
  const auto backend = Make(4096);
  const Extent extent = backend->Allocate(128).value();
  std::array<std::byte, 64> bytes = {};
  const ConstBytes source[] = {bytes};
  const WriteOp writes[] = {{extent, 0, source, {}, 0}, {extent, 64, source, {}, 1}};
  int queue = 0;
  const Transfer written = backend->Write(writes, {{MemoryKind::kDevice, 0}, &queue});
  EXPECT_TRUE(written.Done());
  EXPECT_EQ(written.WaitPart(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(written.WaitPart(1).code(), absl::StatusCode::kInvalidArgument);
  backend->Free(extent);
}

TEST(CpuRamDeathTest, AnExtentOfAnotherBackendAborts) {
  const auto backend = Make(4096);
  const Extent foreign = {.offset = 4096, .size = 64, .node = 1};
  EXPECT_DEATH(backend->Address(foreign), "not an extent of this backend: offset 4096");
  EXPECT_DEATH(backend->Free(foreign), "extent");
}

#ifdef __SANITIZE_ADDRESS__
TEST(CpuRamDeathTest, TheAddressSanitizerFindsUsesAfterFree) {
  const auto backend = Make(4096);
  const Extent extent = backend->Allocate(128).value();
  volatile std::byte* const address = backend->Address(extent);
  address[127] = std::byte{1};
  EXPECT_DEATH(address[128] = std::byte{1}, "use-after-poison");
  backend->Free(extent);
  EXPECT_DEATH(address[0] = std::byte{1}, "use-after-poison");
}
#endif

TEST(CpuRamRegistryTest, IsMadeByName) {
  EXPECT_THAT(BackendNames(), Contains("cpu_ram"));
  for (const Settings& settings :
       {Settings(), Settings{{"fault_in", "on_use"}}, Settings{{"fault_in", "at_create"}}}) {
    const auto backend = MakeBackend("cpu_ram", 4096, settings);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->traits().capacity_bytes, 4096u);
  }
}

TEST(CpuRamRegistryTest, UnknownSettingsAndValuesAreErrors) {
  absl::Status status = MakeBackend("cpu_ram", 4096, {{"numa_node", "1"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'numa_node'"));
  status = MakeBackend("cpu_ram", 4096, {{"fault_in", "later"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'later'"));
}

}  // namespace
}  // namespace kvcache
