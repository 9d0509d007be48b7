// PagedCache with pages in host memory and on a device, over every place for blocks.
#include "kvcache/core/prompts/paged_cache.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

constexpr uint32_t kLayers = 3;
constexpr uint32_t kBlockTokens = 8;
constexpr size_t kCapacity = size_t{1} << 20;
constexpr DeviceLinkOptions kLink = {.page_staging_bytes = size_t{64} << 10};

KvLayout MakeLayout() {
  return {.dtype = DType::kBF16, .layers = kLayers, .kv_heads = 2, .head_dim = 16};
}

enum class Where { kCpuRam, kPinnedHost, kDevice };

struct Setup {
  const char* name;
  Where blocks;
  bool pages_on_device;

  friend std::ostream& operator<<(std::ostream& out, const Setup& setup) {
    return out << setup.name;
  }
};

// K/V that tells which token, layer and place it is, also of a token id.
std::byte Content(int32_t token, uint32_t position, uint32_t layer, bool v, size_t at) {
  return static_cast<std::byte>(token * 7 + position * 13 + layer * 31 + (v ? 101 : 0) + at * 3);
}

class PagedCacheTest : public testing::TestWithParam<Setup> {
 protected:
  // An engine's pages and what it does with them.
  struct Engine {
    PagedKv kv;
    std::vector<std::byte> memory;
    std::unique_ptr<PagedCache> cache;
  };

