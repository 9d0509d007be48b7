// Nothing slow or foreign happens under the cache's lock: whatever the backend is doing, another
// thread can use the cache.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

// Uses the cache from another thread during every call.
class NosyBackend final : public StorageBackend {
 public:
  explicit NosyBackend(std::unique_ptr<StorageBackend> backend) : backend_(std::move(backend)) {}

  void set_cache(const Cache* cache) { cache_ = cache; }
  int calls() const { return calls_; }

  const BackendTraits& traits() const override { return backend_->traits(); }
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) override {
    UseCache("Allocate");
    return backend_->Allocate(bytes, owner);
  }
  size_t ListExtents(const Extent& from, bool around, size_t bytes,
                     absl::Span<Neighbour> out) override {
    UseCache("ListExtents");
    return backend_->ListExtents(from, around, bytes, out);
  }
  void SetOwner(const Extent& extent, uint32_t owner) override {
    UseCache("SetOwner");
    backend_->SetOwner(extent, owner);
  }
  void Free(Extent extent) override {
    UseCache("Free");
    backend_->Free(extent);
  }
  std::byte* Address(Extent extent) const override {
    UseCache("Address");
    return backend_->Address(extent);
  }
  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override {
    UseCache("Write");
    return backend_->Write(ops, stream);
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    UseCache("Read");
    return backend_->Read(ops, stream);
  }

 private:
  void UseCache(const char* during) const {
    if (cache_ == nullptr) return;
    ++calls_;
    std::promise<void> used;
    std::future<void> future = used.get_future();
    std::thread user([this, &used] {
      cache_->Lookup(BlockKey());
      used.set_value();
    });
    if (future.wait_for(std::chrono::seconds(20)) != std::future_status::ready) {
      std::fprintf(stderr, "the cache is locked during %s\n", during);
      std::_Exit(1);
    }
    user.join();
  }

  const std::unique_ptr<StorageBackend> backend_;
  const Cache* cache_ = nullptr;
  mutable int calls_ = 0;
};

TEST(CacheLockTest, TheBackendIsCalledWithoutTheLock) {
  auto nosy =
      std::make_unique<NosyBackend>(*CreateCpuRamBackend({.capacity_bytes = size_t{4} << 10}));
  NosyBackend* backend = nosy.get();
  std::unique_ptr<Cache> cache = *Cache::Create({}, std::move(nosy), CreateLruPolicy());
  backend->set_cache(cache.get());

  std::vector<std::byte> bytes(1024);
  for (uint8_t i = 0; i < 8; ++i) {  // evicts from the fifth on
    const BlockKey key = {{i, 1}};
    ASSERT_TRUE(cache->Put(key, {bytes.size(), 2}, {ConstBytes(bytes)}).ok());
    ReadLease lease = *cache->Get(NamespaceId::kDefault, key);
    EXPECT_NE(lease.data(), nullptr);
    EXPECT_TRUE(lease.Read({absl::MakeSpan(bytes)}).Wait().ok());
    const MutableBytes destination = absl::MakeSpan(bytes);
    const ReadRequest request = {.key = key, .destination = {&destination, 1}};
    EXPECT_TRUE(cache->ReadInto({&request, 1}).Wait().ok());
  }
  EXPECT_TRUE(cache->Erase({{7, 1}}));
  EXPECT_TRUE(cache->Resize(1024).ok());
  cache->Clear();
  EXPECT_GE(backend->calls(), 40);
  backend->set_cache(nullptr);
}

// Is asked for the time once in each hold of the lock.
class CountingClock final : public Clock {
 public:
  Nanos Now() const override {
    ++holds_;
    return 1'000'000'000;
  }
  int holds() const { return holds_; }

 private:
  mutable std::atomic<int> holds_ = 0;
};

TEST(CacheLockTest, CommitManyTakesTheLockOnceForEach256Blocks) {
  constexpr uint32_t kBlocks = 600;
  CountingClock clock;
  CacheOptions options;
  options.clock = &clock;
  const auto cache = *Cache::Create(
      options, *CreateCpuRamBackend({.capacity_bytes = kBlocks * size_t{64}}), CreateLruPolicy());
  std::vector<WriteLease> leases;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    leases.push_back(*cache->Reserve({{static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8)}},
                                     {.bytes = 64, .parts = 2}));
  }
  std::vector<absl::Status> results(kBlocks);
  const int before = clock.holds();
  cache->CommitMany(absl::MakeSpan(leases), absl::MakeSpan(results));
  EXPECT_EQ(clock.holds() - before, 3);
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
  EXPECT_EQ(cache->stats().usage.blocks_complete, kBlocks);
}

}  // namespace
}  // namespace kvcache
