// What a cache does about bytes that change in its memory.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr uint32_t kParts = 4;
constexpr size_t kBytes = kParts * 1536;
constexpr size_t kSmall = kParts * 64;
constexpr size_t kLarge = kParts * 65536;  // copied past the caches

BlockKey Key(uint8_t number) { return {{number, 1}}; }

std::vector<std::byte> Content(uint8_t number, size_t size = kBytes) {
  std::vector<std::byte> bytes(size);
  std::mt19937 random(number);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::unique_ptr<Cache> RamCache(CacheOptions options = {}) {
  auto backend = CreateCpuRamBackend({.capacity_bytes = size_t{4} << 20});
  return *Cache::Create(options, *std::move(backend), CreateLruPolicy());
}

// A fault of memory, at a byte of a block.
void FlipBit(Cache& cache, const BlockKey& key, size_t offset, int bit = 0) {
  const absl::StatusOr<ReadLease> lease = cache.Get(kNs, key);
  ASSERT_TRUE(lease.ok());
  const_cast<std::byte*>(lease->data())[offset] ^= std::byte{1} << bit;
}

uint64_t Corrupted(const Cache& cache) { return cache.stats().counters.corrupted; }

absl::Status Read(Cache& cache, const BlockKey& key, std::optional<uint32_t> part = {},
                  size_t size = kBytes) {
  std::vector<std::byte> bytes(part.has_value() ? size / kParts : size);
  const MutableBytes destination = absl::MakeSpan(bytes);
  const ReadRequest request = {.key = key, .destination = {&destination, 1}, .part = part};
  return cache.ReadInto({&request, 1}).Wait();
}

// The ways to fill a block.
enum class Fill { kPut, kWrite, kWriteParts, kInPlace, kInPlacePartByPart, kCommitAfter, kPutMany };

void Write(Cache& cache, const BlockKey& key, absl::Span<const std::byte> bytes, Fill fill) {
  const BlockSize size = {bytes.size(), kParts};
  const ConstBytes all = bytes;
  const auto part = [&](uint32_t i) {
    return bytes.subspan(i * bytes.size() / kParts, bytes.size() / kParts);
  };
  if (fill == Fill::kPut) {
    ASSERT_TRUE(cache.Put(key, size, {all.subspan(0, 100), all.subspan(100)}).ok());
    return;
  }
  if (fill == Fill::kPutMany) {
    const PutRequest request = {.key = key, .size = size, .source = {&all, 1}};
    ASSERT_TRUE(cache.PutMany({&request, 1}).Wait().ok());
    return;
  }
  absl::StatusOr<WriteLease> lease = cache.Reserve(key, size);
  ASSERT_TRUE(lease.ok());
  if (fill == Fill::kWrite) {
    ASSERT_TRUE(lease->Write({all}).Wait().ok());
  } else if (fill == Fill::kInPlace) {
    std::memcpy(lease->data(), bytes.data(), bytes.size());
  }
  for (uint32_t i = 0; i < kParts; ++i) {
    if (fill == Fill::kWriteParts) {
      ASSERT_TRUE(lease->WritePart(i, {part(i)}).Wait().ok());
    } else if (fill == Fill::kInPlacePartByPart) {
      std::memcpy(lease->part(i), part(i).data(), part(i).size());
      ASSERT_TRUE(lease->CommitPart(i).ok());
    } else if (fill == Fill::kCommitAfter) {
      // Half by the cache, half by a copy that it knows nothing of.
      if (i % 2 == 0) std::memcpy(lease->part(i), part(i).data(), part(i).size());
      Transfer copy = i % 2 == 0 ? Transfer::Completed(1) : lease->WritePart(i, {part(i)});
      ASSERT_TRUE(lease->CommitAfter(i, std::move(copy)).ok());
    }
  }
  ASSERT_TRUE(lease->Commit().ok());
}

class EveryFillTest : public testing::TestWithParam<std::tuple<Fill, size_t>> {};

// Every kind of place in every part: first, last and random bits.
TEST_P(EveryFillTest, AFlippedBitAnywhereIsSeenByEveryCopyOut) {
  const std::unique_ptr<Cache> cache = RamCache();
  const auto [fill, size] = GetParam();
  const std::vector<std::byte> bytes = Content(1, size);
  std::mt19937 random(7);
  uint64_t found = 0;
  for (uint32_t part = 0; part < kParts; ++part) {
    const size_t begin = part * size / kParts;
    std::vector<size_t> places = {begin, begin + size / kParts - 1};
    for (int i = 0; i < 8; ++i) places.push_back(begin + random() % (size / kParts));
    for (size_t place : places) {
      for (int reader = 0; reader < 5; ++reader) {
        ASSERT_NO_FATAL_FAILURE(Write(*cache, Key(1), bytes, fill));
        ASSERT_TRUE(Read(*cache, Key(1), {}, size).ok());
        ASSERT_NO_FATAL_FAILURE(FlipBit(*cache, Key(1), place, random() % 8));
        absl::Status status;
        std::vector<std::byte> copy(size);
        const MutableBytes destination = absl::MakeSpan(copy);
        if (reader == 0) {
          status = Read(*cache, Key(1), {}, size);
        } else if (reader == 1) {
          ASSERT_TRUE(Read(*cache, Key(1), (part + 1) % kParts, size).ok())
              << "the others are right";
          status = Read(*cache, Key(1), part, size);
        } else if (reader == 2) {
          status = cache->Get(kNs, Key(1))->Read({destination}).Wait();
        } else if (reader == 3) {
          status = cache->Get(kNs, Key(1))->Verify();
        } else {
          EXPECT_GT(cache->Scrub(1), 0);
          status = absl::DataLossError("");
        }
        ASSERT_TRUE(absl::IsDataLoss(status)) << status << " at " << place << ", " << reader;
        ASSERT_EQ(Corrupted(*cache), ++found);
        ASSERT_TRUE(absl::IsNotFound(cache->Get(kNs, Key(1)).status())) << "the block is dropped";
        ASSERT_EQ(cache->stats().usage.bytes_in_use, 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Fills, EveryFillTest,
    testing::Combine(testing::Values(Fill::kPut, Fill::kWrite, Fill::kWriteParts, Fill::kInPlace,
                                     Fill::kInPlacePartByPart, Fill::kCommitAfter, Fill::kPutMany),
                     testing::Values(kSmall, kBytes, kLarge)));

TEST(VerifyTest, ABadBlockTakesItsDescendantsWithIt) {
  const std::unique_ptr<Cache> cache = RamCache();
  const std::vector<std::byte> bytes = Content(1);
  const ConstBytes source = bytes;
  PutOptions put;
  for (uint8_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(cache->Put(Key(i), {kBytes, kParts}, {source}, put).ok());
    put.parent = Key(i);
  }
  FlipBit(*cache, Key(1), 99);
  EXPECT_TRUE(absl::IsDataLoss(Read(*cache, Key(1))));
  EXPECT_TRUE(Read(*cache, Key(0)).ok());
  EXPECT_EQ(cache->stats().usage.blocks, 1);
  EXPECT_EQ(Corrupted(*cache), 3);
}

TEST(VerifyTest, AReaderInPlaceKeepsItsLeaseOnADroppedBlock) {
  const std::unique_ptr<Cache> cache = RamCache();
  Write(*cache, Key(1), Content(1), Fill::kPut);
  FlipBit(*cache, Key(1), 5);
  ReadLease reader = *cache->Get(kNs, Key(1));
  EXPECT_TRUE(absl::IsDataLoss(reader.VerifyPart(0)));
  EXPECT_TRUE(reader.VerifyPart(1).ok());
  EXPECT_TRUE(absl::IsDataLoss(reader.Verify())) << "again: nothing changed";
  EXPECT_EQ(Corrupted(*cache), 1);
  EXPECT_NE(reader.data(), nullptr);
  EXPECT_EQ(cache->stats().usage.bytes_detached, kBytes);
  reader.Release();
  EXPECT_EQ(cache->stats().usage.bytes_in_use, 0);
}

TEST(VerifyTest, ACommittedPartOfAnUnfinishedBlockIsCheckedToo) {
  const std::unique_ptr<Cache> cache = RamCache();
  const std::vector<std::byte> bytes = Content(1);
  absl::StatusOr<WriteLease> lease = cache->Reserve(Key(1), {kBytes, kParts});
  std::memcpy(lease->data(), bytes.data(), kBytes);
  ASSERT_TRUE(lease->CommitPart(2).ok());
  ASSERT_TRUE(Read(*cache, Key(1), 2).ok());
  lease->part(2)[7] ^= std::byte{4};
  EXPECT_TRUE(absl::IsDataLoss(Read(*cache, Key(1), 2)));
  EXPECT_TRUE(absl::IsAborted(lease->Commit()));
  EXPECT_EQ(cache->stats().usage.blocks, 0);
  EXPECT_EQ(Corrupted(*cache), 1);
}

TEST(VerifyTest, WhatWasWrittenAndNotCommittedLeavesNoChecksumToTheNextWriter) {
  const std::unique_ptr<Cache> cache = RamCache();
  const std::vector<std::byte> bytes = Content(1);
  const ConstBytes part = ConstBytes(bytes).first(kBytes / kParts);
  absl::StatusOr<WriteLease> first = cache->Reserve(Key(1), {kBytes, kParts});
  ASSERT_TRUE(first->WritePart(0, {part}).Wait().ok());
  ASSERT_TRUE(first->CommitPart(0).ok());
  ASSERT_TRUE(first->WritePart(1, {part}).Wait().ok());
  ASSERT_TRUE(first->Suspend().ok());
  absl::StatusOr<WriteLease> second = cache->Reserve(Key(1), {kBytes, kParts});
  for (uint32_t i = 1; i < kParts; ++i) std::memset(second->part(i), 7, kBytes / kParts);
  ASSERT_TRUE(second->Commit().ok());
  EXPECT_TRUE(Read(*cache, Key(1)).ok());
}

TEST(VerifyTest, WithoutChecksumsNothingIsComparedAndVerifySaysSo) {
  const std::unique_ptr<Cache> cache = RamCache({.checksums = false});
  Write(*cache, Key(1), Content(1), Fill::kPut);
  FlipBit(*cache, Key(1), 5);
  EXPECT_TRUE(Read(*cache, Key(1)).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->Get(kNs, Key(1))->Verify()));
  EXPECT_EQ(cache->Scrub(1 << 20), 0);
  auto backend = CreateCpuRamBackend({.capacity_bytes = 4096});
  EXPECT_EQ(Cache::Create({.checksums = false, .scrub_bytes_per_second = 1}, *std::move(backend),
                          CreateLruPolicy())
                .status(),
            absl::InvalidArgumentError("scrub_bytes_per_second: 1, but checksums: false, so there "
                                       "is nothing to compare with"));
}

TEST(VerifyTest, ABackendThatStoresNoBytesNeedsNoChecksums) {
  auto backend = CreateAccountingBackend({.capacity_bytes = 4096});
  auto cache = *Cache::Create({}, *std::move(backend), CreateLruPolicy());
  ASSERT_TRUE(cache->Reserve(Key(1), {64, 1})->Commit().ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(cache->Get(kNs, Key(1))->Verify()));
}

TEST(VerifyTest, CopiesThatEndLaterAreCheckedWhenTheyEnd) {
  auto owned = FakeBackend::Create(1 << 20);
  FakeBackend* fake = owned.get();
  auto cache = *Cache::Create({}, std::move(owned), CreateLruPolicy());
  const std::vector<std::byte> bytes = Content(1);
  const ConstBytes source = bytes;
  const auto put = [&] {
    fake->set_auto_complete(true);
    EXPECT_TRUE(cache->Put(Key(1), {kBytes, kParts}, {source}).ok());
    fake->set_auto_complete(false);
    fake->FlipBit(100, 3);
  };
  std::vector<std::byte> copy(kBytes);
  const MutableBytes destination = absl::MakeSpan(copy);
  const ReadRequest requests[] = {{.key = Key(1), .destination = {&destination, 1}},
                                  {.key = Key(2), .destination = {&destination, 1}}};
  for (size_t count : {1, 2}) {
    put();
    const Transfer read = cache->ReadInto(absl::MakeSpan(requests).first(count));
    EXPECT_EQ(cache->Lookup(Key(1)), LookupResult::kHit);
    fake->CompleteAll();
    EXPECT_TRUE(absl::IsDataLoss(read.result(0)));
    EXPECT_EQ(cache->Lookup(Key(1)), LookupResult::kMiss);
    EXPECT_EQ(cache->stats().usage.bytes_in_use, 0);
  }
  put();
  const Transfer read = cache->Get(kNs, Key(1))->ReadPart(0, {destination.first(kBytes / kParts)});
  fake->CompleteAll();
  EXPECT_TRUE(absl::IsDataLoss(read.Wait()));
  put();
  fake->set_auto_complete(true);
  EXPECT_TRUE(absl::IsDataLoss(cache->Get(kNs, Key(1))->Verify()));
  EXPECT_EQ(Corrupted(*cache), 4);
  EXPECT_EQ(cache->stats().leases, 0);
}

// The ways to copy a block out of a FakeBackend, in which one op is pending then.
enum class Reader { kRead, kReadPart, kReadInto, kReadIntoWithAMiss };

TEST(VerifyTest, ABlockThatTheMediumCannotReadIsDropped) {
  for (Reader reader :
       {Reader::kRead, Reader::kReadPart, Reader::kReadInto, Reader::kReadIntoWithAMiss}) {
    for (int code = 1; code <= 16; ++code) {
      SCOPED_TRACE(testing::Message()
                   << "code " << code << ", reader " << static_cast<int>(reader));
      auto owned = FakeBackend::Create(1 << 20);
      FakeBackend* fake = owned.get();
      auto cache = *Cache::Create({}, std::move(owned), CreateLruPolicy());
      const std::vector<std::byte> bytes = Content(1);
      fake->set_auto_complete(true);
      ASSERT_TRUE(cache->Put(Key(1), {kBytes, kParts}, {bytes}).ok());
      fake->set_auto_complete(false);
      std::vector<std::byte> copy(kBytes);
      const MutableBytes all = absl::MakeSpan(copy);
      const MutableBytes part = all.first(kBytes / kParts);
      const ReadRequest requests[] = {{.key = Key(1), .destination = {&all, 1}},
                                      {.key = Key(2), .destination = {&all, 1}}};
      Transfer read = reader == Reader::kRead ? cache->Get(kNs, Key(1))->Read({&all, 1})
                      : reader == Reader::kReadPart
                          ? cache->Get(kNs, Key(1))->ReadPart(3, {&part, 1})
                          : cache->ReadInto(absl::MakeSpan(requests).first(
                                reader == Reader::kReadInto ? 1 : 2));
      const auto failure = static_cast<absl::StatusCode>(code);
      fake->Fail(0, absl::Status(failure, "bad sector"));
      EXPECT_EQ(read.result(0).code(), failure);
      const bool innocent = failure == absl::StatusCode::kInvalidArgument ||
                            failure == absl::StatusCode::kFailedPrecondition ||
                            failure == absl::StatusCode::kResourceExhausted ||
                            failure == absl::StatusCode::kCancelled;
      EXPECT_EQ(cache->Lookup(Key(1)), innocent ? LookupResult::kHit : LookupResult::kMiss);
      EXPECT_EQ(Corrupted(*cache), innocent ? 0 : 1);
      EXPECT_EQ(cache->stats().leases, 0);
    }
  }
}

TEST(VerifyTest, ABlockIsNotDroppedSinceItsBackendStoresNoBytes) {
  auto backend = CreateAccountingBackend({.capacity_bytes = 4096});
  auto cache = *Cache::Create({}, *std::move(backend), CreateLruPolicy());
  ASSERT_TRUE(cache->Reserve(Key(1), {kSmall, kParts})->Commit().ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(*cache, Key(1), {}, kSmall)));
  EXPECT_EQ(cache->Lookup(Key(1)), LookupResult::kHit);
}

TEST(VerifyTest, ScrubGoesRoundAndComparesEachBlock) {
  const std::unique_ptr<Cache> cache = RamCache();
  EXPECT_EQ(cache->Scrub(1), 0);
  for (uint8_t i = 0; i < 8; ++i) Write(*cache, Key(i), Content(i), Fill::kInPlace);
  EXPECT_EQ(cache->Scrub(3 * kBytes), 3 * kBytes);
  EXPECT_EQ(cache->Scrub(1), kBytes) << "a block is read whole";
  EXPECT_EQ(cache->Scrub(size_t{1} << 30), 8 * kBytes) << "each once";
  EXPECT_EQ(cache->stats().scrubbed_bytes, 12 * kBytes);
  FlipBit(*cache, Key(2), 0);
  FlipBit(*cache, Key(7), kBytes - 1);
  cache->Scrub(size_t{1} << 30);
  EXPECT_EQ(Corrupted(*cache), 2);
  EXPECT_EQ(cache->stats().usage.blocks, 6);
  EXPECT_EQ(cache->stats().counters.block_lookups, 2) << "scrubbing is not counted as reading";
}

TEST(VerifyTest, ScrubComparesTheCommittedPartsOfPartialBlocks) {
  const std::unique_ptr<Cache> cache = RamCache();
  absl::StatusOr<WriteLease> lease = cache->Reserve(Key(1), {kBytes, kParts});
  std::memset(lease->data(), 1, kBytes);
  ASSERT_TRUE(lease->CommitPart(0).ok());
  ASSERT_TRUE(lease->CommitPart(3).ok());
  ASSERT_TRUE(lease->Suspend().ok());
  EXPECT_EQ(cache->Scrub(kBytes), kBytes / 2);
  const ReadLease part = *cache->GetPart(kNs, Key(1), 3);
  const_cast<std::byte*>(part.data())[0] ^= std::byte{1};
  cache->Scrub(kBytes);
  EXPECT_EQ(Corrupted(*cache), 1);
}

TEST(VerifyTest, APutWaitsForTheScrubberRatherThanFail) {
  constexpr size_t kBlock = size_t{1} << 20;
  auto backend = CreateCpuRamBackend({.capacity_bytes = kBlock});
  auto cache = *Cache::Create({}, *std::move(backend), CreateLruPolicy());
  const std::vector<std::byte> bytes(kBlock);
  const ConstBytes source = bytes;
  std::atomic<bool> done = false;
  std::thread scrubber([&] {
    while (!done) cache->Scrub(kBlock);
  });
  for (uint8_t i = 0; i < 100; ++i) {
    const absl::Status put = cache->Put(Key(i), {kBlock, 1}, {source});
    EXPECT_TRUE(put.ok()) << put;
  }
  done = true;
  scrubber.join();
}

TEST(VerifyTest, TheBackgroundScrubberFindsWhatChanges) {
  const std::unique_ptr<Cache> cache = RamCache({.scrub_bytes_per_second = size_t{1} << 30});
  for (uint8_t i = 0; i < 8; ++i) Write(*cache, Key(i), Content(i), Fill::kPut);
  {
    // A change in memory does not take locks; this one must, for the thread sanitizer.
    absl::StatusOr<WriteLease> lease = cache->Reserve(Key(100), {kBytes, kParts});
    const std::vector<std::byte> bytes = Content(100);
    const ConstBytes source = bytes;
    ASSERT_TRUE(lease->Write({source}).Wait().ok());
    lease->data()[17] ^= std::byte{1};
    ASSERT_TRUE(lease->Commit().ok());
  }
  while (Corrupted(*cache) == 0) std::this_thread::yield();
  EXPECT_EQ(cache->Lookup(Key(100)), LookupResult::kMiss);
  EXPECT_EQ(cache->stats().usage.blocks, 8);
}

TEST(VerifyTest, AReplacedLayerDoesNotTakeOverBytesThatHaveChanged) {
  auto backend = CreateCpuRamBackend({.capacity_bytes = size_t{1} << 20});
  auto cache = *PrefixCache::Create({.layers = 3}, *std::move(backend), CreateLruPolicy());
  std::vector<float> data(64, 1.5);
  const KvTensor tensor = {data.data(), DType::kF32, 4, 2, 8};
  ASSERT_TRUE(
      cache->CacheAllLayers("p", {{tensor, tensor}, {tensor, tensor}, {tensor, tensor}}).ok());
  const void* v = cache->GetAllLayers("p")->layer(2).v.data;
  const_cast<std::byte*>(static_cast<const std::byte*>(v))[3] ^= std::byte{1};
  ASSERT_TRUE(cache->CacheKv("p", 0, tensor, tensor).ok());
  EXPECT_TRUE(cache->GetCachedKv("p", 0).ok());
  EXPECT_TRUE(cache->GetCachedKv("p", 1).ok());
  EXPECT_TRUE(absl::IsNotFound(cache->GetCachedKv("p", 2).status())) << "lost, not handed on";
  EXPECT_EQ(cache->stats().counters.corrupted, 1);
}

}  // namespace
}  // namespace kvcache