  void SetUp() override {
    gpu_ = std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{});
    if (GetParam().pages_on_device) stream_ = gpu_->EngineStream();
    MakeCache(kCapacity);
  }
  void TearDown() override {
    gpu_->RunAll();
    engines_.clear();
    cache_.reset();
    for (std::byte* memory : device_memory_) EXPECT_TRUE(gpu_->FreeDevice(0, memory).ok());
    EXPECT_TRUE(gpu_->violations().empty()) << gpu_->violations()[0];
  }

  void MakeCache(size_t capacity_bytes, CacheOptions options = {}) {
    absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
        GetParam().blocks == Where::kDevice
            ? CreateCudaDeviceBackend({.capacity_bytes = capacity_bytes}, gpu_)
        : GetParam().blocks == Where::kPinnedHost
            ? CreatePinnedHostBackend({.capacity_bytes = capacity_bytes, .link = kLink}, gpu_)
            : CreateCpuRamBackend({.capacity_bytes = capacity_bytes});
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = backend->get();
    auto cache = Cache::Create(options, *std::move(backend), CreateLruPolicy());
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }

  Engine& MakeEngine(uint32_t page_tokens, PagedKv::Order order,
                     PagedCacheOptions options = {.tokens_per_block = kBlockTokens},
                     uint32_t pages = 40) {
    Engine& engine = *engines_.emplace_back(std::make_unique<Engine>());
    PagedKv& kv = engine.kv;
    kv.layout = MakeLayout();
    kv.order = order;
    kv.page_tokens = page_tokens;
    kv.pages = pages;
    kv.page_stride = 2 * kv.PageBytes();
    const size_t bytes = kLayers * pages * kv.page_stride;
    std::byte* memory;
    if (GetParam().pages_on_device) {
      memory = *gpu_->AllocateDevice(0, bytes);
      device_memory_.push_back(memory);
      kv.space = {MemoryKind::kDevice, 0};
    } else {
      engine.memory.resize(bytes);
      memory = engine.memory.data();
    }
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = memory + layer * pages * kv.page_stride;
      kv.layers.push_back({k, k + kv.PageBytes()});
    }
    options.ns.layout = kv.layout;
    options.ns.model = "m";
    options.ns.shard = Shard::Whole(kLayers, 2);
    auto cache = PagedCache::Create(cache_.get(), kv, options);
    EXPECT_TRUE(cache.ok()) << cache.status();
    engine.cache = *std::move(cache);
    return engine;
  }

  // In the order of the engine's stream.
  void Enqueue(std::function<void()> work) {
    if (stream_.is_none()) {
      work();
    } else {
      gpu_->Enqueue(stream_, std::move(work));
    }
  }

  static std::vector<int32_t> Prompt(size_t tokens, int32_t seed = 1) {
    std::vector<int32_t> prompt(tokens);
    for (size_t i = 0; i < tokens; ++i) prompt[i] = static_cast<int32_t>(seed * 1000 + i * i);
    return prompt;
  }
  // Pages for the tokens, from `first` on, backwards.
  static std::vector<int32_t> Table(const Engine& engine, size_t tokens, int32_t first) {
    const size_t pages = (tokens + engine.kv.page_tokens - 1) / engine.kv.page_tokens;
    std::vector<int32_t> table(pages);
    std::iota(table.rbegin(), table.rend(), first);
    return table;
  }

  template <typename Visit>
  static void ForBytes(const Engine& engine, const std::vector<int32_t>& prompt,
                       const std::vector<int32_t>& table, size_t first, const Visit& visit) {
    const PagedKv& kv = engine.kv;
    const size_t head_bytes = kv.layout.head_dim * 2;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (size_t t = first; t < prompt.size(); ++t) {
        for (bool v : {false, true}) {
          for (uint32_t head = 0; head < kv.layout.kv_heads; ++head) {
            const size_t in_page = t % kv.page_tokens;
            const size_t row = kv.order == PagedKv::Order::kTokenHeadDim
                                   ? in_page * kv.layout.kv_heads + head
                                   : head * kv.page_tokens + in_page;
            std::byte* const at = (v ? kv.layers[layer].v : kv.layers[layer].k) +
                                  table[t / kv.page_tokens] * kv.page_stride + row * head_bytes;
            for (size_t i = 0; i < head_bytes; ++i) {
              visit(at[i], Content(prompt[t], t, layer, v, head * head_bytes + i));
            }
          }
        }
      }
    }
  }
  void Compute(const Engine& engine, const std::vector<int32_t>& prompt,
               const std::vector<int32_t>& table, size_t first = 0) {
    Enqueue([=, &engine] {
      ForBytes(engine, prompt, table, first, [](std::byte& byte, std::byte is) { byte = is; });
    });
  }
  // Whether the pages have what they should have, once the stream gets there.
  bool Right(const Engine& engine, std::vector<int32_t> prompt, const std::vector<int32_t>& table,
             size_t first = 0) {
    bool right = true;
    Enqueue([&, first] {
      ForBytes(engine, prompt, table, first,
               [&](std::byte& byte, std::byte is) { right &= byte == is; });
    });
    gpu_->RunAll();
    return right;
  }

  PagedCache::Saved Save(const Engine& engine, const std::vector<int32_t>& prompt,
                         const std::vector<int32_t>& table) {
    Compute(engine, prompt, table);
    absl::StatusOr<PagedCache::Saved> saved = engine.cache->Save(prompt, table, stream_);
    EXPECT_TRUE(saved.ok()) << saved.status();
    return *std::move(saved);
  }
  PagedCache::Loaded Load(const Engine& engine, const std::vector<int32_t>& prompt,
                          const std::vector<int32_t>& table, uint32_t first_token = 0) {
    absl::StatusOr<PagedCache::Loaded> loaded =
        engine.cache->Load(prompt, table, stream_, first_token);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }

  std::shared_ptr<FakeGpuRuntime> gpu_;
  Stream stream_ = Stream::None();
  StorageBackend* backend_ = nullptr;
  std::unique_ptr<Cache> cache_;
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<std::byte*> device_memory_;
};

TEST_P(PagedCacheTest, WhatWasSavedIsLoadedIntoOtherPages) {
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  Engine& other = MakeEngine(16, PagedKv::Order::kHeadTokenDim);
  const std::vector<int32_t> prompt = Prompt(45);
  const PagedCache::Saved saved = Save(engine, prompt, Table(engine, 45, 3));
  EXPECT_EQ(saved.tokens, 45u);
  EXPECT_EQ(saved.copied_tokens, 45u);
  EXPECT_TRUE(saved.stopped.ok());
  ASSERT_TRUE(saved.copies.Wait().ok()) << saved.copies.Wait();
  EXPECT_EQ(*other.cache->Lookup(prompt), 45u);

  const std::vector<int32_t> table = Table(other, 45, 7);
  const PagedCache::Loaded loaded = Load(other, prompt, table);
  EXPECT_EQ(loaded.tokens, 45u);
  EXPECT_EQ(loaded.copies.size(), 6 * kLayers);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(loaded.copies.WaitPartOn(stream_, layer).ok());
  }
  EXPECT_TRUE(Right(other, prompt, table));
  EXPECT_TRUE(loaded.copies.Wait().ok());
}

