#include "kvcache/core/storage/extent_allocator.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

constexpr size_t kMax = std::numeric_limits<size_t>::max();

ExtentAllocator Make(size_t capacity_bytes, size_t alignment) {
  return ExtentAllocator::Create({.capacity_bytes = capacity_bytes, .alignment = alignment})
      .value();
}

bool Contains(const absl::Status& status, const std::string& part) {
  return std::string(status.message()).find(part) != std::string::npos;
}

TEST(ExtentAllocatorTest, StartsAsOneFreeExtent) {
  ExtentAllocator allocator = Make(1 << 20, 64);
  EXPECT_EQ(allocator.capacity(), 1u << 20);
  EXPECT_EQ(allocator.alignment(), 64u);
  EXPECT_EQ(allocator.used_bytes(), 0u);
  EXPECT_EQ(allocator.free_bytes(), 1u << 20);
  EXPECT_EQ(allocator.largest_free_bytes(), 1u << 20);
  EXPECT_TRUE(allocator.CheckConsistency().ok());
}

TEST(ExtentAllocatorTest, CreateRefusesBadOptionsAndNamesBothValues) {
  const std::vector<std::pair<size_t, size_t>> bad = {{1024, 0}, {1024, 3}, {1024, kMax},
                                                      {0, 64},   {63, 64},  {kMax, 96}};
  for (const auto& [capacity, alignment] : bad) {
    const absl::Status status =
        ExtentAllocator::Create({.capacity_bytes = capacity, .alignment = alignment}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(Contains(status, "capacity_bytes = " + std::to_string(capacity))) << status;
    EXPECT_TRUE(Contains(status, "alignment = " + std::to_string(alignment))) << status;
  }
}

TEST(ExtentAllocatorTest, AllocateRefusesBadSizesAndNamesBothValues) {
  ExtentAllocator allocator = Make(4096, 64);
  for (const size_t bytes : {size_t{0}, size_t{4097}, kMax - 62, kMax}) {
    const absl::Status status = allocator.Allocate(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(Contains(status, "bytes = " + std::to_string(bytes) + " ")) << status;
    EXPECT_TRUE(Contains(status, "capacity = 4096")) << status;
  }
  EXPECT_EQ(allocator.used_bytes(), 0u);
  EXPECT_TRUE(allocator.CheckConsistency().ok());
}

TEST(ExtentAllocatorTest, TheWholeCapacityIsOneExtent) {
  ExtentAllocator allocator = Make(4096, 64);
  const Extent all = allocator.Allocate(4096).value();
  EXPECT_EQ(all.offset, 0u);
  EXPECT_EQ(all.size, 4096u);
  EXPECT_EQ(allocator.free_bytes(), 0u);
  EXPECT_EQ(allocator.largest_free_bytes(), 0u);
  EXPECT_TRUE(allocator.CheckConsistency().ok());
  allocator.Free(all);
  EXPECT_EQ(allocator.largest_free_bytes(), 4096u);
}

TEST(ExtentAllocatorTest, OneAlignmentLessThanTheCapacityLeavesOneUnit) {
  ExtentAllocator allocator = Make(4096, 64);
  const Extent most = allocator.Allocate(4096 - 64).value();
  const Extent last = allocator.Allocate(1).value();
  EXPECT_EQ(most.size + last.size, 4096u);
  EXPECT_EQ(last.offset, most.size);
  EXPECT_EQ(allocator.Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ExtentAllocatorTest, ACapacityThatIsNoMultipleOfTheAlignmentIsRoundedDown) {
  ExtentAllocator allocator = Make(1000, 64);
  EXPECT_EQ(allocator.capacity(), 960u);
  EXPECT_EQ(allocator.Allocate(961).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(allocator.Allocate(900).value().size, 960u);
  EXPECT_EQ(Make(127, 64).capacity(), 64u);
}

TEST(ExtentAllocatorTest, OffsetsAndSizesAreMultiplesOfTheAlignment) {
  for (const size_t alignment : {1u, 2u, 64u, 4096u, 2u << 20}) {
    ExtentAllocator allocator = Make(100 * alignment, alignment);
    size_t sum = 0;
    for (const size_t bytes : {size_t{1}, alignment, alignment + 1, 3 * alignment - 1}) {
      const Extent extent = allocator.Allocate(bytes).value();
      EXPECT_EQ(extent.offset % alignment, 0u);
      EXPECT_EQ(extent.size, (bytes + alignment - 1) / alignment * alignment);
      sum += extent.size;
    }
    EXPECT_EQ(allocator.used_bytes(), sum);
    EXPECT_TRUE(allocator.CheckConsistency().ok());
  }
}

TEST(ExtentAllocatorTest, TheLargestCapacityWorks) {
  ExtentAllocator allocator = Make(kMax, 1);
  EXPECT_EQ(allocator.capacity(), kMax);
  const Extent half = allocator.Allocate(kMax / 2).value();
  const Extent rest = allocator.Allocate(kMax - kMax / 2).value();
  EXPECT_EQ(allocator.free_bytes(), 0u);
  EXPECT_TRUE(allocator.CheckConsistency().ok());
  allocator.Free(half);
  allocator.Free(rest);
  EXPECT_EQ(allocator.largest_free_bytes(), kMax);
  EXPECT_TRUE(allocator.CheckConsistency().ok());
}

TEST(ExtentAllocatorTest, ExhaustionNamesRequestFreeTotalAndLargest) {
  ExtentAllocator allocator = Make(640, 64);
  std::vector<Extent> extents;
  for (int i = 0; i < 10; ++i) extents.push_back(allocator.Allocate(64).value());
  for (const int i : {1, 2, 5, 8}) allocator.Free(extents[i]);
  const absl::Status status = allocator.Allocate(129).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Contains(status, "no free extent of 192 bytes")) << status;
  EXPECT_TRUE(Contains(status, "free in total 256")) << status;
  EXPECT_TRUE(Contains(status, "largest 128")) << status;
  EXPECT_EQ(allocator.used_bytes(), 384u);
  EXPECT_EQ(allocator.Allocate(128).value().offset, 64u);
}

TEST(ExtentAllocatorTest, CoalescesNeighboursInEveryOrder) {
  std::array<int, 4> order = {0, 1, 2, 3};
  do {
    ExtentAllocator allocator = Make(4 * 256, 64);
    std::vector<Extent> extents;
    for (int i = 0; i < 4; ++i) extents.push_back(allocator.Allocate(256).value());
    std::array<bool, 4> is_free = {};
    for (const int i : order) {
      allocator.Free(extents[i]);
      is_free[i] = true;
      size_t run = 0;
      size_t longest = 0;
      for (const bool f : is_free) {
        run = f ? run + 256 : 0;
        longest = std::max(longest, run);
      }
      EXPECT_EQ(allocator.largest_free_bytes(), longest);
      ASSERT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
    }
    EXPECT_EQ(allocator.Allocate(4 * 256).value().offset, 0u);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(ExtentAllocatorTest, TakesTheSmallestExtentThatFits) {
  ExtentAllocator allocator = Make(64 * 1000, 64);
  std::vector<Extent> holes;
  for (const size_t units : {300, 100, 200, 101, 150}) {
    holes.push_back(allocator.Allocate(64 * units).value());
    ASSERT_TRUE(allocator.Allocate(64).ok());
  }
  for (const Extent& hole : holes) allocator.Free(hole);
  EXPECT_EQ(allocator.Allocate(64 * 101).value().offset, holes[3].offset);
  EXPECT_EQ(allocator.Allocate(64 * 99).value().offset, holes[1].offset);
  EXPECT_EQ(allocator.Allocate(64 * 151).value().offset, holes[2].offset);
  EXPECT_EQ(allocator.Allocate(64 * 145).value().offset, holes[4].offset);
}

TEST(ExtentAllocatorTest, FindsAFitAmongSmallerExtentsOfItsOwnClass) {
  // The sizes of 6400 to 6463 units share a class.
  ExtentAllocator allocator = Make(64 * 200'000, 64);
  std::vector<Extent> holes;
  for (size_t i = 0; i < ExtentAllocator::kSearchSteps; ++i) {
    holes.push_back(allocator.Allocate(64 * (6450 - i)).value());
    ASSERT_TRUE(allocator.Allocate(64).ok());
  }
  ASSERT_TRUE(allocator.Allocate(allocator.largest_free_bytes()).ok());
  for (const Extent& hole : holes) allocator.Free(hole);
  EXPECT_EQ(allocator.largest_free_bytes(), 64u * 6450);
  for (const Extent& hole : holes) {
    EXPECT_EQ(allocator.Allocate(hole.size).value().offset, hole.offset);
  }
}

TEST(ExtentAllocatorTest, TheLargestFreeExtentCanAlwaysBeAllocated) {
  std::mt19937_64 random(7);
  ExtentAllocator allocator = Make(64 << 20, 64);
  std::vector<Extent> live;
  for (int i = 0; i < 20'000; ++i) {
    const absl::StatusOr<Extent> extent = allocator.Allocate(20'000 + random() % 200);
    if (extent.ok()) {
      live.push_back(*extent);
      continue;
    }
    for (int k = 0; k < 50; ++k) {
      std::swap(live[random() % live.size()], live.back());
      allocator.Free(live.back());
      live.pop_back();
    }
    const Extent largest = allocator.Allocate(allocator.largest_free_bytes()).value();
    allocator.Free(largest);
  }
  EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
}

TEST(ExtentAllocatorTest, EqualSizesNeverFailWhileThereIsRoom) {
  constexpr size_t kCount = 1000;
  for (const size_t bytes : {size_t{64}, size_t{4096}, size_t{100'001}}) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    ExtentAllocator allocator = Make(kCount * rounded + rounded / 2, 64);
    std::mt19937_64 random(bytes);
    std::vector<Extent> live;
    for (int round = 0; round < 50; ++round) {
      while (live.size() < kCount) {
        const absl::StatusOr<Extent> extent = allocator.Allocate(bytes);
        ASSERT_TRUE(extent.ok()) << extent.status();
        live.push_back(*extent);
      }
      EXPECT_FALSE(allocator.Allocate(bytes).ok());
      std::shuffle(live.begin(), live.end(), random);
      for (size_t n = random() % kCount; n > 0; --n) {
        allocator.Free(live.back());
        live.pop_back();
      }
    }
    EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
  }
}

TEST(ExtentAllocatorTest, ExhaustionAndFullFreeGiveTheWholeCapacityBack) {
  std::mt19937_64 random(3);
  ExtentAllocator allocator = Make(1 << 20, 64);
  for (int round = 0; round < 5; ++round) {
    std::vector<Extent> live;
    while (allocator.free_bytes() > 0) {
      const size_t most = allocator.largest_free_bytes();
      live.push_back(allocator.Allocate(1 + random() % std::min<size_t>(most, 1024)).value());
    }
    EXPECT_EQ(allocator.Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_GT(live.size(), 1024u);
    std::shuffle(live.begin(), live.end(), random);
    for (const Extent& extent : live) allocator.Free(extent);
    EXPECT_EQ(allocator.used_bytes(), 0u);
    EXPECT_EQ(allocator.largest_free_bytes(), 1u << 20);
    ASSERT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
  }
  EXPECT_EQ(allocator.Allocate(1 << 20).value().offset, 0u);
}

ExtentAllocator MakeGrowing(size_t capacity_bytes, size_t initial_bytes) {
  return ExtentAllocator::Create(
             {.capacity_bytes = capacity_bytes, .alignment = 64, .initial_bytes = initial_bytes})
      .value();
}

TEST(ExtentAllocatorTest, HandsOutNothingBeyondWhatItHasGrownTo) {
  ExtentAllocator allocator = MakeGrowing(4096, 0);
  EXPECT_EQ(allocator.capacity(), 4096u);
  EXPECT_EQ(allocator.grown_bytes(), 0u);
  EXPECT_EQ(allocator.free_bytes(), 0u);
  EXPECT_EQ(allocator.free_tail_bytes(), 0u);
  EXPECT_EQ(allocator.largest_free_bytes(), 0u);
  EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
  EXPECT_EQ(allocator.Allocate(64).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(allocator.Allocate(4097).status().code(), absl::StatusCode::kInvalidArgument);

  allocator.GrowTo(1024 + 63);
  EXPECT_EQ(allocator.grown_bytes(), 1024u) << "whole units";
  EXPECT_EQ(allocator.Allocate(1025).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(allocator.Allocate(1024).value().offset, 0u);
  EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
}

TEST(ExtentAllocatorTest, GrowingMergesWithAFreeTail) {
  ExtentAllocator allocator = MakeGrowing(4096, 1024);
  const Extent first = allocator.Allocate(512).value();
  EXPECT_EQ(allocator.free_tail_bytes(), 512u);
  allocator.GrowTo(2048);
  EXPECT_EQ(allocator.free_tail_bytes(), 1536u);
  const Extent second = allocator.Allocate(1536).value();
  EXPECT_EQ(second.offset, 512u);
  EXPECT_EQ(allocator.free_tail_bytes(), 0u);
  // Behind an extent in use there is nothing to merge with.
  allocator.GrowTo(3072);
  EXPECT_EQ(allocator.Allocate(1024).value().offset, 2048u);
  allocator.Free(first);
  EXPECT_EQ(allocator.free_tail_bytes(), 0u);
  EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
}

TEST(ExtentAllocatorTest, GrowingIsNeverPastTheCapacityAndNeverBack) {
  ExtentAllocator allocator = MakeGrowing(1000, 512);
  allocator.GrowTo(256);
  EXPECT_EQ(allocator.grown_bytes(), 512u);
  allocator.GrowTo(kMax);
  EXPECT_EQ(allocator.grown_bytes(), 960u);
  EXPECT_EQ(allocator.largest_free_bytes(), 960u);
  EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
}

TEST(ExtentAllocatorTest, GrowingByWhatTheTailLacksGivesExactlyTheTail) {
  std::mt19937_64 random(11);
  ExtentAllocator allocator = MakeGrowing(64 << 20, 0);
  std::vector<Extent> live;
  for (int i = 0; i < 20'000 && allocator.grown_bytes() < allocator.capacity(); ++i) {
    const size_t bytes = (20'000 + random() % 2'000) / 64 * 64;
    absl::StatusOr<Extent> extent = allocator.Allocate(bytes);
    if (!extent.ok()) {
      const size_t end = allocator.grown_bytes() + bytes - allocator.free_tail_bytes();
      allocator.GrowTo(end);
      extent = allocator.Allocate(bytes);
      ASSERT_TRUE(extent.ok() || end > allocator.capacity()) << extent.status();
      if (!extent.ok()) break;
      EXPECT_EQ(extent->offset + extent->size, end);
    }
    live.push_back(*extent);
    if (random() % 8 < 3) {
      std::swap(live[random() % live.size()], live.back());
      allocator.Free(live.back());
      live.pop_back();
    }
    if (i % 100 == 0) {
      ASSERT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
    }
  }
  EXPECT_GT(live.size(), 1000u);
}

TEST(ExtentAllocatorTest, MovingKeepsTheExtents) {
  ExtentAllocator first = Make(4096, 64);
  const Extent extent = first.Allocate(100).value();
  ExtentAllocator second = std::move(first);
  EXPECT_EQ(second.used_bytes(), 128u);
  second.Free(extent);
  EXPECT_EQ(second.largest_free_bytes(), 4096u);
}

// The model is a map from offset to size, so it sees every overlap.
TEST(ExtentAllocatorTest, AgreesWithAnIntervalModelOverRandomOperations) {
  for (const uint64_t seed : {1, 2}) {
    std::mt19937_64 random(seed);
    ExtentAllocator allocator = Make((16 << 20) + 17, seed == 1 ? 64 : 256);
    std::map<size_t, size_t> model;
    std::vector<Extent> live;
    size_t used = 0;
    for (int step = 0; step < 100'000; ++step) {
      if (step % 1000 == 0) {
        ASSERT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
      }
      // Phases that fill it up, then drain most of it.
      const bool allocate = random() % 16 < (step / 10'000 % 2 == 0 ? 12 : 5);
      if (allocate || live.empty()) {
        const size_t bytes = 1 + random() % (size_t{1} << (4 + random() % 15));
        const absl::StatusOr<Extent> extent = allocator.Allocate(bytes);
        if (!extent.ok()) {
          ASSERT_EQ(extent.status().code(), absl::StatusCode::kResourceExhausted);
          // largest_free_bytes() never promises what Allocate() refuses.
          const size_t rounded =
              (bytes + allocator.alignment() - 1) / allocator.alignment() * allocator.alignment();
          ASSERT_LT(allocator.largest_free_bytes(), rounded);
          continue;
        }
        ASSERT_GE(extent->size, bytes);
        ASSERT_LT(extent->size, bytes + allocator.alignment());
        const auto [at, inserted] = model.insert({extent->offset, extent->size});
        ASSERT_TRUE(inserted);
        if (at != model.begin()) {
          const auto before = std::prev(at);
          ASSERT_LE(before->first + before->second, extent->offset);
        }
        const auto after = std::next(at);
        ASSERT_LE(extent->offset + extent->size,
                  after == model.end() ? allocator.capacity() : after->first);
        live.push_back(*extent);
        used += extent->size;
      } else {
        std::swap(live[random() % live.size()], live.back());
        allocator.Free(live.back());
        model.erase(live.back().offset);
        used -= live.back().size;
        live.pop_back();
      }
      ASSERT_EQ(allocator.used_bytes(), used);
      ASSERT_EQ(allocator.free_bytes(), allocator.capacity() - used);
    }
  }
}

// All that List() says from the first extent on, in steps of `some`.
std::vector<Neighbour> ListAll(ExtentAllocator& allocator, size_t some) {
  std::vector<Neighbour> all;
  std::vector<Neighbour> listed(some);
  for (size_t n = some; n == some;) {
    const Extent from = all.empty() ? Extent() : all.back().extent;
    n = allocator.List(from, false, kMax, absl::MakeSpan(listed));
    all.insert(all.end(), listed.begin() + !all.empty(), listed.begin() + n);
  }
  return all;
}

TEST(ExtentAllocatorTest, ListsWhatIsUsedWithItsOwnerAndWhatIsFree) {
  std::mt19937_64 random(1);
  ExtentAllocator allocator = Make(1 << 20, 64);
  std::map<size_t, std::pair<Extent, uint32_t>> live;  // by offset
  for (uint32_t step = 0; step < 2000; ++step) {
    if (const auto extent = allocator.Allocate(1 + random() % 10'000, step); extent.ok()) {
      live[extent->offset] = {*extent, step};
    }
    const auto some = std::next(live.begin(), random() % live.size());
    if (random() % 2 == 0) {
      allocator.Free(some->second.first);
      live.erase(some);
    } else {
      some->second.second = ~step;
      allocator.SetOwner(some->second.first, ~step);
    }
    if (step % 50 != 0) continue;
    size_t end = 0;
    size_t used = 0;
    for (const Neighbour& n : ListAll(allocator, 2 + random() % 100)) {
      ASSERT_EQ(n.extent.offset, end);
      end += n.extent.size;
      if (!n.used) continue;
      ++used;
      ASSERT_EQ(live.at(n.extent.offset), std::make_pair(n.extent, n.owner));
    }
    EXPECT_EQ(used, live.size());
    EXPECT_EQ(end, allocator.capacity());
    ASSERT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
  }
}

TEST(ExtentAllocatorTest, ListsWhatIsAroundAnExtent) {
  ExtentAllocator allocator = Make(100 * 64, 64);
  std::vector<Extent> extents;
  for (uint32_t i = 0; i < 100; ++i) extents.push_back(*allocator.Allocate(64, i));
  std::vector<Neighbour> out(20);
  const auto around = [&](uint32_t i, size_t bytes, size_t room) {
    const size_t n = allocator.List(extents[i], true, bytes, absl::MakeSpan(out.data(), room));
    return std::make_pair(out[0].owner, out[n - 1].owner);
  };
  EXPECT_EQ(around(50, 64, 20), std::make_pair(49u, 51u));
  EXPECT_EQ(around(50, 3 * 64, 20), std::make_pair(47u, 53u));
  EXPECT_EQ(around(50, 64 * 64, 20), std::make_pair(40u, 59u));
  EXPECT_EQ(around(1, 3 * 64, 20), std::make_pair(0u, 4u));
  EXPECT_EQ(around(99, 3 * 64, 20), std::make_pair(96u, 99u));
  allocator.Free(extents[50]);
  EXPECT_EQ(allocator.List(Extent{0, 64, 1'000'000}, true, 64, absl::MakeSpan(out)), 0u);
  allocator.Free(extents[49]);
  EXPECT_EQ(allocator.List(extents[50], true, 64, absl::MakeSpan(out)), 0u) << "merged";
}

TEST(ExtentAllocatorTest, WhatWasListedIsNotOverlooked) {
  // More free extents of one size class than are searched, the largest of them last in its list.
  ExtentAllocator allocator = Make(1 << 20, 64);
  const size_t small = 256 * 64;
  std::vector<Extent> extents = {*allocator.Allocate(small + 64)};
  const Extent first = extents[0];
  for (int i = 0; i <= ExtentAllocator::kSearchSteps; ++i) {
    ASSERT_TRUE(allocator.Allocate(64).ok());
    extents.push_back(*allocator.Allocate(small));
  }
  ASSERT_TRUE(allocator.Allocate(allocator.largest_free_bytes()).ok());
  for (const Extent& extent : extents) allocator.Free(extent);
  ASSERT_FALSE(allocator.Allocate(small + 64).ok());
  std::vector<Neighbour> listed(8);
  ASSERT_EQ(allocator.List(Extent(), false, small + 64, absl::MakeSpan(listed)), 8u);
  EXPECT_EQ(allocator.Allocate(small + 64).value_or(Extent()), first);
  EXPECT_TRUE(allocator.CheckConsistency().ok()) << allocator.CheckConsistency();
}

TEST(ExtentAllocatorDeathTest, WrongAndDoubleFreesAbort) {
  ExtentAllocator allocator = Make(4096, 64);
  const Extent a = allocator.Allocate(64).value();
  const Extent b = allocator.Allocate(64).value();
  const std::string message = "extent freed twice or not of this allocator";
  EXPECT_DEATH(allocator.Free(Extent()), message);
  EXPECT_DEATH(allocator.Free({a.offset, a.size + 64, a.node}), message);
  EXPECT_DEATH(allocator.Free({a.offset + 64, a.size, a.node}), message);
  EXPECT_DEATH(allocator.Free({a.offset, a.size, b.node}), message);
  EXPECT_DEATH(allocator.Free({a.offset, a.size, 1'000'000}), message);
  allocator.Free(a);
  EXPECT_DEATH(allocator.Free(a), message);
  allocator.Free(b);
  EXPECT_DEATH(allocator.Free(b), message);
}

}  // namespace
}  // namespace kvcache
