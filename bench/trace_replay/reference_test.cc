// The hit ratios that two independent simulators agree on, for a trace that is not part of this
// repository: KVCACHE_CONVERSATION_TRACE names Mooncake's conversation_trace.jsonl.
#include <array>
#include <cstdlib>
#include <string>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/bench/trace_replay/optimum.h"
#include "kvcache/bench/trace_replay/replay.h"
#include "kvcache/bench/trace_replay/trace.h"

namespace kvcache::bench {
namespace {

constexpr std::array<size_t, 5> kCapacities = {1'000, 10'000, 30'000, 50'000, 100'000};

struct Reference {
  std::string policy;
  std::array<double, 5> plain;
  std::array<double, 5> prefix;  // negative: the simulators say nothing
  double tolerance;
};

constexpr double kFourDecimals = 0.00005;
constexpr std::array<double, 5> kUnknown = {-1, -1, -1, -1, -1};

class ReferenceTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("KVCACHE_CONVERSATION_TRACE");
    if (path == nullptr) GTEST_SKIP() << "KVCACHE_CONVERSATION_TRACE is not set";
    absl::StatusOr<TraceFile> file = ReadTrace(path);
    ASSERT_TRUE(file.ok()) << file.status();
    workload_ = Workload::Make(std::move(file->trace));
    ASSERT_EQ(workload_.trace.requests.size(), 12'031u);
    ASSERT_EQ(workload_.trace.blocks.size(), 288'500u);
    ASSERT_EQ(workload_.trace.unique_blocks, 182'790u);
    ASSERT_EQ(workload_.tokens_per_block, 512u);
  }

  Workload workload_;
};

TEST_F(ReferenceTest, ForwardReplaysHaveTheHitRatiosOfTheSimulators) {
  const Reference kReferences[] = {
      {"lru",
       {0.0445, 0.2112, 0.3257, 0.3546, 0.3637},
       {0.0445, 0.2112, 0.3257, 0.3546, 0.3637},
       kFourDecimals},
      {"lfu",
       {0.0481, 0.1318, 0.2759, 0.3438, 0.3631},
       {0.0481, 0.1318, 0.2759, 0.3438, 0.3631},
       kFourDecimals},
      {"fifo",
       {0.0435, 0.1865, 0.3021, 0.3400, 0.3593},
       {0.0434, 0.1815, 0.2944, 0.3335, 0.3563},
       kFourDecimals},
      {"arc", {0.0529, 0.2225, 0.3108, 0.3433, 0.3631}, kUnknown, 0.002},
      {"s3fifo",
       {0.0556, 0.1955, 0.3061, 0.3501, 0.3625},
       {0.0556, 0.1952, 0.3039, 0.3490, 0.3624},
       0.002},
      {"gdsf", {0.0447, 0.2171, 0.3284, 0.3548, 0.3631}, kUnknown, 0.002},
  };
  for (const Reference& reference : kReferences) {
    for (size_t i = 0; i < kCapacities.size(); ++i) {
      const absl::StatusOr<ReplayResult> result =
          Replay(workload_, {.policy = reference.policy, .capacity_blocks = kCapacities[i]});
      ASSERT_TRUE(result.ok()) << result.status();
      std::printf("%-7s %7zu blocks: plain %.4f (%.4f), prefix %.4f (%.4f), token %.4f, %.3f s\n",
                  reference.policy.c_str(), kCapacities[i], result->plain_hit_ratio(),
                  reference.plain[i], result->prefix_hit_ratio(), reference.prefix[i],
                  result->token_hit_ratio(), result->seconds);
      EXPECT_NEAR(result->plain_hit_ratio(), reference.plain[i], reference.tolerance)
          << reference.policy << ", " << kCapacities[i] << " blocks";
      if (reference.prefix[i] < 0) continue;
      EXPECT_NEAR(result->prefix_hit_ratio(), reference.prefix[i], reference.tolerance)
          << reference.policy << ", " << kCapacities[i] << " blocks";
    }
  }
}

TEST_F(ReferenceTest, TheOptimumIsThatOfTheSimulators) {
  const Optimum optimum(workload_.trace.blocks, workload_.trace.unique_blocks);
  const std::array<double, 5> kReference = {0.1906, 0.3664, 0.3664, 0.3664, 0.3664};
  for (size_t i = 0; i < kCapacities.size(); ++i) {
    EXPECT_NEAR(ReplayResult::Ratio(optimum.Hits(kCapacities[i]), workload_.trace.blocks.size()),
                kReference[i], kFourDecimals)
        << kCapacities[i] << " blocks";
  }
}

TEST_F(ReferenceTest, LruOfChainsHasTheHitRatiosOfTouchingFromTheLastToTheFirst) {
  const std::array<double, 5> kReference = {0.0445, 0.2116, 0.3257, 0.3546, 0.3637};
  for (size_t i = 0; i < kCapacities.size(); ++i) {
    const absl::StatusOr<ReplayResult> result = Replay(
        workload_,
        {.policy = "lru", .capacity_blocks = kCapacities[i], .touch_order = TouchOrder::kChain});
    ASSERT_TRUE(result.ok()) << result.status();
    std::printf("lru chain %7zu blocks: plain %.4f, prefix %.4f (%.4f), %.3f s\n", kCapacities[i],
                result->plain_hit_ratio(), result->prefix_hit_ratio(), kReference[i],
                result->seconds);
    // The simulators also insert from the last to the first.
    EXPECT_NEAR(result->prefix_hit_ratio(), kReference[i], 0.001) << kCapacities[i] << " blocks";
  }
}

}  // namespace
}  // namespace kvcache::bench
