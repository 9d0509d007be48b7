#include "kvcache/backends/cpu_ram/cpu_ram.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/plugins/registry.h"

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
  for (const auto fault_in : {CpuRamOptions::FaultIn::kOnUse, CpuRamOptions::FaultIn::kAtCreate,
                              CpuRamOptions::FaultIn::kBackground}) {
    const absl::Status status =
        CreateCpuRamBackend({.capacity_bytes = size_t{1} << 60, .fault_in = fault_in}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("capacity_bytes = 1152921504606846976, but only "),
                      HasSubstr("bytes are available (")));
  }
}

TEST(CpuRamTest, ExportedMemoryHasEveryByteOfAnExtentAtItsOffset) {
  const auto backend = MakeBackend("cpu_ram", size_t{3} << 20, {{"sharing", "exported"}}).value();
  const ExportedMemory memory = backend->exported_memory().value();
  EXPECT_EQ(memory.size, size_t{3} << 20);
  const auto* const mapped =
      static_cast<std::byte*>(mmap(nullptr, memory.size, PROT_READ, MAP_SHARED, memory.fd, 0));
  ASSERT_NE(mapped, MAP_FAILED);
  for (int i = 1; i <= 3; ++i) {
    const Extent extent = backend->Allocate(1000 * i).value();
    EXPECT_EQ(backend->Address(extent), memory.base + extent.offset);
    const std::vector<std::byte> bytes(extent.size, static_cast<std::byte>(i));
    const ConstBytes source = bytes;
    const WriteOp op = {extent, 0, {&source, 1}, {}, 0, {}};
    ASSERT_TRUE(backend->Write({&op, 1}, Stream::None()).Wait().ok());
    EXPECT_EQ(std::memcmp(mapped + extent.offset, bytes.data(), bytes.size()), 0) << i;
  }
  munmap(const_cast<std::byte*>(mapped), memory.size);
  EXPECT_FALSE(Make(4096)->exported_memory().has_value()) << "private memory cannot be mapped";
}

TEST(CpuRamTest, MemoryIsUsableAlsoWhenTakenAtCreate) {
  const auto backend = CreateCpuRamBackend({.capacity_bytes = 1 << 20,
                                            .fault_in = CpuRamOptions::FaultIn::kAtCreate})
                           .value();
  const Extent extent = backend->Allocate(1 << 20).value();
  std::memset(backend->Address(extent), 1, extent.size);
  backend->Free(extent);
}

// Waits until no memory is left to be faulted in.
void WaitUntilFaultedIn(const StorageBackend& backend) {
  const auto capacity = static_cast<double>(backend.traits().capacity_bytes);
  while (backend.stats().Value("faulted_bytes").value() < capacity) std::this_thread::yield();
}

TEST(CpuRamTest, MemoryIsFaultedInInTheBackground) {
  constexpr size_t kCapacity = (size_t{40} << 20) + 64;
  const auto backend = Make(kCapacity);
  EXPECT_EQ(backend->stats().Text("fault_in"), "background");
  WaitUntilFaultedIn(*backend);
  const Extent extent = backend->Allocate(kCapacity).value();
  std::vector<unsigned char> pages(kCapacity / sysconf(_SC_PAGESIZE) + 1);
  ASSERT_EQ(mincore(backend->Address(extent), kCapacity, pages.data()), 0);
  EXPECT_TRUE(std::all_of(pages.begin(), pages.end(), [](int page) { return (page & 1) != 0; }))
      << "not in memory";
  backend->Free(extent);
  EXPECT_EQ(backend->stats().Value("faulted_bytes"), kCapacity);
  EXPECT_EQ(backend->stats().Value("page_fault_bytes"), 0);
  EXPECT_EQ(backend->stats().Text("fault_in_error"), std::nullopt);
}

