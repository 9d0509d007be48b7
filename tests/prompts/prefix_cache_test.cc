#include "kvcache/core/prompts/prefix_cache.h"

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kLayers = 4;
constexpr uint32_t kHeads = 2;
constexpr uint32_t kDim = 8;
constexpr uint32_t kTokens = 16;
constexpr size_t kTensorFloats = kTokens * kHeads * kDim;
constexpr size_t kPrefixBytes = kLayers * 2 * kTensorFloats * sizeof(float);

// The tensors of a prefix; different for every seed, layer and side.
class Tensors {
 public:
  explicit Tensors(int seed, uint32_t tokens = kTokens) : tokens_(tokens) {
    for (uint32_t tensor = 0; tensor < 2 * kLayers; ++tensor) {
      std::vector<float>& values = values_.emplace_back(tokens * kHeads * kDim);
      for (size_t i = 0; i < values.size(); ++i) values[i] = seed * 1000 + tensor * 100 + 0.25f * i;
    }
  }

  KvTensor k(uint32_t layer) const { return Tensor(2 * layer); }
  KvTensor v(uint32_t layer) const { return Tensor(2 * layer + 1); }
  std::vector<LayerKv> all() const {
    std::vector<LayerKv> layers;
    for (uint32_t layer = 0; layer < kLayers; ++layer) layers.push_back({k(layer), v(layer)});
    return layers;
  }
  void Overwrite() {
    for (auto& values : values_) std::fill(values.begin(), values.end(), -1.0f);
  }

 private:
  KvTensor Tensor(uint32_t i) const {
    return {values_[i].data(), DType::kF32, tokens_, kHeads, kDim};
  }

  uint32_t tokens_;
  std::vector<std::vector<float>> values_;
};

bool Same(const KvTensor& a, const KvTensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

bool HoldsAll(const CachedKv& cached, const Tensors& tensors) {
  bool same = cached.layers() == kLayers;
  for (uint32_t layer = 0; same && layer < kLayers; ++layer) {
    same = Same(cached.layer(layer).k, tensors.k(layer)) &&
           Same(cached.layer(layer).v, tensors.v(layer));
  }
  return same;
}

class PrefixCacheTest : public ::testing::Test {
 protected:
  explicit PrefixCacheTest(size_t prefixes = 3) {
    auto backend = CreateCpuRamBackend({.capacity_bytes = prefixes * kPrefixBytes});
    EXPECT_TRUE(backend.ok()) << backend.status();
    PrefixCacheOptions options;
    options.layers = kLayers;
    options.cache.clock = &clock_;
    auto cache = PrefixCache::Create(options, *std::move(backend), CreateLruPolicy());
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }

  absl::Status PutAll(const Prefix& prefix, const Tensors& tensors) {
    return cache_->CacheAllLayers(prefix, tensors.all());
  }
  absl::Status PutLayer(const Prefix& prefix, const Tensors& tensors, uint32_t layer) {
    return cache_->CacheKv(prefix, layer, tensors.k(layer), tensors.v(layer));
  }
  CacheUsage usage() { return cache_->stats().usage; }

  ManualClock clock_;
  std::unique_ptr<PrefixCache> cache_;
};

TEST_F(PrefixCacheTest, ALayerPutAloneIsReadableAtOnceAndAllLayersWhenAllAreThere) {
  const Tensors tensors(1);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_EQ(cache_->GetAllLayers("p").status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(cache_->GetCachedKv("p", layer).status().code(), absl::StatusCode::kNotFound);
    ASSERT_TRUE(PutLayer("p", tensors, layer).ok());
    absl::StatusOr<CachedKv> cached = cache_->GetCachedKv("p", layer);
    ASSERT_TRUE(cached.ok()) << cached.status();
    EXPECT_EQ(cached->tokens(), kTokens);
    EXPECT_TRUE(Same(cached->layer(0).k, tensors.k(layer)));
    EXPECT_TRUE(Same(cached->layer(0).v, tensors.v(layer)));
  }
  absl::StatusOr<CachedKv> all = cache_->GetAllLayers("p");
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_TRUE(HoldsAll(*all, tensors));
  EXPECT_EQ(cache_->stats().counters.layer_hits, kLayers);
  EXPECT_EQ(cache_->stats().counters.failed_writes, 0);
}

TEST_F(PrefixCacheTest, PutsCopy) {
  Tensors tensors(1);
  ASSERT_TRUE(PutAll("p", tensors).ok());
  tensors.Overwrite();
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers("p"), Tensors(1)));
}