TEST_P(PagedCacheTest, PromptsShareTheirBeginning) {
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const std::vector<int32_t> first = Prompt(40);
  std::vector<int32_t> second = Prompt(40);
  std::fill(second.begin() + 20, second.end(), 5);
  ASSERT_TRUE(Save(engine, first, Table(engine, 40, 0)).copies.Wait().ok());
  EXPECT_EQ(*engine.cache->Lookup(second), 16u);
  const PagedCache::Saved saved = Save(engine, second, Table(engine, 40, 10));
  EXPECT_EQ(saved.tokens, 40u);
  EXPECT_EQ(saved.copied_tokens, 24u);
  ASSERT_TRUE(saved.copies.Wait().ok());
  const std::vector<int32_t> table = Table(engine, 40, 20);
  const PagedCache::Loaded loaded = Load(engine, second, table);
  ASSERT_TRUE(loaded.copies.Wait().ok());
  EXPECT_TRUE(Right(engine, second, table));
}

TEST_P(PagedCacheTest, LoadsFromATokenOnAndAsMuchAsThereArePagesFor) {
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const std::vector<int32_t> prompt = Prompt(40);
  ASSERT_TRUE(Save(engine, prompt, Table(engine, 40, 0)).copies.Wait().ok());
  // Room for 28 tokens, so for three blocks.
  const std::vector<int32_t> table = Table(engine, 28, 20);
  const std::vector<int32_t> before(28, 9);
  for (uint32_t first = 0; first <= 40; ++first) {
    SCOPED_TRACE(first);
    Compute(engine, before, table);
    std::vector<int32_t> rest = table;
    for (uint32_t page = 0; page < std::min(first / 4, 7u); ++page) rest[page] = -1;
    const PagedCache::Loaded loaded = Load(engine, prompt, rest, first);
    EXPECT_EQ(loaded.tokens, std::max(first, 24u));
    EXPECT_EQ(loaded.copies.size(), first >= 24 ? 0 : (3 - first / 8) * kLayers);
    ASSERT_TRUE(loaded.copies.Wait().ok()) << loaded.copies.Wait();
    EXPECT_TRUE(Right(engine, {prompt.begin(), prompt.begin() + 24}, table, first));
    const uint32_t had = std::min(first, 24u);
    EXPECT_TRUE(Right(engine, {before.begin(), before.begin() + had}, table)) << "written before";
    EXPECT_TRUE(Right(engine, before, table, 24)) << "written behind";
  }
}

TEST_P(PagedCacheTest, AShortLastBlockIsSavedUnlessItIsNotWanted) {
  Engine& all = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  Engine& whole = MakeEngine(4, PagedKv::Order::kTokenHeadDim,
                             {.tokens_per_block = kBlockTokens, .short_last_block = false});
  EXPECT_EQ(Save(whole, Prompt(21), Table(whole, 21, 0)).tokens, 16u);
  EXPECT_EQ(Save(whole, Prompt(5, 2), Table(whole, 5, 8)).tokens, 0u);
  const PagedCache::Saved saved = Save(all, Prompt(21), Table(all, 21, 0));
  EXPECT_EQ(saved.tokens, 21u);
  cache_->Drain();
  EXPECT_EQ(*all.cache->Lookup(Prompt(21)), 21u);
  EXPECT_EQ(*whole.cache->Lookup(Prompt(21)), 16u);
  // It is another prompt's only when that ends there too.
  EXPECT_EQ(*all.cache->Lookup(Prompt(22)), 16u);
}

