// Eight threads do everything at once to a small cache, and every byte that is read is checked.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lfu/lfu.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/eviction/ttl/ttl.h"

namespace kvcache {
namespace {

constexpr int kThreads = 8;
constexpr int kSteps = 6000;
constexpr uint32_t kParts = 4;
constexpr size_t kCapacity = 16 << 10;
constexpr uint32_t kKeys = 64;
constexpr uint32_t kChains = 6;
constexpr uint32_t kChainBlocks = 8;

// Blocks of chain c are keys c * kChainBlocks and up; the others are in no chain.
BlockKey Key(uint32_t number) { return {{static_cast<uint8_t>(number), 3}}; }

// From 256 to 1,024 bytes.
size_t BytesOf(uint32_t number) { return 256 * (1 + number % 4); }

std::byte ByteOf(uint32_t number, size_t offset) {
  return static_cast<std::byte>(number * 41 + offset * 13 + offset / 64);
}

void Fill(uint32_t number, size_t offset, std::byte* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) data[i] = ByteOf(number, offset + i);
}

bool Holds(uint32_t number, size_t offset, const std::byte* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (data[i] != ByteOf(number, offset + i)) return false;
  }
  return true;
}

class Worker {
 public:
  Worker(Cache& cache, ManualClock& clock, absl::Span<const NamespaceId> namespaces, uint64_t seed)
      : cache_(cache), clock_(clock), namespaces_(namespaces), random_(seed) {}

  void Run() {
    for (int i = 0; i < kSteps; ++i) Step();
  }

 private:
  uint32_t Random(uint32_t below) { return static_cast<uint32_t>(random_() % below); }
  NamespaceId NamespaceOf(uint32_t number) { return namespaces_[number / kChainBlocks % 3]; }

  void Step() {
    const uint32_t number = Random(kKeys);
    switch (Random(20)) {
      case 0:
      case 1:
      case 2:
        return Write(number);
      case 3:
        return PutMany(number);
      case 4:
      case 5:
        return Get(number);
      case 6:
        return GetPart(number);
      case 7:
        return GetMany();
      case 8:
      case 9:
        return Match();
      case 10:
      case 11:
        return ReadInto();
      case 12:
        cache_.Erase(Key(number));
        return;
      case 13:
        return Remove(number);
      case 14:
        return Upkeep();
      case 15:
        return CheckStats();
      default:
        return WriteChain();
    }
  }

  PutOptions OptionsFor(uint32_t number) {
    PutOptions options;
    options.ns = NamespaceOf(number);
    if (number < kChains * kChainBlocks && number % kChainBlocks > 0) {
      options.parent = Key(number - 1);
    }
    if (Random(3) == 0) options.ttl = absl::Milliseconds(1 + Random(200));
    return options;
  }

  void Write(uint32_t number) {
    const size_t bytes = BytesOf(number);
    absl::StatusOr<WriteLease> lease =
        cache_.Reserve(Key(number), {bytes, kParts}, OptionsFor(number));
    if (!lease.ok()) {
      EXPECT_NE(lease.status().code(), absl::StatusCode::kInvalidArgument) << lease.status();
      return;
    }
    const size_t part_bytes = bytes / kParts;
    const uint32_t parts = Random(kParts + 1);
    absl::Status status;
    for (uint32_t part = 0; part < kParts; ++part) {
      if (lease->committed(part)) {
        EXPECT_TRUE(Holds(number, part * part_bytes, lease->part(part), part_bytes));
        continue;
      }
      Fill(number, part * part_bytes, lease->part(part), part_bytes);
      if (part < parts) status = lease->CommitPart(part);
      EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
    }
    WriteLease moved = *std::move(lease);
    switch (Random(4)) {
      case 0:
        return;  // aborts
      case 1:
        status = moved.Suspend();
        break;
      default:
        status = moved.Commit();
    }
    EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
  }

  void WriteChain() {
    const uint32_t first = Random(kChains) * kChainBlocks;
    for (uint32_t number = first; number < first + kChainBlocks; ++number) {
      const size_t bytes = BytesOf(number);
      std::vector<std::byte> content(bytes);
      Fill(number, 0, content.data(), bytes);
      const absl::Status status =
          cache_.Put(Key(number), {bytes, kParts}, {ConstBytes(content)}, OptionsFor(number));
      if (!status.ok() && !absl::IsAlreadyExists(status)) return;
    }
  }

  void PutMany(uint32_t first) {
    std::vector<std::vector<std::byte>> contents(3);
    std::vector<ConstBytes> sources(3);
    std::vector<PutRequest> requests(3);
    for (uint32_t i = 0; i < 3; ++i) {
      const uint32_t number = (first + i) % kKeys;
      contents[i].resize(BytesOf(number));
      Fill(number, 0, contents[i].data(), contents[i].size());
      sources[i] = contents[i];
      requests[i].key = Key(number);
      requests[i].size = {contents[i].size(), kParts};
      requests[i].source = {&sources[i], 1};
      requests[i].options = OptionsFor(number);
    }
    cache_.PutMany(requests).Wait().IgnoreError();
  }

  void Get(uint32_t number) {
    absl::StatusOr<ReadLease> lease = cache_.Get(NamespaceOf(number), Key(number));
    if (!lease.ok()) return;
    EXPECT_EQ(lease->size(), BytesOf(number));
    EXPECT_TRUE(Holds(number, 0, lease->data(), lease->size()));
    if (Random(2) == 0) std::this_thread::yield();
    std::vector<std::byte> copy(lease->size());
    EXPECT_TRUE(lease->Read({absl::MakeSpan(copy)}).Wait().ok());
    EXPECT_TRUE(Holds(number, 0, copy.data(), copy.size()));
  }