TEST_F(PrefixCacheTest, TextAndTokensAreDifferentPrefixes) {
  const std::vector<int32_t> tokens = {112};
  ASSERT_TRUE(PutAll("p", Tensors(1)).ok());
  EXPECT_FALSE(cache_->GetAllLayers(tokens).ok());
  ASSERT_TRUE(PutAll(tokens, Tensors(2)).ok());
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers("p"), Tensors(1)));
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers(tokens), Tensors(2)));
}

TEST_F(PrefixCacheTest, AnExtraMakesAnotherPrefix) {
  const std::vector<int32_t> tokens = {112};
  const absl::Span<const int32_t> ids = tokens;
  ASSERT_TRUE(PutAll({"<image>", "image 1"}, Tensors(1)).ok());
  EXPECT_FALSE(cache_->GetAllLayers("<image>").ok());
  EXPECT_FALSE(cache_->GetAllLayers({"<image>", "image 2"}).ok());
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers({"<image>", "image 1"}), Tensors(1)));
  ASSERT_TRUE(PutAll(Prefix(ids, "image 1"), Tensors(2)).ok());
  EXPECT_FALSE(cache_->GetAllLayers(tokens).ok());
  EXPECT_FALSE(cache_->GetAllLayers(Prefix(ids, "image 2")).ok());
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers(Prefix(ids, "image 1")), Tensors(2)));
}

TEST_F(PrefixCacheTest, AnotherShapeOrDtypeIsRefusedWithBoth) {
  ASSERT_TRUE(PutAll("p", Tensors(1)).ok());
  const Tensors tensors(2);
  KvTensor k = tensors.k(0);
  KvTensor v = tensors.v(0);
  k.kv_heads = v.kv_heads = 1;
  const auto message = [&] { return std::string(cache_->CacheKv("q", 0, k, v).message()); };
  EXPECT_EQ(message(), "k of layer 0: f32 [16, 1, 8], but this cache holds f32 [tokens, 2, 8]");
  k = tensors.k(0);
  k.dtype = DType::kBF16;
  EXPECT_EQ(message(), "k of layer 0: bf16 [16, 2, 8], but this cache holds f32 [tokens, 2, 8]");
  k = tensors.k(0);
  v = tensors.v(0);
  v.tokens = 15;
  EXPECT_EQ(message(), "v of layer 0: f32 [15, 2, 8], but k of layer 0 is f32 [16, 2, 8]");
  EXPECT_EQ(usage().blocks, 1);
}

TEST_F(PrefixCacheTest, ARefusedFirstPutDecidesNothing) {
  KvTensor bad = Tensors(1).k(0);
  bad.kv_heads = 1;
  bad.data = nullptr;
  EXPECT_THAT(cache_->CacheKv("p", 0, bad, bad).message(), HasSubstr("k of layer 0: null data"));
  EXPECT_EQ(cache_->stats().namespaces.size(), 1) << "none of this format";
  EXPECT_TRUE(PutAll("p", Tensors(1)).ok());
}

TEST_F(PrefixCacheTest, RefusedFirstPutsOfManyFormatsLeaveNoNamespaceEach) {
  const std::vector<float> data(16);
  PrefixPutOptions options;
  options.ttl = absl::ZeroDuration();
  for (uint32_t head_dim = 1; head_dim <= 10; ++head_dim) {
    const KvTensor tensor = {data.data(), DType::kF32, 1, 1, head_dim};
    EXPECT_TRUE(absl::IsInvalidArgument(cache_->CacheKv("p", 0, tensor, tensor, options)));
  }
  EXPECT_EQ(cache_->stats().namespaces.size(), 2) << "the default and this cache's own";
  EXPECT_TRUE(PutAll("p", Tensors(1)).ok());
  EXPECT_EQ(cache_->stats().namespaces.size(), 2);
  EXPECT_EQ(cache_->stats().namespaces[1].counters.blocks_written, 1);
}

