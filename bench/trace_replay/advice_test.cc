// What a running cache says that others would hit, against what those hit, for a trace that is not
// part of this repository: KVCACHE_CONVERSATION_TRACE names Mooncake's conversation_trace.jsonl.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/bench/trace_replay/replay.h"
#include "kvcache/bench/trace_replay/trace.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/plugins/registry.h"
#include "kvcache/core/stats/stats.h"

namespace kvcache::bench {
namespace {

constexpr size_t kCapacities[] = {1'000, 3'000, 10'000, 30'000, 100'000};
constexpr uint64_t kSeeds = 20;

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

class AdviceTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("KVCACHE_CONVERSATION_TRACE");
    if (path == nullptr) GTEST_SKIP() << "KVCACHE_CONVERSATION_TRACE is not set";
    absl::StatusOr<TraceFile> file = ReadTrace(path);
    ASSERT_TRUE(file.ok()) << file.status();
    workload_ = Workload::Make(std::move(file->trace));
  }

  // Asks a cache of `blocks` under policies[0] about all of them and prints the errors of each.
  void Ask(size_t blocks, TouchOrder order, const std::vector<std::string>& policies,
           double most_median) {
    ReplayOptions options = {.policy = policies[0], .capacity_blocks = blocks};
    options.touch_order = order;
    std::vector<double> truth;
    for (const std::string& policy : policies) {
      if (policy != policies[0]) options.advice.policies.push_back(*MakePolicy(policy));
      for (size_t capacity : kCapacities) {
        const absl::StatusOr<ReplayResult> real = Replay(
            workload_, {.policy = policy, .capacity_blocks = capacity, .touch_order = order});
        ASSERT_TRUE(real.ok()) << real.status();
        truth.push_back(real->plain_hit_ratio());
      }
    }
    for (size_t capacity : kCapacities) {
      options.advice.capacities.push_back(static_cast<double>(capacity) /
                                          static_cast<double>(blocks));
    }
    std::vector<std::vector<double>> errors(truth.size());
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      options.advice.seed = seed;
      const absl::StatusOr<ReplayResult> replay = Replay(workload_, options);
      ASSERT_TRUE(replay.ok()) << replay.status();
      ASSERT_EQ(replay->advice.size(), truth.size());
      for (size_t i = 0; i < truth.size(); ++i) {
        const Advice& advice = replay->advice[i];
        ASSERT_TRUE(advice.hit_ratio.has_value());
        ASSERT_LE(advice.sampled_lookups, advice.lookups / 10);  // one key has 1 of 24 lookups
        errors[i].push_back(std::abs(*advice.hit_ratio - truth[i]));
      }
    }
    std::vector<double> all;
    for (size_t i = 0; i < truth.size(); ++i) {
      const std::string& policy = policies[i / std::size(kCapacities)];
      const size_t capacity = kCapacities[i % std::size(kCapacities)];
      const double median = MedianOf(errors[i]);
      const double most = *std::max_element(errors[i].begin(), errors[i].end());
      std::printf("%s, %zu blocks under %s about %-6s %6zu blocks: %.4f, off by %.4f, most %.4f\n",
                  std::string(Name(order)).c_str(), blocks, policies[0].c_str(), policy.c_str(),
                  capacity, truth[i], median, most);
      EXPECT_LE(median, most_median) << policy << ", " << capacity << " blocks";
      EXPECT_LE(most, 0.035) << policy << ", " << capacity << " blocks";
      all.insert(all.end(), errors[i].begin(), errors[i].end());
    }
    std::printf("all: median %.4f\n", MedianOf(all));
  }

  Workload workload_;
};

TEST_F(AdviceTest, SaysWhatGeneralPoliciesHitForward) {
  for (size_t blocks : {1'000, 30'000}) {
    Ask(blocks, TouchOrder::kForward, {"lru", "lfu", "fifo", "arc", "s3fifo", "gdsf"}, 0.01);
  }
}

TEST_F(AdviceTest, SaysWhatGeneralPoliciesHitOfChains) {
  for (size_t blocks : {1'000, 30'000}) {
    Ask(blocks, TouchOrder::kChain, {"lru", "lfu", "arc", "s3fifo", "gdsf"}, 0.01);
  }
}

TEST_F(AdviceTest, SaysWhatChainHits) {
  for (size_t blocks : {1'000, 10'000}) {
    Ask(blocks, TouchOrder::kChain, {"lru", "chain"}, 0.015);
    Ask(blocks, TouchOrder::kChain, {"chain", "lru"}, 0.015);
  }
}

// FIFO keeps a block for children of which hardly any is in the sample.
TEST_F(AdviceTest, IsLessPreciseAboutFifoOfChains) {
  Ask(10'000, TouchOrder::kChain, {"lru", "fifo"}, 0.03);
}

}  // namespace
}  // namespace kvcache::bench
