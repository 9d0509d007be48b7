// What a hit costs more in a cache that keeps advice.
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache::bench {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kBatch = 64;
constexpr size_t kLookups = 200'000 / kBatch * kBatch;  // in each round

// A cache under LRU that is full with chains of kBatch blocks, and what is done to it.
class Subject {
 public:
  Subject(absl::Span<const BlockKey> keys, absl::Span<const uint32_t> chains, AdviceOptions advice)
      : keys_(keys), chains_(chains), leases_(kBatch) {
    CacheOptions options;
    options.max_blocks = keys.size();
    options.advice = std::move(advice);
    cache_ = *Cache::Create(
        options, *CreateAccountingBackend({.capacity_bytes = keys.size() * 64, .alignment = 64}),
        *MakePolicy("lru"));
    for (size_t i = 0; i < keys.size(); ++i) {
      PutOptions put;
      if (i % kBatch > 0) put.parent = keys[i - 1];
      KVCACHE_CHECK(cache_->Reserve(keys[i], {64, 1}, put)->Commit().ok(), "key ", i);
    }
  }

  // Each in nanoseconds for a block.

  double Gets() {
    return Nanos([&](absl::Span<const BlockKey> chain) {
      for (const BlockKey& key : chain) benchmark::DoNotOptimize(cache_->Get(kNs, key).ok());
    });
  }

  double Batches() {
    return Nanos([&](absl::Span<const BlockKey> chain) {
      cache_->GetMany(kNs, chain, absl::MakeSpan(leases_));
      cache_->Release(absl::MakeSpan(leases_));
    });
  }

  double Matches() {
    return Nanos([&](absl::Span<const BlockKey> chain) {
      PrefixMatch match = cache_->Match({.keys = chain});
      cache_->Release(absl::MakeSpan(match.blocks));
    });
  }

 private:
  template <typename F>
  double Nanos(const F& use_chain) {
    return 1e9 / kLookups * Seconds([&] {
             for (size_t i = 0; i < kLookups / kBatch; ++i) {
               use_chain(keys_.subspan(size_t{chains_[next_]} * kBatch, kBatch));
               if (++next_ == chains_.size()) next_ = 0;
             }
           });
  }

  const absl::Span<const BlockKey> keys_;
  const absl::Span<const uint32_t> chains_;  // in random order
  std::vector<ReadLease> leases_;
  std::unique_ptr<Cache> cache_;
  size_t next_ = 0;
};

void MeasureAdvice(Suite& suite, size_t blocks, absl::string_view name) {
  const std::vector<BlockKey> keys = RandomKeys(blocks);
  const std::vector<uint32_t> chains = Shuffled(blocks / kBatch);
  AdviceOptions advice = {.capacities = {1, 2}, .policies = {*MakePolicy("s3fifo")}};
  const auto row = [&](absl::string_view what, double (Subject::*measure)()) {
    // A new cache each time: where in memory one happens to be makes more of a difference.
    const auto measure_new = [&](const AdviceOptions& options) {
      Subject subject(keys, chains, options);
      (subject.*measure)();
      return (subject.*measure)();
    };
    suite.Ratio(
        absl::StrCat("advice: ", what, ", ", name), "ns", Goal::kAtMost, 1.03,
        [&] { return measure_new(advice); }, "without", [&] { return measure_new({}); });
  };
  row("Get + release", &Subject::Gets);
  row("GetMany + Release in batches of 64", &Subject::Batches);
  row("Match + Release of 64", &Subject::Matches);
}

}  // namespace

void MeasureAdvice(Suite& suite) {
  if (!suite.Wants("advice:")) return;
  MeasureAdvice(suite, 10'000 / kBatch * kBatch, "10 k blocks");
  MeasureAdvice(suite, 100'000 / kBatch * kBatch, "100 k blocks");
}

}  // namespace kvcache::bench