TEST_F(PrefixCacheTest, AllLayersOfAPrefixHaveTheSameTokens) {
  ASSERT_TRUE(PutLayer("p", Tensors(1), 0).ok());
  const Tensors shorter(2, 8);
  EXPECT_EQ(PutLayer("p", shorter, 1).message(),
            "k of layer 1: f32 [8, 2, 8], but the prefix has 16 tokens");
  EXPECT_TRUE(Same(cache_->GetCachedKv("p", 0)->layer(0).k, Tensors(1).k(0)));
  ASSERT_TRUE(PutAll("p", shorter).ok());  // replaces all
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers("p"), shorter));
}

TEST_F(PrefixCacheTest, BadArgumentsAreNamed) {
  const Tensors tensors(1);
  EXPECT_EQ(PutLayer("p", tensors, 0), absl::OkStatus());
  EXPECT_EQ(cache_->CacheKv("p", 4, tensors.k(0), tensors.v(0)).message(),
            "layer: 4, expected less than the number of layers, 4");
  EXPECT_EQ(cache_->GetCachedKv("p", 4).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache_->CacheAllLayers("p", absl::MakeConstSpan(tensors.all()).first(3)).message(),
            "layers: 3, expected 4");
  EXPECT_EQ(PutAll("", tensors).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache_->GetAllLayers("").status().code(), absl::StatusCode::kInvalidArgument);
  KvTensor odd = tensors.k(0);
  odd.data = static_cast<const char*>(odd.data) + 1;
  EXPECT_THAT(cache_->CacheKv("p", 1, odd, odd).message(), HasSubstr("is not aligned to 4 bytes"));
  KvTensor empty = tensors.k(0);
  empty.tokens = 0;
  EXPECT_EQ(cache_->CacheKv("p", 1, empty, empty).code(), absl::StatusCode::kInvalidArgument);
  PrefixPutOptions options;
  options.ttl = -absl::Seconds(1);
  EXPECT_THAT(cache_->CacheAllLayers("p", tensors.all(), options).message(), HasSubstr("ttl: -1s"));
  auto backend = CreateCpuRamBackend({.capacity_bytes = 4096});
  EXPECT_EQ(PrefixCache::Create({}, *std::move(backend), CreateLruPolicy()).status().message(),
            "layers: 0, expected from 1 to 65535");
}

TEST_F(PrefixCacheTest, ReplacingALayerKeepsTheOthersAndCountsBytesOnce) {
  ASSERT_TRUE(PutAll("p", Tensors(1)).ok());
  CachedKv before = *cache_->GetAllLayers("p");
  ASSERT_TRUE(PutLayer("p", Tensors(2), 1).ok());
  EXPECT_TRUE(HoldsAll(before, Tensors(1)));
  {
    CachedKv after = *cache_->GetAllLayers("p");
    EXPECT_TRUE(Same(after.layer(0).k, Tensors(1).k(0)));
    EXPECT_TRUE(Same(after.layer(1).k, Tensors(2).k(1)));
    EXPECT_TRUE(Same(after.layer(1).v, Tensors(2).v(1)));
    EXPECT_TRUE(Same(after.layer(3).v, Tensors(1).v(3)));
  }
  EXPECT_EQ(usage().bytes_detached, kPrefixBytes);
  before = *cache_->GetAllLayers("p");
  EXPECT_EQ(usage().bytes_in_use, kPrefixBytes);
  EXPECT_EQ(usage().bytes_detached, 0);
  EXPECT_EQ(usage().blocks, 1);
  EXPECT_EQ(cache_->stats().counters.replaced, 1);
}

TEST_F(PrefixCacheTest, ReplacingALayerOfAPartialPrefixLeavesItPartial) {
  ASSERT_TRUE(PutLayer("p", Tensors(1), 0).ok());
  ASSERT_TRUE(PutLayer("p", Tensors(1), 2).ok());
  ASSERT_TRUE(PutLayer("p", Tensors(2), 0).ok());
  EXPECT_TRUE(Same(cache_->GetCachedKv("p", 0)->layer(0).k, Tensors(2).k(0)));
  EXPECT_TRUE(Same(cache_->GetCachedKv("p", 2)->layer(0).k, Tensors(1).k(2)));
  EXPECT_FALSE(cache_->GetCachedKv("p", 1).ok());
  EXPECT_FALSE(cache_->GetAllLayers("p").ok());
  EXPECT_EQ(usage().bytes_in_use, kPrefixBytes);
}

