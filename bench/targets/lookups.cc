// Hits: single, in batches, of whole prompts, of chains.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "benchmark/benchmark.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kMillion = 1'000'000;
constexpr size_t kLookups = 200'000;  // in each round

// What a cache cannot do without: a lock and a hash table of 32-byte keys.
class LockedMap {
 public:
  explicit LockedMap(absl::Span<const BlockKey> keys) {
    map_.reserve(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) map_[keys[i]] = i;
  }
  size_t Find(const BlockKey& key) {
    std::lock_guard<std::mutex> lock(mu_);
    return map_.find(key)->second;
  }

 private:
  std::mutex mu_;
  absl::flat_hash_map<BlockKey, size_t> map_;
};

void MeasureGets(Suite& suite, size_t count, absl::Span<const BlockKey> keys) {
  const std::unique_ptr<Cache> cache = FullCache(keys);
  LockedMap map(keys);
  // In random order, and laid out in that order: neither side pays for finding the next key.
  std::vector<BlockKey> order;
  for (uint32_t i : Shuffled(count)) order.push_back(keys[i]);
  const size_t lookups = std::min(count, kLookups) / 256 * 256;
  const size_t repeats = std::max<size_t>(1, kLookups / lookups);
  size_t next = 0;
  const auto advance = [&] { return next = (next + lookups) % (count - lookups + 1); };

  const auto nanos = [&](const std::function<void(absl::Span<const BlockKey>)>& pass) {
    const absl::Span<const BlockKey> part = absl::MakeSpan(order).subspan(advance(), lookups);
    return 1e9 / static_cast<double>(lookups * repeats) * Seconds([&] {
             for (size_t i = 0; i < repeats; ++i) pass(part);
           });
  };
  const auto find = [&] {
    return nanos([&](absl::Span<const BlockKey> part) {
      for (const BlockKey& key : part) benchmark::DoNotOptimize(map.Find(key));
    });
  };
  const auto get = [&] {
    return nanos([&](absl::Span<const BlockKey> part) {
      for (const BlockKey& key : part) benchmark::DoNotOptimize(cache->Get(kNs, key).ok());
    });
  };
  if (count < kMillion) {
    suite.Value("hit: Get + release, 10 k resident blocks", "ns", Goal::kAtMost, 120, get);
    return;
  }
  // One lookup after the other, as a request makes it: each key is chosen by the result before, so
  // that the processor cannot work on several at once.
  suite.Ratio(
      "hit: Get + release, 1 M blocks, one after the other", "ns", Goal::kAtMost, 2.5,
      [&] {
        return nanos([&](absl::Span<const BlockKey> part) {
          size_t zero = 0;
          for (size_t i = 0; i < part.size(); ++i) {
            zero = cache->Get(kNs, part[i + zero])->size() >> 63;
          }
          benchmark::DoNotOptimize(zero);
        });
      },
      "lock + find",
      [&] {
        return nanos([&](absl::Span<const BlockKey> part) {
          size_t zero = 0;
          for (size_t i = 0; i < part.size(); ++i) zero = map.Find(part[i + zero]) >> 63;
          benchmark::DoNotOptimize(zero);
        });
      });
  suite.Ratio("hit: Get + release, 1 M blocks, independent of each other", "ns", Goal::kAtMost, 2.5,
              get, "lock + find", find);
  for (size_t batch : {16, 64, 256}) {
    std::vector<ReadLease> leases(batch);
    suite.Ratio(
        absl::StrCat("hit: GetMany + Release in batches of ", batch, ", 1 M blocks"), "ns",
        Goal::kAtMost, 1.3,
        [&] {
          return nanos([&](absl::Span<const BlockKey> part) {
            for (; part.size() >= batch; part.remove_prefix(batch)) {
              cache->GetMany(kNs, part.subspan(0, batch), absl::MakeSpan(leases));
              cache->Release(absl::MakeSpan(leases));
            }
          });
        },
        "lock + find", find);
  }
}

