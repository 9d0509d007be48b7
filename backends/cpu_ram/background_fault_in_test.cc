#include "kvcache/backends/cpu_ram/background_fault_in.h"

#include <cstddef>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/region_allocator.h"
#include "kvcache/backends/host_memory/memory_region.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/extent_allocator.h"

namespace kvcache {
namespace {

constexpr size_t kStep = BackgroundFaultIn::kStep;

ExtentAllocator Extents(size_t capacity_bytes) {
  return ExtentAllocator::Create({.capacity_bytes = capacity_bytes, .initial_bytes = 0}).value();
}

// A closed gate: threads wait at it until it opens.
class Gate {
 public:
  void Pass() {
    MutexLock lock(mu_);
    ++arrived_;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mu_);
  }
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void WaitForOne() {
    MutexLock lock(mu_);
    while (arrived_ == 0) changed_.Wait(mu_);
  }
  int arrived() {
    MutexLock lock(mu_);
    return arrived_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
};

TEST(BackgroundFaultInTest, FaultsInEveryByteOnce) {
  RegionAllocator allocator(Extents(9 * kStep + 64));
  Mutex mu;
  std::set<std::pair<size_t, size_t>> ranges;
  const BackgroundFaultIn background(&allocator, [&](size_t offset, size_t size) {
    MutexLock lock(mu);
    EXPECT_TRUE(ranges.emplace(offset, size).second);
    return absl::OkStatus();
  });
  background.Wait();
  EXPECT_TRUE(background.status().ok());
  EXPECT_EQ(allocator.faulted_bytes(), 9 * kStep + 64);
  EXPECT_EQ(allocator.page_fault_bytes(), 0u);
  MutexLock lock(mu);
  size_t end = 0;
  for (const auto& [offset, size] : ranges) {
    EXPECT_EQ(offset, end);
    end = offset + size;
  }
  EXPECT_EQ(end, 9 * kStep + 64);
}

TEST(BackgroundFaultInTest, ASmallRegionIsFaultedInByTheConstructor) {
  RegionAllocator allocator(Extents(kStep));
  const std::thread::id here = std::this_thread::get_id();
  const BackgroundFaultIn background(&allocator, [&](size_t offset, size_t size) {
    EXPECT_EQ(std::this_thread::get_id(), here);
    return absl::OkStatus();
  });
  EXPECT_EQ(allocator.faulted_bytes(), kStep);
}

TEST(BackgroundFaultInTest, ExtentsUsedWhileItIsHeldBackAreCountedExactly) {
  Gate gate;
  RegionAllocator allocator(Extents(16 * kStep));
  const BackgroundFaultIn background(&allocator, [&](size_t offset, size_t size) {
    gate.Pass();
    return absl::OkStatus();
  });
  gate.WaitForOne();
  const Extent first = allocator.Allocate(1000).value();
  const Extent second = allocator.Allocate(10 * kStep).value();
  EXPECT_EQ(first.size, 1024u);
  EXPECT_EQ(allocator.page_fault_bytes(), 1024 + 10 * kStep);
  gate.Open();
  background.Wait();
  EXPECT_EQ(allocator.faulted_bytes(), 16 * kStep);
  allocator.Free(second);
  EXPECT_TRUE(allocator.Allocate(15 * kStep).ok());
  EXPECT_EQ(allocator.page_fault_bytes(), 1024 + 10 * kStep);
}

TEST(BackgroundFaultInTest, DestructionWaitsForTheStepsUnderWayAndStartsNoOthers) {
  Gate gate;
  RegionAllocator allocator(Extents(1000 * kStep));
  std::thread opener;
  {
    const BackgroundFaultIn background(&allocator, [&](size_t offset, size_t size) {
      gate.Pass();
      return absl::OkStatus();
    });
    gate.WaitForOne();
    opener = std::thread([&] { gate.Open(); });
  }
  opener.join();
  const int steps = gate.arrived();
  EXPECT_GE(steps, 1);
  EXPECT_LE(allocator.faulted_bytes(), steps * kStep);
}

TEST(BackgroundFaultInTest, AFailureStopsItAndIsReported) {
  RegionAllocator allocator(Extents(1000 * kStep));
  const BackgroundFaultIn background(&allocator, [&](size_t offset, size_t size) {
    return offset < 5 * kStep ? absl::OkStatus() : absl::ResourceExhaustedError("no more");
  });
  background.Wait();
  EXPECT_EQ(background.status(), absl::ResourceExhaustedError("no more"));
  EXPECT_EQ(allocator.faulted_bytes(), 5 * kStep);
  EXPECT_TRUE(allocator.Allocate(1000 * kStep).ok()) << "the rest can be used all the same";
  EXPECT_EQ(allocator.page_fault_bytes(), 995 * kStep);
}

// Both ways of faulting in, beside writers of the same bytes.
TEST(BackgroundFaultInTest, ChangesNoByteThatIsBeingWritten) {
  constexpr size_t kBlock = 96 << 10;
  for (const bool by_touch : {false, true}) {
    const MemoryRegion region = MemoryRegion::Reserve(32 * kStep).value();
    RegionAllocator allocator(Extents(region.size()));
    const BackgroundFaultIn background(&allocator, [&](size_t offset, size_t size) {
      if (!by_touch) return region.FaultIn(offset, size);
      region.Touch(offset, size);
      return absl::OkStatus();
    });
    std::vector<Extent> extents;
    while (true) {
      const auto extent = allocator.Allocate(kBlock);
      if (!extent.ok()) break;
      extents.push_back(*extent);
      std::memset(region.data() + extent->offset, static_cast<int>(extents.size() % 255 + 1),
                  extent->size);
    }
    background.Wait();
    EXPECT_TRUE(background.status().ok()) << background.status();
    EXPECT_EQ(extents.size(), 32 * kStep / kBlock);
    for (size_t i = 0; i < extents.size(); ++i) {
      const std::string expected(kBlock, static_cast<char>((i + 1) % 255 + 1));
      ASSERT_EQ(std::memcmp(region.data() + extents[i].offset, expected.data(), kBlock), 0);
    }
  }
}

}  // namespace
}  // namespace kvcache