  void GetPart(uint32_t number) {
    const uint32_t part = Random(kParts);
    absl::StatusOr<ReadLease> lease = cache_.GetPart(NamespaceOf(number), Key(number), part);
    if (!lease.ok()) return;
    EXPECT_TRUE(Holds(number, part * lease->size(), lease->data(), lease->size()));
  }

  void GetMany() {
    std::vector<BlockKey> keys;
    std::vector<uint32_t> numbers;
    for (int i = 0; i < 6; ++i) {
      numbers.push_back(Random(kKeys));
      keys.push_back(Key(numbers.back()));
    }
    std::vector<ReadLease> leases(keys.size());
    cache_.GetMany(namespaces_[0], keys, absl::MakeSpan(leases));
    for (size_t i = 0; i < leases.size(); ++i) {
      if (!leases[i].holds()) continue;
      EXPECT_TRUE(Holds(numbers[i], 0, leases[i].data(), leases[i].size()));
    }
    if (Random(2) == 0) cache_.Release(absl::MakeSpan(leases));
  }

  void Match() {
    const uint32_t first = Random(kChains) * kChainBlocks;
    std::vector<BlockKey> keys;
    for (uint32_t i = 0; i < kChainBlocks; ++i) keys.push_back(Key(first + i));
    const Chain chain = {.ns = NamespaceOf(first), .keys = keys};
    EXPECT_LE(cache_.LookupPrefix(chain), kChainBlocks);
    PrefixMatch match = cache_.Match(chain);
    EXPECT_LE(match.blocks.size(), kChainBlocks);
    for (size_t i = 0; i < match.blocks.size(); ++i) {
      const ReadLease& lease = match.blocks[i];
      EXPECT_TRUE(Holds(first + i, 0, lease.data(), lease.size()));
    }
  }

  void ReadInto() {
    std::vector<uint32_t> numbers;
    std::vector<std::vector<std::byte>> buffers(4);
    std::vector<MutableBytes> destinations(4);
    std::vector<ReadRequest> requests(4);
    for (int i = 0; i < 4; ++i) {
      const uint32_t number = Random(kKeys);
      numbers.push_back(number);
      buffers[i].resize(BytesOf(number));
      destinations[i] = absl::MakeSpan(buffers[i]);
      requests[i].ns = NamespaceOf(number);
      requests[i].key = Key(number);
      requests[i].destination = {&destinations[i], 1};
    }
    const Transfer copies = cache_.ReadInto(requests);
    copies.Wait().IgnoreError();
    for (int i = 0; i < 4; ++i) {
      if (!copies.result(i).ok()) continue;
      EXPECT_TRUE(Holds(numbers[i], 0, buffers[i].data(), buffers[i].size()));
    }
  }

  void Remove(uint32_t number) {
    switch (Random(12)) {
      case 0:
        return cache_.Clear();
      case 1:
        cache_.EraseNamespace(NamespaceOf(number));
        return;
      default:
        clock_.Advance(absl::Milliseconds(1));
    }
  }

  void Upkeep() {
    const uint32_t first = Random(kChains) * kChainBlocks;
    const BlockKey keys[] = {Key(first), Key(first + 1)};
    switch (Random(4)) {
      case 0:
        cache_.Resize(kCapacity / 2 + Random(kCapacity / 2)).IgnoreError();
        return;
      case 1:
        return cache_.Drain();
      default:
        EXPECT_TRUE(cache_.Extend({.keys = keys}, absl::Milliseconds(50)).ok());
    }
  }

  void CheckStats() {
    const CacheStats stats = cache_.stats();
    EXPECT_LE(stats.usage.bytes_in_use, kCapacity);
    EXPECT_LE(stats.usage.bytes_detached, stats.usage.bytes_in_use);
    EXPECT_LE(stats.peak_bytes, kCapacity);
    EXPECT_LE(stats.usage.blocks_complete, stats.usage.blocks);
  }

  Cache& cache_;
  ManualClock& clock_;
  const absl::Span<const NamespaceId> namespaces_;
  std::mt19937_64 random_;
};

class StressTest : public ::testing::TestWithParam<std::unique_ptr<EvictionPolicy> (*)()> {};

TEST_P(StressTest, EightThreadsReadOnlyWhatWasWritten) {
  ManualClock clock;
  CacheOptions options;
  options.clock = &clock;
  options.max_blocks = 40;
  auto cache =
      *Cache::Create(options, *CreateCpuRamBackend({.capacity_bytes = kCapacity}), GetParam()());
  std::vector<NamespaceId> namespaces;
  for (const char* tenant : {"a", "b", "c"}) {
    Namespace ns;
    ns.tenant = tenant;
    ns.layout = {.dtype = DType::kF32, .layers = 1, .kv_heads = 1, .head_dim = 4};
    ns.shard = Shard::Whole(1, 1);
    namespaces.push_back(*cache->Register(ns));
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { Worker(*cache, clock, namespaces, 1000 + i).Run(); });
  }
  for (std::thread& thread : threads) thread.join();
  CacheStats stats = cache->stats();
  EXPECT_EQ(stats.leases, 0);
  EXPECT_EQ(stats.usage.bytes_detached, 0);
  EXPECT_GT(stats.counters.block_hits, 1000);
  EXPECT_GT(stats.counters.evictions, 1000);
  cache->Clear();
  EXPECT_EQ(cache->stats().usage.bytes_in_use, 0);
  EXPECT_EQ(cache->stats().usage.blocks, 0);
}

INSTANTIATE_TEST_SUITE_P(Policies, StressTest,
                         ::testing::Values(&CreateLruPolicy, &CreateLfuPolicy, &CreateTtlPolicy));

}  // namespace
}  // namespace kvcache