class OnePrefixTest : public PrefixCacheTest {
 protected:
  OnePrefixTest() : PrefixCacheTest(1) {}
};

TEST_F(OnePrefixTest, ReplacingAllLayersNeedsNoSecondRoom) {
  ASSERT_TRUE(PutAll("p", Tensors(1)).ok());
  ASSERT_TRUE(PutAll("p", Tensors(2)).ok());
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers("p"), Tensors(2)));
}

TEST_F(OnePrefixTest, WhatIsReadIsNotReplacedForWantOfRoom) {
  ASSERT_TRUE(PutAll("p", Tensors(1)).ok());
  CachedKv held = *cache_->GetAllLayers("p");
  EXPECT_EQ(PutAll("p", Tensors(2)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers("p"), Tensors(1)));
}

TEST_F(OnePrefixTest, MoreThanTheCacheHasIsRefused) {
  EXPECT_EQ(PutAll("p", Tensors(1, 2 * kTokens)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PrefixCacheTest, AFullCacheEvictsTheLeastRecentlyUsedPrefix) {
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(PutAll(absl::StrCat("p", i), Tensors(i)).ok());
  ASSERT_TRUE(cache_->GetAllLayers("p1").ok());
  ASSERT_TRUE(PutAll("p4", Tensors(4)).ok());
  EXPECT_FALSE(cache_->GetAllLayers("p2").ok());
  EXPECT_TRUE(HoldsAll(*cache_->GetAllLayers("p1"), Tensors(1)));
  EXPECT_EQ(cache_->stats().counters.evictions, 1);
}

TEST_F(PrefixCacheTest, AnExpiredPrefixIsAMissAndAnExpiration) {
  PrefixPutOptions options;
  options.ttl = absl::Seconds(10);
  ASSERT_TRUE(cache_->CacheAllLayers("p", Tensors(1).all(), options).ok());
  clock_.Advance(absl::Seconds(10));
  EXPECT_EQ(cache_->GetAllLayers("p").status(), absl::NotFoundError(""));
  EXPECT_EQ(cache_->stats().counters.expirations, 1);
  EXPECT_EQ(cache_->stats().counters.evictions, 0);
}

TEST_F(PrefixCacheTest, EvictAndClearForget) {
  ASSERT_TRUE(PutAll("p", Tensors(1)).ok());
  ASSERT_TRUE(PutAll("q", Tensors(2)).ok());
  EXPECT_TRUE(cache_->Evict("p"));
  EXPECT_FALSE(cache_->Evict("p"));
  EXPECT_FALSE(cache_->GetAllLayers("p").ok());
  cache_->Clear();
  EXPECT_FALSE(cache_->GetAllLayers("q").ok());
  EXPECT_EQ(usage().bytes_in_use, 0);
}

TEST_F(PrefixCacheTest, LoadsCopyToADestination) {
  const Tensors tensors(1);
  ASSERT_TRUE(PutAll("p", tensors).ok());
  std::vector<std::vector<float>> k(kLayers, std::vector<float>(kTensorFloats));
  std::vector<std::vector<float>> v = k;
  std::vector<LayerDestination> destinations;
  const auto bytes = [](std::vector<float>& values) {
    return MutableBytes(reinterpret_cast<std::byte*>(values.data()), values.size() * sizeof(float));
  };
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    destinations.push_back({bytes(k[layer]), bytes(v[layer])});
  }
  absl::StatusOr<Transfer> load = cache_->LoadAllLayers("p", destinations);
  ASSERT_TRUE(load.ok()) << load.status();
  ASSERT_TRUE(load->Wait().ok());
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_EQ(std::memcmp(k[layer].data(), tensors.k(layer).data, tensors.k(layer).bytes()), 0);
    EXPECT_EQ(std::memcmp(v[layer].data(), tensors.v(layer).data, tensors.v(layer).bytes()), 0);
  }
  ASSERT_TRUE(cache_->LoadKv("p", 3, destinations[0])->Wait().ok());
  EXPECT_EQ(std::memcmp(k[0].data(), tensors.k(3).data, tensors.k(3).bytes()), 0);
  EXPECT_EQ(cache_->LoadAllLayers("p", {&destinations[0], 2})->Wait().message(),
            "destinations: 2 layers, expected 4");
  destinations[1].v = destinations[1].v.first(8);
  EXPECT_THAT(cache_->LoadAllLayers("p", destinations)->Wait().message(),
              HasSubstr("destinations[1]: 8 bytes, expected 1024 for f32 [16, 2, 8]"));
  EXPECT_EQ(cache_->LoadAllLayers("q", destinations).status(), absl::NotFoundError(""));
}