TEST(CpuRamTest, AllOfItCanBeUsedWhileItIsFaultedIn) {
  constexpr size_t kBlock = 100'032;
  const auto backend = Make(300 * kBlock);
  std::vector<Extent> extents;
  for (int i = 0; i < 300; ++i) {
    extents.push_back(backend->Allocate(kBlock).value());
    std::memset(backend->Address(extents[i]), i % 251, kBlock);
  }
  EXPECT_EQ(backend->Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
  WaitUntilFaultedIn(*backend);
  for (int i = 0; i < 300; ++i) {
    const std::string expected(kBlock, static_cast<char>(i % 251));
    ASSERT_EQ(std::memcmp(backend->Address(extents[i]), expected.data(), kBlock), 0) << i;
    backend->Free(extents[i]);
  }
}

TEST(CpuRamTest, ItCanGoBeforeItIsFaultedIn) {
  for (int i = 0; i < 10; ++i) Make(size_t{64} << 20);
}

TEST(CpuRamTest, OnUseTakesWhatIsUsedAndCountsIt) {
  const auto backend =
      CreateCpuRamBackend({.capacity_bytes = 1 << 20, .fault_in = CpuRamOptions::FaultIn::kOnUse})
          .value();
  EXPECT_EQ(backend->stats().Value("faulted_bytes"), 0);
  for (int i = 0; i < 3; ++i) backend->Free(backend->Allocate(1000).value());
  EXPECT_EQ(backend->stats().Value("faulted_bytes"), 1024);
  EXPECT_EQ(backend->stats().Value("page_fault_bytes"), 1024);
  EXPECT_EQ(backend->stats().Text("fault_in"), "on_use");
}

TEST(CpuRamTest, AtCreateLeavesNothingToFaultIn) {
  const auto backend = CreateCpuRamBackend({.capacity_bytes = 1 << 20,
                                            .fault_in = CpuRamOptions::FaultIn::kAtCreate})
                           .value();
  backend->Free(backend->Allocate(1 << 20).value());
  EXPECT_EQ(backend->stats().Value("faulted_bytes"), 1 << 20);
  EXPECT_EQ(backend->stats().Value("page_fault_bytes"), 0);
  EXPECT_EQ(backend->stats().Text("fault_in"), "at_create");
}

TEST(CpuRamTest, HugePagesAreAChoiceThatTheStatisticsShow) {
  using HugePages = CpuRamOptions::HugePages;
  const auto stats = [](size_t capacity_bytes, HugePages huge_pages) {
    return CreateCpuRamBackend({.capacity_bytes = capacity_bytes,
                                .fault_in = CpuRamOptions::FaultIn::kOnUse,
                                .huge_pages = huge_pages})
        .value()
        ->stats();
  };
  EXPECT_EQ(stats(4096, HugePages::kNever).Text("huge_pages"), "never");
  EXPECT_EQ(stats(4096, HugePages::kAdvise).Text("huge_pages"), "advise");
  EXPECT_EQ(stats(4096, HugePages::kAdvise).Text("huge_pages_decided_by"), "option");
  const BackendStats small = stats(4096, HugePages::kAuto);
  EXPECT_EQ(small.Text("huge_pages"), "advise");
  EXPECT_EQ(small.Text("huge_pages_decided_by"), "capacity");
  EXPECT_EQ(small.Value("huge_pages_first_touch_bytes_per_second"), std::nullopt);
  const BackendStats large = stats(size_t{1} << 30, HugePages::kAuto);
  EXPECT_EQ(large.Text("huge_pages_decided_by"), "trial");
  const double small_pages = large.Value("small_pages_first_touch_bytes_per_second").value();
  const double huge_pages = large.Value("huge_pages_first_touch_bytes_per_second").value();
  EXPECT_EQ(large.Text("huge_pages"), 2 * huge_pages >= small_pages ? "advise" : "never");
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
       {Settings(), Settings{{"fault_in", "on_use"}}, Settings{{"fault_in", "at_create"}},
        Settings{{"fault_in", "background"}}, Settings{{"huge_pages", "never"}},
        Settings{{"huge_pages", "advise"}}, Settings{{"huge_pages", "auto"}}}) {
    const auto backend = MakeBackend("cpu_ram", 4096, settings);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->traits().capacity_bytes, 4096u);
    const BackendStats stats = (*backend)->stats();
    const auto is = [&](const char* name, const char* otherwise) -> std::string {
      const auto setting = settings.find(name);
      return setting == settings.end() ? otherwise : setting->second;
    };
    EXPECT_EQ(stats.Text("fault_in"), is("fault_in", "background"));
    EXPECT_EQ(stats.Text("huge_pages") == "never", is("huge_pages", "auto") == "never");
  }
}

TEST(CpuRamRegistryTest, UnknownSettingsAndValuesAreErrors) {
  absl::Status status = MakeBackend("cpu_ram", 4096, {{"numa_node", "1"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'numa_node'"));
  status = MakeBackend("cpu_ram", 4096, {{"fault_in", "later"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("'later' is none of: on_use, at_create, background"));
  status = MakeBackend("cpu_ram", 4096, {{"huge_pages", "always"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'always' is none of: never, advise, auto"));
}

}  // namespace
}  // namespace kvcache
