// What each policy that is linked in costs, beside LRU.
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache::bench {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kMillion = 1'000'000;
constexpr size_t kLookups = 200'000 / 64 * 64;  // in each round
constexpr size_t kPuts = 100'000;               // in each round
constexpr size_t kBatch = 64;
// What it may cost at most, in times of LRU: chain does more.
double MostTimesLru(absl::string_view policy) { return policy == "chain" ? 3.0 : 2.0; }

// A full cache under one policy, and what is done to it.
class Subject {
 public:
  Subject(const std::string& policy, absl::Span<const BlockKey> keys,
          absl::Span<const BlockKey> in_random_order)
      : keys_(keys), order_(in_random_order), leases_(kBatch) {
    absl::StatusOr<std::unique_ptr<EvictionPolicy>> made = MakePolicy(policy);
    KVCACHE_CHECK(made.ok(), made.status().ToString());
    cache_ = FullCacheOfChains(keys.first(kMillion), 1, *std::move(made));
  }

  // Each in nanoseconds for a block.

  double Gets() {
    const absl::Span<const BlockKey> keys = NextKeys();
    return 1e9 / kLookups * Seconds([&] {
             for (const BlockKey& key : keys) benchmark::DoNotOptimize(cache_->Get(kNs, key).ok());
           });
  }

  double Batches() {
    absl::Span<const BlockKey> keys = NextKeys();
    return 1e9 / kLookups * Seconds([&] {
             for (; !keys.empty(); keys.remove_prefix(kBatch)) {
               cache_->GetMany(kNs, keys.first(kBatch), absl::MakeSpan(leases_));
               cache_->Release(absl::MakeSpan(leases_));
             }
           });
  }

  // Of keys that are not there; afterwards some others are not.
  double Puts() {
    return 1e9 / kPuts * Seconds([&] {
             for (size_t i = 0; i < kPuts; ++i) {
               auto block = cache_->Reserve(keys_[next_put_], {64, 1});
               if (block.ok()) block->Commit().IgnoreError();
               if (++next_put_ == keys_.size()) next_put_ = 0;
             }
           });
  }

 private:
  absl::Span<const BlockKey> NextKeys() {
    next_get_ = (next_get_ + kLookups) % (kMillion - kLookups + 1);
    return order_.subspan(next_get_, kLookups);
  }

  const absl::Span<const BlockKey> keys_;   // the first million are there
  const absl::Span<const BlockKey> order_;  // those, in random order
  std::vector<ReadLease> leases_;
  std::unique_ptr<Cache> cache_;
  size_t next_get_ = 0;
  size_t next_put_ = kMillion;
};

}  // namespace

void MeasurePolicies(Suite& suite) {
  if (!suite.Wants("policy:")) return;
  const std::vector<BlockKey> keys = RandomKeys(kMillion * 2);
  std::vector<BlockKey> order;
  for (uint32_t i : Shuffled(kMillion)) order.push_back(keys[i]);
  for (const std::string& name : PolicyNames()) {
    if (name == "lru" || !suite.Wants(absl::StrCat("policy: ", name))) continue;
    Subject policy(name, keys, order);
    Subject lru("lru", keys, order);
    const auto row = [&](absl::string_view what, double (Subject::*measure)()) {
      suite.Ratio(
          absl::StrCat("policy: ", name, ", ", what, ", 1 M blocks"), "ns", Goal::kAtMost,
          MostTimesLru(name), [&] { return (policy.*measure)(); }, "lru",
          [&] { return (lru.*measure)(); });
    };
    row("Get + release", &Subject::Gets);
    row("GetMany + Release in batches of 64", &Subject::Batches);
    row("evict + insert", &Subject::Puts);
  }
}

}  // namespace kvcache::bench