TEST_P(PagedCacheTest, StopsWhereThereIsNoRoom) {
  engines_.clear();
  const size_t block = *MakeLayout().BlockBytes(kBlockTokens);
  MakeCache(3 * block);
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const PagedCache::Saved saved = Save(engine, Prompt(40), Table(engine, 40, 0));
  EXPECT_EQ(saved.tokens, 24u);
  EXPECT_TRUE(absl::IsResourceExhausted(saved.stopped)) << saved.stopped;
  ASSERT_TRUE(saved.copies.Wait().ok());
  EXPECT_EQ(*engine.cache->Lookup(Prompt(40)), 24u);
}

TEST_P(PagedCacheTest, RefusesWhatCannotBe) {
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const std::vector<int32_t> prompt = Prompt(40);
  const auto invalid = [](const absl::Status& status) { return absl::IsInvalidArgument(status); };
  EXPECT_TRUE(invalid(engine.cache->Save({}, {0}, stream_).status()));
  EXPECT_TRUE(invalid(engine.cache->Save(prompt, {0, 1}, stream_).status()));
  EXPECT_TRUE(invalid(engine.cache->Save(prompt, std::vector<int32_t>(10, 40), stream_).status()));
  EXPECT_TRUE(invalid(engine.cache->Save(prompt, std::vector<int32_t>(10, -1), stream_).status()));
  EXPECT_TRUE(invalid(
      engine.cache->Save(prompt, Table(engine, 40, 0), stream_, {.ttl = absl::ZeroDuration()})
          .status()));
  EXPECT_TRUE(invalid(
      engine.cache->Save(prompt, Table(engine, 40, 0), stream_, {.priority = 101}).status()));
  EXPECT_TRUE(invalid(engine.cache->Load({}, {0}, stream_).status()));
  EXPECT_TRUE(invalid(engine.cache->Load(prompt, {0, 1}, stream_, 41).status()));
  EXPECT_TRUE(invalid(engine.cache->Load(prompt, {0, 77}, stream_).status()));
  EXPECT_EQ(engine.cache->Load(prompt, {}, stream_)->tokens, 0u);
  EXPECT_TRUE(invalid(engine.cache->Lookup({}).status()));

  PagedCacheOptions options = engine.cache->options();
  const auto create = [&](const PagedKv& kv) {
    return PagedCache::Create(cache_.get(), kv, options).status();
  };
  EXPECT_TRUE(invalid(PagedCache::Create(nullptr, engine.kv, options).status()));
  options.tokens_per_block = 0;
  EXPECT_TRUE(invalid(create(engine.kv)));
  options.tokens_per_block = 1u << 20;
  EXPECT_TRUE(invalid(create(engine.kv)));
  options.tokens_per_block = 8;
  options.ns.layout.head_dim = 8;
  EXPECT_TRUE(invalid(create(engine.kv)));
  options.ns.layout.head_dim = 16;
  PagedKv kv = engine.kv;
  kv.pages = 0;
  EXPECT_TRUE(invalid(create(kv)));
}

TEST_P(PagedCacheTest, ABlockWithOtherBytesThanWereSavedIsDropped) {
  if (GetParam().blocks == Where::kDevice) GTEST_SKIP() << "no checksums of copies on a device";
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const std::vector<int32_t> prompt = Prompt(40);
  ASSERT_TRUE(Save(engine, prompt, Table(engine, 40, 0)).copies.Wait().ok());
  std::vector<BlockKey> keys;
  const BlockKey root = *RootKey(engine.cache->options().ns);
  ASSERT_TRUE(ChainKeys(root, prompt, kBlockTokens, &keys).ok());
  {
    absl::StatusOr<ReadLease> lease = cache_->Get(NamespaceId::kDefault, keys[2]);
    ASSERT_TRUE(lease.ok());
    const_cast<std::byte*>(lease->part(1))[5] ^= std::byte{4};
  }
  const PagedCache::Loaded loaded = Load(engine, prompt, Table(engine, 40, 20));
  EXPECT_EQ(loaded.tokens, 40u);
  EXPECT_TRUE(absl::IsDataLoss(loaded.copies.Wait())) << loaded.copies.Wait();
  EXPECT_TRUE(loaded.copies.result(0).ok());
  EXPECT_EQ(*engine.cache->Lookup(prompt), 16u);
}

