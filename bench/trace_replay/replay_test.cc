#include "kvcache/bench/trace_replay/replay.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/bench/trace_replay/sweep.h"
#include "kvcache/bench/trace_replay/trace.h"

namespace kvcache::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Request {
  int milliseconds;
  int tokens;
  std::vector<int> blocks;
};

Workload WorkloadOf(const std::vector<Request>& requests) {
  TraceBuilder builder;
  for (const Request& request : requests) {
    const absl::Status status = builder.AddLine(absl::StrCat(
        "{\"timestamp\":", request.milliseconds, ",\"input_length\":", request.tokens,
        ",\"output_length\":1,\"hash_ids\":[", absl::StrJoin(request.blocks, ","), "]}"));
    EXPECT_TRUE(status.ok()) << status;
  }
  return Workload::Make(std::move(builder).Build());
}

// Three prompts A = 1 2 3, B = 1 4 and C = 5 6, in blocks of ten tokens, the last of A has five.
Workload Prompts() {
  return WorkloadOf({{0, 25, {1, 2, 3}},   // A
                     {10, 20, {1, 4}},     // B
                     {20, 20, {5, 6}},     // C
                     {30, 25, {1, 2, 3}},  // A
                     {40, 20, {1, 4}}});   // B
}

ReplayResult MustReplay(const Workload& workload, const ReplayOptions& options) {
  absl::StatusOr<ReplayResult> result = Replay(workload, options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ReplayResult();
}

TEST(ReplayTest, WithRoomForAllHasThePossibleHits) {
  const Workload workload = Prompts();
  EXPECT_EQ(workload.tokens_per_block, 10u);
  for (TouchOrder order : {TouchOrder::kForward, TouchOrder::kChain}) {
    const ReplayResult result = MustReplay(workload, {.capacity_blocks = 6, .touch_order = order});
    EXPECT_EQ(result.block_references, 12u);
    EXPECT_EQ(result.plain_hits, 6u);
    EXPECT_EQ(result.prefix_hits, 6u);
    EXPECT_EQ(result.prefix_hits, PossiblePrefixHits(workload.trace));
    EXPECT_EQ(result.evictions, 0u);
    EXPECT_EQ(result.tokens, 110u);
    EXPECT_EQ(result.token_hits, 10u + 25 + 20);
  }
}

// LRU of three blocks, oldest first, after each access:
//   1 12 123 | 1: hit 231, 4: 314 | 5: 145, 6: 456 | 1: 561, 2: 612, 3: 123 | 1: hit, 4: 314
TEST(ReplayTest, ForwardIsTheDefinitionOfTheReference) {
  const ReplayResult result = MustReplay(Prompts(), {.policy = "lru", .capacity_blocks = 3});
  EXPECT_EQ(result.plain_hits, 2u);
  EXPECT_EQ(result.prefix_hits, 2u);
  EXPECT_EQ(result.evictions, 12u - 2 - 3);
  EXPECT_DOUBLE_EQ(result.plain_hit_ratio(), 2.0 / 12);
}

// FIFO of three blocks: 1 12 123 | 1: hit, 4: 234 | 5: 345, 6: 456 | 1: 561, 2: 612, 3: 123 |
// 1: hit, 4: 234
TEST(ReplayTest, ForwardWithFifoForgetsHits) {
  const ReplayResult result = MustReplay(Prompts(), {.policy = "fifo", .capacity_blocks = 3});
  EXPECT_EQ(result.plain_hits, 2u);
}

// Four blocks, LRU; parents stay as long as their children.
//   A: 1-2-3 | B: 1 matched; 4 joins: 1 2 3 4 | C: 5 takes the place of the leaf that was used the
//   longest ago, 3; 6 of the next, 2, whose child has gone: 1 4 5 6 | A: 1 matched and pinned; 2
//   takes the place of 4, 3 of 6, the leaf of 5: 1 5 2 3 | B: 1 matched; 4 takes the place of 5
TEST(ReplayTest, ChainKeepsParentsAndEvictsLeaves) {
  const ReplayResult result = MustReplay(
      Prompts(), {.policy = "lru", .capacity_blocks = 4, .touch_order = TouchOrder::kChain});
  EXPECT_EQ(result.prefix_hits, 3u);
  EXPECT_EQ(result.plain_hits, 3u);
  EXPECT_EQ(result.evictions, 5u);
  EXPECT_EQ(result.refused, 0u);
}

// Forward, with four blocks: 1 2 3 | 1: 2 3 1, 4: 2 3 1 4 | 5: 3 1 4 5, 6: 1 4 5 6 | 1: 4 5 6 1,
// 2: 5 6 1 2, 3: 6 1 2 3 | 1: 6 2 3 1, 4: 2 3 1 4
TEST(ReplayTest, ForwardKnowsNoParents) {
  const ReplayResult result = MustReplay(Prompts(), {.policy = "lru", .capacity_blocks = 4});
  EXPECT_EQ(result.prefix_hits, 3u);
  EXPECT_EQ(result.evictions, 5u);
}

// Plain hits behind a missing block are no prefix hits. LRU of three blocks: 1 2 3 | 4 misses:
// 2 3 4, 3 hits: 2 4 3 | 3 hits.
TEST(ReplayTest, APrefixEndsAtTheFirstMissingBlock) {
  const Workload workload = WorkloadOf({{0, 30, {1, 2, 3}}, {1, 20, {4, 3}}, {2, 10, {3}}});
  const ReplayResult result = MustReplay(workload, {.policy = "lru", .capacity_blocks = 3});
  EXPECT_EQ(result.plain_hits, 2u);
  EXPECT_EQ(result.prefix_hits, 1u);
}

TEST(ReplayTest, CountsTokensOfShortLastBlocks) {
  // Blocks of 16 tokens; the last of the first request has 8.
  const Workload workload =
      WorkloadOf({{0, 40, {1, 2, 3}}, {1, 40, {1, 2, 3}}, {2, 33, {1, 2, 4}}});
  ASSERT_EQ(workload.tokens_per_block, 16u);
  const ReplayResult result = MustReplay(workload, {.capacity_blocks = 10});
  EXPECT_EQ(result.tokens, 113u);
  EXPECT_EQ(result.token_hits, 40u + 32u);
  EXPECT_DOUBLE_EQ(result.token_hit_ratio(), 72.0 / 113);
}

TEST(ReplayTest, BlocksExpireByTheClockOfTheTrace) {
  const Workload workload =
      WorkloadOf({{0, 20, {1, 2}}, {500, 20, {1, 2}}, {1'500, 20, {1, 2}}, {1'600, 20, {1, 2}}});
  for (TouchOrder order : {TouchOrder::kForward, TouchOrder::kChain}) {
    const ReplayResult result = MustReplay(
        workload, {.capacity_blocks = 4, .touch_order = order, .ttl = absl::Milliseconds(1'000)});
    EXPECT_EQ(result.prefix_hits, 4u) << Name(order);
    EXPECT_EQ(result.expirations, 2u) << Name(order);
    EXPECT_EQ(result.evictions, 0u) << Name(order);
  }
}

TEST(ReplayTest, AChainThatIsLongerThanTheCacheKeepsItsBeginning) {
  const Workload workload = WorkloadOf({{0, 50, {1, 2, 3, 4, 5}}, {1, 50, {1, 2, 3, 4, 5}}});
  const ReplayResult result =
      MustReplay(workload, {.capacity_blocks = 3, .touch_order = TouchOrder::kChain});
  EXPECT_EQ(result.prefix_hits, 3u);
  EXPECT_EQ(result.refused, 4u);
  EXPECT_EQ(result.evictions, 0u);
}

// Many requests with prompts of up to 700 blocks, more than the cache handles in one hold of its
// lock.
Workload Random(uint64_t seed) {
  std::vector<Request> requests;
  uint64_t state = seed;
  const auto below = [&state](uint64_t limit) {
    state = state * 6364136223846793005 + 1442695040888963407;
    return static_cast<int>((state >> 33) % limit);
  };
  for (int i = 0; i < 120; ++i) {
    const int prompt = below(6);
    const int blocks = 1 + below(700);
    Request request = {i, blocks * 16, {}};
    for (int block = 0; block < blocks; ++block) request.blocks.push_back(prompt * 1000 + block);
    requests.push_back(request);
  }
  return WorkloadOf(requests);
}

// The definition, one block after the other.
TEST(ReplayTest, ForwardAgreesWithAListInTheOrderOfUse) {
  const Workload workload = Random(1);
  for (size_t capacity : {100, 500, 1'500}) {
    std::vector<uint32_t> list;
    uint64_t plain = 0, prefix = 0;
    for (const TraceRequest& request : workload.trace.requests) {
      const auto blocks = workload.trace.BlocksOf(request);
      const auto find = [&](uint32_t block) { return std::find(list.begin(), list.end(), block); };
      for (size_t i = 0; i < blocks.size() && find(blocks[i]) != list.end(); ++i) ++prefix;
      for (uint32_t block : blocks) {
        if (const auto found = find(block); found != list.end()) {
          ++plain;
          list.erase(found);
        } else if (list.size() == capacity) {
          list.erase(list.begin());
        }
        list.push_back(block);
      }
    }
    const ReplayResult result =
        MustReplay(workload, {.policy = "lru", .capacity_blocks = capacity});
    EXPECT_EQ(result.plain_hits, plain) << capacity;
    EXPECT_EQ(result.prefix_hits, prefix) << capacity;
  }
}

TEST(ReplayTest, PayloadsChangeNoHitsAndComeBackAsWritten) {
  const Workload workload = Random(2);
  for (TouchOrder order : {TouchOrder::kForward, TouchOrder::kChain}) {
    ReplayOptions options = {.policy = "lru", .capacity_blocks = 300, .touch_order = order};
    const ReplayResult counted = MustReplay(workload, options);
    options.payload_bytes = 1'000;
    const ReplayResult moved = MustReplay(workload, options);
    EXPECT_EQ(moved.plain_hits, counted.plain_hits);
    EXPECT_EQ(moved.prefix_hits, counted.prefix_hits);
    EXPECT_EQ(moved.evictions, counted.evictions);
    EXPECT_FALSE(counted.payload.has_value());
    ASSERT_TRUE(moved.payload.has_value());
    EXPECT_EQ(moved.payload->bytes_read, 1'000 * moved.plain_hits);
    EXPECT_EQ(moved.payload->bytes_written,
              1'000 * (moved.block_references - moved.plain_hits - moved.refused));
    EXPECT_GT(moved.payload->read_gb_per_s, 0);
    EXPECT_GE(moved.payload->load_p99_us, moved.payload->load_p50_us);
    EXPECT_GE(moved.payload->put_p99_us, moved.payload->put_p50_us);
  }
}

TEST(ReplayTest, SaysWhatIsWrongWithTheOptions) {
  const Workload workload = Prompts();
  EXPECT_EQ(Replay(workload, {.capacity_blocks = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Replay(workload, {.policy = "best"}).status().message()),
              HasSubstr("best"));
}

TEST(SweepTest, ComparesPoliciesWithLruAndTheOptimum) {
  const Workload workload = Random(3);
  std::vector<std::string> names;
  const absl::StatusOr<Sweep> sweep = RunSweep(
      workload,
      {.policies = {"fifo", "lru"}, .capacities = {500, 100'000}, .replay = {}, .find_needs = true},
      [&](size_t, size_t, absl::string_view next) { names.emplace_back(next); });
  ASSERT_TRUE(sweep.ok()) << sweep.status();
  ASSERT_EQ(sweep->results.size(), 4u);
  EXPECT_EQ(sweep->results[1].replay.policy, "fifo");
  EXPECT_EQ(sweep->results[1].replay.capacity_blocks, 100'000u);
  EXPECT_EQ(sweep->results[2].gap_closed, 0);             // LRU itself
  EXPECT_EQ(sweep->results[1].gap_closed, std::nullopt);  // both have all there is
  EXPECT_DOUBLE_EQ(sweep->results[1].replay.plain_hit_ratio(), sweep->optimum[1]);
  EXPECT_DOUBLE_EQ(sweep->possible_prefix_hit_ratio, sweep->optimum[1]);
  const SweepResult& fifo = sweep->results[0];
  const double lru = sweep->results[2].replay.plain_hit_ratio();
  EXPECT_NEAR(*fifo.gap_closed, (fifo.replay.plain_hit_ratio() - lru) / (sweep->optimum[0] - lru),
              1e-12);
  EXPECT_EQ(names.front(), "lru, 500 blocks");
}

TEST(SweepTest, FindsTheCapacityThatIsEnough) {
  const Workload workload = Random(4);
  const absl::StatusOr<Sweep> sweep = RunSweep(
      workload, {.policies = {"lru"}, .capacities = {200}, .replay = {}, .find_needs = true},
      [](size_t, size_t, absl::string_view) {});
  ASSERT_TRUE(sweep.ok()) << sweep.status();
  ASSERT_EQ(sweep->needs.size(), 2u);
  EXPECT_EQ(sweep->needs[1].policy, "optimum");
  EXPECT_LE(sweep->needs[1].capacity_blocks, sweep->needs[0].capacity_blocks);
  const size_t enough = sweep->needs[0].capacity_blocks;
  const double goal = kEnough * sweep->possible_prefix_hit_ratio;
  EXPECT_GE(MustReplay(workload, {.capacity_blocks = enough}).prefix_hit_ratio(), goal);
  EXPECT_LT(MustReplay(workload, {.capacity_blocks = enough - enough / 100 - 1}).prefix_hit_ratio(),
            goal);
}

TEST(SweepTest, CapacitiesAreRoundNumbersUpToAllBlocks) {
  EXPECT_THAT(DefaultCapacities(182'790),
              ElementsAre(1'000, 2'000, 5'000, 10'000, 20'000, 50'000, 100'000));
  EXPECT_THAT(DefaultCapacities(7), ElementsAre(1, 2, 5));
  EXPECT_THAT(DefaultCapacities(0), ElementsAre(1));
}

}  // namespace
}  // namespace kvcache::bench
