#include "kvcache/backends/cpu_ram/region_allocator.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/extent_allocator.h"

namespace kvcache {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
using Range = RegionAllocator::Range;

ExtentAllocator Extents(size_t capacity_bytes, size_t faulted_bytes) {
  return ExtentAllocator::Create({.capacity_bytes = capacity_bytes, .initial_bytes = faulted_bytes})
      .value();
}

TEST(RegionAllocatorTest, WithoutFaultingInEveryNewByteIsAPageFaultAndNoUsedOneIs) {
  RegionAllocator allocator(Extents(8 * kMiB, 0));
  EXPECT_EQ(allocator.faulted_bytes(), 0u);
  const Extent first = allocator.Allocate(kMiB).value();
  const Extent second = allocator.Allocate(100).value();
  EXPECT_EQ(first.offset, 0u);
  EXPECT_EQ(second.offset, kMiB);
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB + 128);
  EXPECT_EQ(allocator.faulted_bytes(), kMiB + 128);

  allocator.Free(first);
  EXPECT_EQ(allocator.Allocate(kMiB / 2).value().offset, 0u) << "used memory goes first";
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB + 128);

  // Only what the free tail lacks is new.
  allocator.Free(second);
  const Extent third = allocator.Allocate(2 * kMiB).value();
  EXPECT_EQ(third.offset, kMiB / 2);
  EXPECT_EQ(allocator.page_fault_bytes(), 2 * kMiB + kMiB / 2);
}

TEST(RegionAllocatorTest, WhatIsFaultedInGoesFirst) {
  RegionAllocator allocator(Extents(8 * kMiB, 0));
  const Range range = allocator.ClaimUnfaulted(2 * kMiB).value();
  EXPECT_EQ(range.offset, 0u);
  EXPECT_EQ(range.size, 2 * kMiB);
  EXPECT_EQ(allocator.faulted_bytes(), 0u) << "claimed is not faulted in";
  allocator.MarkFaulted(range);
  EXPECT_EQ(allocator.faulted_bytes(), 2 * kMiB);
  const Extent first = allocator.Allocate(kMiB).value();
  EXPECT_EQ(first.offset + first.size, kMiB);
  EXPECT_EQ(allocator.page_fault_bytes(), 0u);
  // Half of it is not there yet.
  const Extent second = allocator.Allocate(2 * kMiB).value();
  EXPECT_EQ(second.offset, kMiB);
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB);
  EXPECT_EQ(allocator.faulted_bytes(), 3 * kMiB);
}

TEST(RegionAllocatorTest, AnExtentMayLieInARangeThatIsBeingFaultedIn) {
  RegionAllocator allocator(Extents(8 * kMiB, 0));
  const Range range = allocator.ClaimUnfaulted(2 * kMiB).value();
  EXPECT_EQ(allocator.Allocate(kMiB).value().offset, 0u);
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB);
  allocator.MarkFaulted(range);
  EXPECT_EQ(allocator.faulted_bytes(), 2 * kMiB);
  EXPECT_EQ(allocator.Allocate(kMiB).value().offset, kMiB);
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB);
}

TEST(RegionAllocatorTest, RangesThatWereUsedAreNotClaimed) {
  RegionAllocator allocator(Extents(8 * kMiB, 0));
  ASSERT_TRUE(allocator.Allocate(3 * kMiB).ok());
  const Range range = allocator.ClaimUnfaulted(2 * kMiB).value();
  EXPECT_EQ(range.offset, 3 * kMiB);
  EXPECT_EQ(range.size, kMiB) << "ends at a multiple of the step";
}