TEST_P(PagedCacheTest, ABlockOfOtherPartsUnderTheSameKeyIsRefused) {
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const std::vector<int32_t> prompt = Prompt(kBlockTokens);
  std::vector<BlockKey> keys;
  ASSERT_TRUE(ChainKeys(*RootKey(engine.cache->options().ns), prompt, kBlockTokens, &keys).ok());
  const std::vector<std::byte> bytes(*MakeLayout().BlockBytes(kBlockTokens));
  const ConstBytes source = bytes;
  ASSERT_TRUE(cache_->Put(keys[0], {bytes.size(), 1}, {source}).ok());
  const absl::Status status =
      engine.cache->Load(prompt, Table(engine, kBlockTokens, 0), stream_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST_P(PagedCacheTest, TheStatisticsCountWhatWasCopied) {
  Engine& engine = MakeEngine(4, PagedKv::Order::kTokenHeadDim);
  const std::vector<int32_t> prompt = Prompt(40);
  ASSERT_TRUE(Save(engine, prompt, Table(engine, 40, 0)).copies.Wait().ok());
  ASSERT_TRUE(Load(engine, prompt, Table(engine, 40, 20)).copies.Wait().ok());
  const CacheStats stats = cache_->stats();
  EXPECT_EQ(stats.counters.bytes_read, *MakeLayout().BlockBytes(40));
  EXPECT_EQ(stats.usage.blocks, 5u);
}

INSTANTIATE_TEST_SUITE_P(
    Places, PagedCacheTest,
    testing::Values(Setup{"cpu_ram", Where::kCpuRam, false},
                    Setup{"pinned_host", Where::kPinnedHost, false},
                    Setup{"pinned_host_and_device_pages", Where::kPinnedHost, true},
                    Setup{"device", Where::kDevice, false},
                    Setup{"device_and_device_pages", Where::kDevice, true}),
    [](const testing::TestParamInfo<Setup>& info) { return std::string(info.param.name); });

// A device whose copies end when the test says so.
class LatePagedCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    gpu_ = std::make_shared<FakeGpuRuntime>(FakeGpuRuntime::Options{.run_when_waited_for = false});
    auto backend = CreatePinnedHostBackend({.capacity_bytes = kCapacity, .link = kLink}, gpu_);
    ASSERT_TRUE(backend.ok());
    auto cache = Cache::Create({}, *std::move(backend), CreateLruPolicy());
    ASSERT_TRUE(cache.ok());
    cache_ = *std::move(cache);
    kv_.layout = MakeLayout();
    kv_.page_tokens = 4;
    kv_.pages = 40;
    kv_.page_stride = 2 * kv_.PageBytes();
    memory_ = *gpu_->AllocateDevice(0, kLayers * kv_.pages * kv_.page_stride);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = memory_ + layer * kv_.pages * kv_.page_stride;
      kv_.layers.push_back({k, k + kv_.PageBytes()});
    }
    kv_.space = {MemoryKind::kDevice, 0};
    PagedCacheOptions options = {.tokens_per_block = kBlockTokens};
    options.ns.layout = kv_.layout;
    options.ns.shard = Shard::Whole(kLayers, 2);
    auto paged = PagedCache::Create(cache_.get(), kv_, options);
    ASSERT_TRUE(paged.ok()) << paged.status();
    paged_ = *std::move(paged);
    prompt_.resize(24);
    std::iota(prompt_.begin(), prompt_.end(), 0);
    table_.resize(6);
    std::iota(table_.begin(), table_.end(), 0);
    stream_ = gpu_->EngineStream();
  }
  void TearDown() override {
    gpu_->RunAll();
    cache_.reset();
    gpu_->FreeDevice(0, memory_).IgnoreError();
    EXPECT_TRUE(gpu_->violations().empty()) << gpu_->violations()[0];
  }

  std::shared_ptr<FakeGpuRuntime> gpu_;
  std::unique_ptr<Cache> cache_;
  PagedKv kv_;
  std::byte* memory_ = nullptr;
  std::unique_ptr<PagedCache> paged_;
  std::vector<int32_t> prompt_, table_;
  Stream stream_;
};