TEST(PrefixCacheOverNoAddressesTest, ReplacingCopiesThroughABuffer) {
  std::unique_ptr<FakeBackend> backend = FakeBackend::Create(4 * kPrefixBytes);
  backend->set_auto_complete(true);
  PrefixCacheOptions options;
  options.layers = kLayers;
  auto cache = *PrefixCache::Create(options, std::move(backend), CreateLruPolicy());
  ASSERT_TRUE(cache->CacheAllLayers("p", Tensors(1).all()).ok());
  ASSERT_TRUE(cache->CacheKv("p", 1, Tensors(2).k(1), Tensors(2).v(1)).ok());
  absl::StatusOr<CachedKv> cached = cache->GetCachedKv("p", 2);
  ASSERT_TRUE(cached.ok());
  EXPECT_EQ(cached->layer(0).k.data, nullptr);
  std::vector<std::byte> k(kTensorFloats * sizeof(float)), v(k.size());
  const LayerDestination destination = {absl::MakeSpan(k), absl::MakeSpan(v)};
  ASSERT_TRUE(cached->CopyTo({&destination, 1}).Wait().ok());
  EXPECT_EQ(std::memcmp(k.data(), Tensors(1).k(2).data, k.size()), 0);
  EXPECT_EQ(std::memcmp(v.data(), Tensors(1).v(2).data, v.size()), 0);
}

TEST_F(PrefixCacheTest, WritersAndReadersOfOnePrefixSeeWholeLayers) {
  std::vector<std::thread> threads;
  for (int writer = 1; writer <= 2; ++writer) {
    threads.emplace_back([this, writer] {
      for (int i = 0; i < 300; ++i) {
        const Tensors tensors(writer);
        const absl::Status status =
            i % 3 == 0 ? PutAll("p", tensors) : PutLayer("p", tensors, i % kLayers);
        EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
      }
    });
  }
  for (int reader = 0; reader < 2; ++reader) {
    threads.emplace_back([this] {
      for (int i = 0; i < 600; ++i) {
        const uint32_t layer = i % kLayers;
        absl::StatusOr<CachedKv> cached = cache_->GetCachedKv("p", layer);
        if (!cached.ok()) continue;
        const LayerKv kv = cached->layer(0);
        EXPECT_TRUE((Same(kv.k, Tensors(1).k(layer)) && Same(kv.v, Tensors(1).v(layer))) ||
                    (Same(kv.k, Tensors(2).k(layer)) && Same(kv.v, Tensors(2).v(layer))));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(usage().bytes_in_use, kPrefixBytes);
}

TEST(PrefixCacheFailureTest, APutThatFailsLeavesThePrefixThatItWasToReplace) {
  std::unique_ptr<FakeBackend> backend = FakeBackend::Create(2 * kPrefixBytes);
  FakeBackend* const fake = backend.get();
  fake->set_auto_complete(true);
  PrefixCacheOptions options;
  options.layers = kLayers;
  const auto cache = *PrefixCache::Create(options, std::move(backend), CreateLruPolicy());
  ASSERT_TRUE(cache->CacheAllLayers("p", Tensors(1).all()).ok());
  fake->FailNextAllocate(absl::InternalError("injected"));
  EXPECT_FALSE(cache->CacheAllLayers("p", Tensors(2).all()).ok());
  EXPECT_TRUE(cache->GetAllLayers("p").ok());
}

}  // namespace
}  // namespace kvcache
