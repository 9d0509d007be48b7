#include "kvcache/examples/demo/summary.h"

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

using absl::Milliseconds;

Request RequestOf(size_t prompt_id, size_t prompt_tokens, size_t turn_tokens) {
  return {prompt_id, prompt_tokens, std::vector<int32_t>(prompt_tokens + turn_tokens)};
}

Sample SampleOf(int ms, int computing_ms, size_t restored) {
  Sample sample;
  sample.time = Milliseconds(ms);
  sample.computing = Milliseconds(computing_ms);
  sample.in_store = Milliseconds(1);
  sample.restored_tokens = restored;
  return sample;
}

TEST(LatencyTest, CountsPromptTurnAndDecodedTokensOverTheSumOfTimes) {
  const Request requests[] = {RequestOf(0, 90, 10), RequestOf(1, 180, 20)};
  const Sample samples[] = {SampleOf(100, 0, 0), SampleOf(300, 0, 0)};
  const Latency latency = SummarizeLatency(requests, samples, 5);
  EXPECT_EQ(latency.p50, Milliseconds(100));
  EXPECT_EQ(latency.p95, Milliseconds(300));
  EXPECT_EQ(latency.p99, Milliseconds(300));
  EXPECT_EQ(latency.mean, Milliseconds(200));
  EXPECT_EQ(latency.total, Milliseconds(400));
  EXPECT_DOUBLE_EQ(latency.tokens_per_s, 310 / 0.4);
}

TEST(ReuseTest, ARequestHitsWhenItsWholePromptWasRestored) {
  const Request requests[] = {RequestOf(0, 90, 10), RequestOf(0, 90, 10), RequestOf(1, 90, 10)};
  const Sample without[] = {SampleOf(100, 100, 0), SampleOf(100, 100, 0), SampleOf(100, 100, 0)};
  const Sample with[] = {SampleOf(105, 101, 0), SampleOf(12, 10, 90), SampleOf(61, 60, 48)};
  const Reuse reuse = SummarizeReuse(requests, without, with, 32);
  EXPECT_EQ(reuse.requests.part, 1u);
  EXPECT_EQ(reuse.requests.whole, 3u);
  EXPECT_EQ(reuse.layers.part, 32u);
  EXPECT_EQ(reuse.layers.whole, 96u);
  EXPECT_EQ(reuse.tokens.part, 138u);
  EXPECT_EQ(reuse.tokens.whole, 300u);
  EXPECT_EQ(reuse.in_store, Milliseconds(3));
  EXPECT_EQ(reuse.compute_saved, Milliseconds(90 + 40));
}

TEST(ReuseTest, CountsRefusedPutsAndKeepsTheFirst) {
  const Request requests[] = {RequestOf(0, 90, 10), RequestOf(1, 90, 10), RequestOf(2, 90, 10)};
  Sample with[] = {SampleOf(1, 1, 0), SampleOf(1, 1, 0), SampleOf(1, 1, 0)};
  with[1].kept = absl::ResourceExhaustedError("first");
  with[2].kept = absl::ResourceExhaustedError("second");
  const Reuse reuse = SummarizeReuse(requests, with, with, 1);
  EXPECT_EQ(reuse.puts_refused, 2u);
  EXPECT_EQ(reuse.first_refusal.message(), "first");
}

TEST(RateTest, OfNothingIsZero) { EXPECT_EQ(Rate{}.value(), 0); }

TEST(UniquePromptsTest, CountsThoseThatWereServed) {
  const Request requests[] = {RequestOf(4, 1, 1), RequestOf(2, 1, 1), RequestOf(4, 1, 1)};
  EXPECT_EQ(UniquePrompts(requests), 2u);
  EXPECT_EQ(UniquePrompts({}), 0u);
}

}  // namespace
}  // namespace kvcache::examples