void MeasurePrefixes(Suite& suite) {
  constexpr size_t kPrefixes = 100'000;
  constexpr uint32_t kLayers = 32;
  auto backend =
      CreateCpuRamBackend({.capacity_bytes = kPrefixes * kLayers * 64 + (size_t{1} << 20)});
  auto cache = PrefixCache::Create({.layers = kLayers, .cache = {.max_blocks = kPrefixes}},
                                   *std::move(backend), CreateLruPolicy())
                   .value();
  std::vector<std::string> texts;
  const std::vector<BlockKey> random = RandomKeys(kPrefixes);
  std::vector<std::byte> bytes(32);
  const KvTensor tensor = {bytes.data(), DType::kF32, 1, 1, 8};
  const std::vector<LayerKv> layers(kLayers, {tensor, tensor});
  for (const BlockKey& key : random) {
    std::string text = key.ToHex();
    while (text.size() < 2048) text += text;
    texts.push_back(std::move(text));
    const absl::Status put = cache->CacheAllLayers(texts.back(), layers);
    KVCACHE_CHECK(put.ok(), put.ToString());
  }
  const std::vector<uint32_t> order = Shuffled(kPrefixes);
  constexpr size_t kReads = 20'000;
  size_t next = 0;
  const auto nanos = [&](const std::function<void(const std::string&)>& read) {
    next = (next + kReads) % kPrefixes;
    return 1e9 / kReads * Seconds([&] {
             for (size_t i = next; i < next + kReads; ++i) read(texts[order[i]]);
           });
  };
  const BlockKey root = {};
  suite.Ratio(
      "hit: 32 layers by a 2 KiB text, 100 k prefixes", "ns", Goal::kAtMost, 1.4,
      [&] {
        return nanos([&](const std::string& text) {
          const absl::StatusOr<CachedKv> hit = cache->GetAllLayers(text);
          for (uint32_t layer = 0; layer < kLayers; ++layer) {
            benchmark::DoNotOptimize(hit->layer(layer).v.data);
          }
        });
      },
      "SHA-256 of the text",
      [&] {
        return nanos([&](const std::string& text) {
          benchmark::DoNotOptimize(TextKey(root, text)->bytes[0]);
        });
      });
}

void MeasureMatches(Suite& suite) {
  constexpr size_t kTokens = 100'000;
  constexpr size_t kBlocks = kTokens / 16;
  constexpr size_t kChains = kMillion / kBlocks;
  const BlockKey root = {};
  std::vector<int32_t> tokens(kTokens);
  std::vector<BlockKey> all;
  std::vector<BlockKey> keys;
  const auto tokens_of = [&tokens](size_t chain) -> const std::vector<int32_t>& {
    for (size_t i = 0; i < kTokens; ++i) tokens[i] = static_cast<int32_t>(chain * 7919 + i);
    return tokens;
  };
  for (size_t chain = 0; chain < kChains; ++chain) {
    const absl::Status hashed = ChainKeys(root, tokens_of(chain), 16, &keys);
    KVCACHE_CHECK(hashed.ok(), hashed.ToString());
    all.insert(all.end(), keys.begin(), keys.end());
  }
  const std::unique_ptr<Cache> cache = FullCacheOfChains(all, kBlocks);
  size_t chain = 0;
  suite.Value("hit: hash + Match + release of 100,000 tokens, 1 M blocks", "ms", Goal::kAtMost, 1.2,
              [&] {
                tokens_of(chain = (chain + 37) % kChains);
                return 1e3 * Seconds([&] {
                         const absl::Status hashed = ChainKeys(root, tokens, 16, &keys);
                         PrefixMatch match = cache->Match({.keys = keys});
                         KVCACHE_CHECK(hashed.ok() && match.blocks.size() == kBlocks, "a miss");
                         cache->Release(absl::MakeSpan(match.blocks));
                       });
              });
  suite.Value("hit: hashing, per token", "ns", Goal::kAtMost, 7, [&] {
    tokens_of(++chain);
    return 1e9 / kTokens *
           Seconds([&] { benchmark::DoNotOptimize(ChainKeys(root, tokens, 16, &keys).ok()); });
  });
}

}  // namespace

void MeasureLookups(Suite& suite) {
  if (!suite.Wants("hit:")) return;
  const std::vector<BlockKey> keys = RandomKeys(kMillion);
  MeasureGets(suite, 10'000, absl::MakeSpan(keys).first(10'000));
  MeasureGets(suite, kMillion, keys);
  MeasurePrefixes(suite);
  MeasureMatches(suite);
}

}  // namespace kvcache::bench