TEST(RegionAllocatorTest, RangesCompleteInAnyOrder) {
  RegionAllocator allocator(Extents(7 * kMiB, 0));
  std::vector<Range> ranges;
  while (const std::optional<Range> range = allocator.ClaimUnfaulted(2 * kMiB)) {
    ranges.push_back(*range);
  }
  ASSERT_EQ(ranges.size(), 4u);
  EXPECT_EQ(ranges[3].size, kMiB);
  allocator.MarkFaulted(ranges[1]);
  EXPECT_EQ(allocator.faulted_bytes(), 0u);
  allocator.MarkFaulted(ranges[0]);
  EXPECT_EQ(allocator.faulted_bytes(), 4 * kMiB);
  allocator.MarkFaulted(ranges[3]);
  EXPECT_EQ(allocator.faulted_bytes(), 4 * kMiB);
  allocator.MarkFaulted(ranges[2]);
  EXPECT_EQ(allocator.faulted_bytes(), 7 * kMiB);
  EXPECT_EQ(allocator.page_fault_bytes(), 0u);
}

TEST(RegionAllocatorTest, ARangeThatFailedDoesNotKeepAnybodyFromTheRest) {
  RegionAllocator allocator(Extents(8 * kMiB, 0));
  ASSERT_TRUE(allocator.ClaimUnfaulted(2 * kMiB).has_value());  // and never marked
  allocator.MarkFaulted(allocator.ClaimUnfaulted(2 * kMiB).value());
  EXPECT_EQ(allocator.faulted_bytes(), 0u);
  EXPECT_EQ(allocator.Allocate(8 * kMiB).value().size, 8 * kMiB);
  EXPECT_EQ(allocator.ClaimUnfaulted(2 * kMiB), std::nullopt);
}

TEST(RegionAllocatorTest, FaultedInFromTheStartCountsNothing) {
  RegionAllocator allocator(Extents(4 * kMiB, 4 * kMiB));
  EXPECT_EQ(allocator.faulted_bytes(), 4 * kMiB);
  EXPECT_EQ(allocator.ClaimUnfaulted(2 * kMiB), std::nullopt);
  EXPECT_TRUE(allocator.Allocate(4 * kMiB).ok());
  EXPECT_EQ(allocator.page_fault_bytes(), 0u);
}

TEST(RegionAllocatorTest, ErrorsAreThoseOfTheAllocatorAndCountNothing) {
  RegionAllocator allocator(Extents(kMiB + 10, 0));
  EXPECT_EQ(allocator.capacity(), kMiB);
  for (const size_t bytes : {size_t{0}, kMiB + 1, ~size_t{0}}) {
    EXPECT_EQ(allocator.Allocate(bytes).status().code(), absl::StatusCode::kInvalidArgument);
  }
  ASSERT_TRUE(allocator.Allocate(kMiB - 64).ok());
  EXPECT_EQ(allocator.Allocate(65).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB - 64);
  EXPECT_TRUE(allocator.Allocate(64).ok());
  EXPECT_EQ(allocator.Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(allocator.page_fault_bytes(), kMiB);
}

TEST(RegionAllocatorTest, ExtentsAreDisjointWhileThreadsFaultIn) {
  RegionAllocator allocator(Extents(64 * kMiB, 0));
  const auto fault_in = [&] {
    while (const auto range = allocator.ClaimUnfaulted(kMiB / 4)) allocator.MarkFaulted(*range);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) threads.emplace_back(fault_in);
  std::vector<std::vector<Extent>> live(2);
  for (size_t t = 0; t < live.size(); ++t) {
    threads.emplace_back([&allocator, &extents = live[t], t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 2000; ++i) {
        if (random() % 3 > 0 || extents.empty()) {
          if (const auto extent = allocator.Allocate(1 + random() % 100'000); extent.ok()) {
            extents.push_back(*extent);
          }
        } else {
          std::swap(extents[random() % extents.size()], extents.back());
          allocator.Free(extents.back());
          extents.pop_back();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(allocator.faulted_bytes(), 64 * kMiB);
  std::vector<Extent> all = live[0];
  all.insert(all.end(), live[1].begin(), live[1].end());
  std::sort(all.begin(), all.end(),
            [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  size_t end = 0;
  for (const Extent& extent : all) {
    ASSERT_GE(extent.offset, end);
    end = extent.offset + extent.size;
  }
  EXPECT_LE(end, 64 * kMiB);
  for (const Extent& extent : all) allocator.Free(extent);
  EXPECT_TRUE(allocator.Allocate(64 * kMiB).ok()) << "all is one again";
}

}  // namespace
}  // namespace kvcache
