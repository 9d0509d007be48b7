#include "kvcache/bench/trace_replay/report.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/bench/trace_replay/html.h"

namespace kvcache::bench {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

SweepResult ResultOf(const std::string& policy, size_t capacity, uint64_t hits) {
  SweepResult result;
  result.replay.policy = policy;
  result.replay.capacity_blocks = capacity;
  result.replay.block_references = 1'000;
  result.replay.plain_hits = hits + 10;
  result.replay.prefix_hits = hits;
  result.replay.tokens = 16'000;
  result.replay.token_hits = hits * 16;
  result.replay.evictions = 1'234;
  return result;
}

Report TwoPolicies() {
  Report report = {.trace = "traces/<a> & \"b\".jsonl",
                   .requests = 50,
                   .block_references = 1'000,
                   .unique_blocks = 600,
                   .skipped_lines = 3,
                   .tokens_per_block = 16,
                   .bytes_per_token = 131'072,
                   .touch_order = TouchOrder::kChain,
                   .policies = {"lru", "best&fast"},
                   .capacities = {100, 10'000},
                   .sweep = {}};
  report.sweep.results = {ResultOf("lru", 100, 100), ResultOf("lru", 10'000, 390),
                          ResultOf("best&fast", 100, 200), ResultOf("best&fast", 10'000, 390)};
  report.sweep.results[2].gap_closed = 0.5;
  report.sweep.optimum = {0.31, 0.4};
  report.sweep.possible_prefix_hit_ratio = 0.4;
  report.sweep.needs = {{"lru", 9'000}, {"best&fast", 4'000}, {"optimum", 350}};
  return report;
}

TEST(ReportTest, TheJsonHasEveryFieldOfEveryResult) {
  EXPECT_THAT(Json(TwoPolicies()).ToString(), StartsWith(R"({
  "trace": "traces/<a> & \"b\".jsonl",
  "requests": 50,
  "block_references": 1000,
  "unique_blocks": 600,
  "skipped_lines": 3,
  "tokens_per_block": 16,
  "possible_prefix_hit_ratio": 0.4,
  "results": [
    {
      "policy": "lru",
      "capacity_blocks": 100,
      "touch_order": "chain",
      "plain_hit_ratio": 0.11,
      "prefix_hit_ratio": 0.1,
      "token_hit_ratio": 0.1,
      "evictions": 1234,
      "expirations": 0,
      "refused": 0,
      "optimum_hit_ratio": 0.31,
      "gap_closed": null,
      "seconds": 0
    },
    {
      "policy": "lru",
      "capacity_blocks": 10000,
      "touch_order": "chain",
      "plain_hit_ratio": 0.4,
      "prefix_hit_ratio": 0.39,
      "token_hit_ratio": 0.39,
      "evictions": 1234,
      "expirations": 0,
      "refused": 0,
      "optimum_hit_ratio": 0.4,
      "gap_closed": null,
      "seconds": 0
    },
)"));
}

TEST(ReportTest, SaysWhatEachPolicyNeeds) {
  const std::vector<std::string> sentences = NeedSentences(TwoPolicies());
  ASSERT_EQ(sentences.size(), 3u);
  EXPECT_EQ(sentences[0], "lru needs 9,000 blocks (17.6 GiB) for 95 % of the possible hits.");
  EXPECT_EQ(sentences[2], "The optimum needs 350 blocks (0.68 GiB) for 95 % of the possible hits.");
  Report without = TwoPolicies();
  without.bytes_per_token = 0;
  EXPECT_EQ(NeedSentences(without)[0], "lru needs 9,000 blocks for 95 % of the possible hits.");
}

TEST(ReportTest, TheTextSaysWhatItsNumbersAre) {
  const std::string text = Text(TwoPolicies());
  EXPECT_THAT(text, HasSubstr("3 malformed lines were skipped"));
  EXPECT_THAT(text,
              HasSubstr("best&fast        100   21.00 %   20.00 %   20.00 %   31.00 %      50 "
                        "%       1,234           0    0.000"));
  EXPECT_THAT(text, Not(HasSubstr("GB/s")));
}

TEST(ReportTest, FormatsNumbers) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1'000), "1,000");
  EXPECT_EQ(FormatCount(12'345'678), "12,345,678");
  Report report = TwoPolicies();
  EXPECT_EQ(FormatMemory(report, 512), "1.00 GiB");
  EXPECT_EQ(FormatMemory(report, 512'000), "1,000 GiB");
}

// Whether every element is closed in the right order, as in XML; the first problem otherwise.
std::string ProblemOf(absl::string_view page) {
  std::vector<std::string> open;
  for (size_t at = 0; (at = page.find('<', at)) != page.npos;) {
    const size_t end = page.find('>', at);
    if (end == page.npos) return "a tag without an end";
    const absl::string_view tag = page.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag[0] == '!') continue;
    const bool closes = tag[0] == '/';
    const std::string name(tag.substr(closes, tag.find_first_of(" /\n", 1) - closes));
    if (closes) {
      if (open.empty() || open.back() != name) return absl::StrCat("</", name, "> closes nothing");
      open.pop_back();
    } else if (tag.back() != '/' && name != "meta") {
      open.push_back(name);
    }
  }
  return open.empty() ? "" : absl::StrCat("<", open.back(), "> is not closed");
}

TEST(HtmlTest, IsOneWellFormedPageThatNeedsNothingElse) {
  const std::string page = Html(TwoPolicies());
  EXPECT_EQ(ProblemOf(page), "");
  for (const char* outside : {"http", "src=", "href=", "url(", "@import", "<script", "<link"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
  EXPECT_THAT(page, Not(HasSubstr("nan")));
}

TEST(HtmlTest, AnswersTheQuestionFirst) {
  const std::string page = Html(TwoPolicies());
  const size_t answer = page.find(
      "The smallest cache that reaches 95 % of the possible hits has <b>4,000 blocks, 7.81 "
      "GiB</b>, under the policy <b>best&amp;fast</b>. LRU needs <b>9,000 blocks, 17.6 GiB</b>. "
      "The optimum, which knows the future, would need <b>350 blocks, 0.68 GiB</b>.");
  ASSERT_NE(answer, page.npos) << page;
  EXPECT_LT(answer, page.find("<svg"));
}

TEST(HtmlTest, TheAnswerNamesAllPoliciesThatNeedTheLeast) {
  Report report = TwoPolicies();
  report.sweep.needs[0].capacity_blocks = 4'000;
  EXPECT_THAT(Html(report),
              HasSubstr("under the policies <b>lru</b>, <b>best&amp;fast</b>. The optimum"));
}

TEST(HtmlTest, EveryTableScrollsWhereItIsTooWide) {
  const std::string page = Html(TwoPolicies());
  EXPECT_THAT(page, HasSubstr(".scroll { overflow-x: auto; }"));
  for (size_t at = 0; (at = page.find("<table>", at)) != page.npos; ++at) {
    EXPECT_TRUE(absl::EndsWith(page.substr(0, at), "<div class=\"scroll\">")) << at;
  }
}

TEST(HtmlTest, HasACurveForEachPolicyAndTheOptimum) {
  const std::string page = Html(TwoPolicies());
  EXPECT_THAT(page, HasSubstr("<title>optimum, 100: 31.00 %</title>"));
  EXPECT_THAT(page, HasSubstr("<title>lru, 10,000: 39.00 %</title>"));
  EXPECT_THAT(page, HasSubstr("<title>best&amp;fast, 100: 20.00 %</title>"));
  EXPECT_THAT(page, HasSubstr("&lt;a&gt; &amp; &quot;b&quot;.jsonl"));
}

TEST(HtmlTest, PoliciesThatDoTheSameShareALine) {
  Report report = TwoPolicies();
  report.sweep.results[2].replay.prefix_hits = 100;
  EXPECT_THAT(Html(report), HasSubstr("<title>lru, best&amp;fast, 100: 10.00 %</title>"));
}

TEST(HtmlTest, OneCapacityAndNoHitsMakeAPage) {
  Report report = TwoPolicies();
  report.policies = {"lru"};
  report.capacities = {1};
  report.sweep.results = {ResultOf("lru", 1, 0)};
  report.sweep.optimum = {0};
  report.sweep.possible_prefix_hit_ratio = 0;
  report.sweep.needs = {{"lru", 1}, {"optimum", 1}};
  const std::string page = Html(report);
  EXPECT_EQ(ProblemOf(page), "");
  EXPECT_THAT(page, Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace kvcache::bench
