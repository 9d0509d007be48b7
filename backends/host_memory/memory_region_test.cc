#include "kvcache/backends/host_memory/memory_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// How many of the region's pages are in memory.
size_t ResidentPages(const MemoryRegion& region) {
  const size_t page = sysconf(_SC_PAGESIZE);
  std::vector<unsigned char> pages((region.size() + page - 1) / page);
  EXPECT_EQ(mincore(region.data(), region.size(), pages.data()), 0);
  return std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; });
}

size_t Pages(const MemoryRegion& region) {
  const size_t page = sysconf(_SC_PAGESIZE);
  return (region.size() + page - 1) / page;
}

TEST(MemoryRegionTest, ReservesWithoutTaking) {
  // More than most machines have.
  const absl::StatusOr<MemoryRegion> region = MemoryRegion::Reserve(size_t{1} << 40);
  if (!region.ok()) {
    // Systems that promise no more than they have.
    EXPECT_EQ(region.status().code(), absl::StatusCode::kResourceExhausted);
    return;
  }
  EXPECT_EQ(region->size(), size_t{1} << 40);
  region->data()[0] = std::byte{1};
  region->data()[region->size() - 1] = std::byte{2};
  EXPECT_EQ(region->data()[region->size() / 2], std::byte{0});
}

TEST(MemoryRegionTest, NothingIsResidentUntilItIsTouched) {
  const MemoryRegion region = MemoryRegion::Reserve(5 * kMiB + 100).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(region.data()) % (2 * kMiB), 0u);
  EXPECT_EQ(ResidentPages(region), 0u);
  region.data()[3 * kMiB] = std::byte{1};
  EXPECT_GT(ResidentPages(region), 0u);
  EXPECT_LT(ResidentPages(region), Pages(region));
}

TEST(MemoryRegionTest, FaultInTakesEveryPageAndChangesNoByte) {
  const MemoryRegion region = MemoryRegion::Reserve(200 * kMiB + 100).value();
  region.data()[70 * kMiB] = std::byte{7};
  ASSERT_TRUE(region.FaultInOnThreads(0, region.size()).ok());
  EXPECT_EQ(ResidentPages(region), Pages(region));
  EXPECT_EQ(region.data()[70 * kMiB], std::byte{7});
  EXPECT_EQ(region.data()[region.size() - 1], std::byte{0});
}

TEST(MemoryRegionTest, ARangeIsWholePages) {
  const size_t page = sysconf(_SC_PAGESIZE);
  const MemoryRegion region = MemoryRegion::Reserve(6 * kMiB + 1).value();
  region.AdviseHugePages(false, 0, region.size());
  ASSERT_TRUE(region.FaultIn(page - 64, 128).ok());
  EXPECT_EQ(ResidentPages(region), 2u);
  ASSERT_TRUE(region.FaultIn(6 * kMiB, 1).ok());
  EXPECT_EQ(ResidentPages(region), 3u);
  region.Touch(8 * page + 1, page);
  EXPECT_EQ(ResidentPages(region), 5u);
}

TEST(MemoryRegionTest, TouchingTakesPagesToWriteToAndChangesNoByte) {
  const MemoryRegion region = MemoryRegion::Reserve(6 * kMiB + 1).value();
  region.data()[4 * kMiB] = std::byte{7};
  // Reading maps a page of zeros that is nobody's own; the first write would fault again.
  EXPECT_EQ(region.data()[kMiB], std::byte{0});
  region.Touch(0, region.size());
  EXPECT_EQ(ResidentPages(region), Pages(region));
  EXPECT_EQ(region.data()[4 * kMiB], std::byte{7});
  // The system writes, so that a sanitizer's own memory does not fault for it.
  const int zeros = open("/dev/zero", O_RDONLY);
  rusage before;
  rusage after;
  getrusage(RUSAGE_THREAD, &before);
  EXPECT_EQ(syscall(SYS_read, zeros, region.data(), region.size()),
            static_cast<int64_t>(region.size()));
  getrusage(RUSAGE_THREAD, &after);
  close(zeros);
  EXPECT_EQ(after.ru_minflt, before.ru_minflt);
}

TEST(MemoryRegionTest, WithoutHugePagesATouchTakesOneSmallPage) {
  const MemoryRegion region = MemoryRegion::Reserve(4 * kMiB).value();
  region.AdviseHugePages(false, 0, region.size());
  region.data()[0] = std::byte{1};
  EXPECT_EQ(ResidentPages(region), 1u);
}

TEST(MemoryRegionTest, MovingKeepsTheAddress) {
  MemoryRegion first = MemoryRegion::Reserve(kMiB).value();
  std::byte* const data = first.data();
  data[0] = std::byte{9};
  MemoryRegion second = std::move(first);
  EXPECT_EQ(second.data(), data);
  second = MemoryRegion::Reserve(2 * kMiB).value();
  EXPECT_EQ(second.size(), 2 * kMiB);
  MemoryRegion third = std::move(second);
  EXPECT_EQ(third.data()[0], std::byte{0});
}

TEST(MemoryRegionTest, ASharedRegionIsAFileThatKeepsItsSizeAndIsNotInherited) {
  MemoryRegion first = MemoryRegion::Reserve(3 * kMiB + 64, MemoryRegion::Kind::kShared).value();
  const MemoryRegion region = std::move(first);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(region.data()) % (2 * kMiB), 0u);
  region.data()[3 * kMiB] = std::byte{5};
  ASSERT_TRUE(region.FaultIn(0, region.size()).ok());
  std::byte last{};
  EXPECT_EQ(pread(region.fd(), &last, 1, 3 * kMiB), 1);
  EXPECT_EQ(last, std::byte{5});
  EXPECT_EQ(ftruncate(region.fd(), 64), -1);
  EXPECT_EQ(ftruncate(region.fd(), 4 * kMiB), -1);
  EXPECT_EQ(fcntl(region.fd(), F_ADD_SEALS, F_SEAL_WRITE), -1) << "nobody can make it read-only";
  EXPECT_EQ(fcntl(region.fd(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(MemoryRegion::Reserve(kMiB)->fd(), -1);
  // A child that wrote would write into what its parent stores.
  EXPECT_DEATH(region.data()[0] = std::byte{1}, "");
  EXPECT_EQ(region.data()[0], std::byte{0});
}

TEST(MemoryRegionTest, RefusesSizesThatCannotBe) {
  EXPECT_EQ(MemoryRegion::Reserve(0).status().code(), absl::StatusCode::kInvalidArgument);
  for (const size_t bytes : {std::numeric_limits<size_t>::max(), size_t{1} << 62}) {
    for (const auto kind : {MemoryRegion::Kind::kPrivate, MemoryRegion::Kind::kShared}) {
      EXPECT_EQ(MemoryRegion::Reserve(bytes, kind).status().code(),
                absl::StatusCode::kResourceExhausted);
    }
  }
}

}  // namespace
}  // namespace kvcache