TEST_F(LatePagedCacheTest, BlocksBecomeVisibleWhenTheyHaveBeenCopied) {
  absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt_, table_, stream_);
  ASSERT_TRUE(saved.ok());
  EXPECT_EQ(*paged_->Lookup(prompt_), 0u);
  // Who saves the same now copies nothing.
  absl::StatusOr<PagedCache::Saved> again = paged_->Save(prompt_, table_, stream_);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->tokens, 24u);
  EXPECT_EQ(again->copied_tokens, 0u);
  EXPECT_FALSE(again->copies.Done());
  gpu_->RunAll();
  ASSERT_TRUE(saved->copies.Wait().ok());
  EXPECT_TRUE(again->copies.Wait().ok());
  EXPECT_EQ(*paged_->Lookup(prompt_), 24u);
}

TEST_F(LatePagedCacheTest, BlocksStayUntilTheyHaveBeenLoaded) {
  absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt_, table_, stream_);
  gpu_->RunAll();
  ASSERT_TRUE(saved.ok() && saved->copies.Wait().ok());
  absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(prompt_, table_, stream_);
  ASSERT_TRUE(loaded.ok());
  cache_->Clear();
  EXPECT_GT(cache_->stats().usage.bytes_detached, 0u);
  gpu_->RunAll();
  EXPECT_TRUE(loaded->copies.Wait().ok());
  cache_->Drain();
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0u);
}

TEST_F(LatePagedCacheTest, WithoutDeviceMemoryToSpareKernelsReachOverTheLink) {
  for (size_t i = 0; i < kLayers * kv_.pages * kv_.page_stride; ++i) {
    memory_[i] = static_cast<std::byte>(i * 7 + i / 251);
  }
  const std::vector<std::byte> before(memory_, memory_ + kLayers * kv_.pages * kv_.page_stride);
  // A page table and the staging of each layer, each way.
  for (int i = 0; i < 8; ++i) {
    gpu_->FailCall("AllocateDevice", absl::ResourceExhaustedError("injected"));
  }
  absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt_, table_, stream_);
  gpu_->RunAll();
  ASSERT_TRUE(saved.ok() && saved->copies.Wait().ok()) << saved->copies.Wait();
  for (int32_t page : table_) {
    for (const PagedKv::Layer& layer : kv_.layers) {
      std::memset(layer.k + page * kv_.page_stride, 0xEE, kv_.page_stride);
    }
  }
  absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(prompt_, table_, stream_);
  gpu_->RunAll();
  ASSERT_TRUE(loaded.ok() && loaded->copies.Wait().ok()) << loaded->copies.Wait();
  EXPECT_EQ(std::memcmp(memory_, before.data(), before.size()), 0);
}

TEST_F(LatePagedCacheTest, AFailedCopyLeavesNothingBehind) {
  // Of the second layer.
  gpu_->FailCall("CopyPages", absl::ResourceExhaustedError("injected"), /*skip=*/1);
  absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt_, table_, stream_);
  ASSERT_TRUE(saved.ok());
  gpu_->RunAll();
  EXPECT_TRUE(absl::IsResourceExhausted(saved->copies.Wait())) << saved->copies.Wait();
  cache_->Drain();
  EXPECT_EQ(*paged_->Lookup(prompt_), 0u);
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0u);
}

TEST_F(LatePagedCacheTest, ErasedWhileItIsSavedItIsNotThere) {
  absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt_, table_, stream_);
  ASSERT_TRUE(saved.ok());
  cache_->Clear();
  gpu_->RunAll();
  saved->copies.Wait().IgnoreError();
  cache_->Drain();
  EXPECT_EQ(*paged_->Lookup(prompt_), 0u);
  EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0u);
}

}  // namespace
}  // namespace kvcache
