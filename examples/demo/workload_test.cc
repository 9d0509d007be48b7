#include "kvcache/examples/demo/workload.h"

#include <algorithm>
#include <map>
#include <set>

#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

constexpr int kVocabulary = 2048;

std::vector<Prompt> TwoPrompts() {
  return {{"a", "alpha beta gamma\n", {"one", "two", "three"}},
          {"b", "delta epsilon\n", {"four", "five", "six"}}};
}

std::vector<std::vector<int32_t>> Tokens(const std::vector<Request>& requests) {
  std::vector<std::vector<int32_t>> tokens;
  for (const Request& request : requests) tokens.push_back(request.tokens);
  return tokens;
}

TEST(WorkloadTest, UsesAllPromptsEquallyOftenEachTimeWithAnotherTurn) {
  const std::vector<Request> requests = MakeRequests(TwoPrompts(), 6, kVocabulary, 1);
  std::map<size_t, int> uses;
  std::set<std::vector<int32_t>> different;
  for (const Request& request : requests) {
    ++uses[request.prompt_id];
    different.insert(request.tokens);
    EXPECT_EQ(request.tokens.size(), request.prompt_tokens + 1);
  }
  EXPECT_EQ(uses, (std::map<size_t, int>{{0, 3}, {1, 3}}));
  EXPECT_EQ(different.size(), 6u);
}

TEST(WorkloadTest, RequestsWithTheSamePromptBeginWithTheSameTokens) {
  const std::vector<Request> requests = MakeRequests(TwoPrompts(), 6, kVocabulary, 1);
  for (const Request& a : requests) {
    for (const Request& b : requests) {
      EXPECT_EQ(a.prompt_id == b.prompt_id, a.prompt() == b.prompt());
    }
  }
}

TEST(WorkloadTest, TheSeedDecidesTheOrderAndNothingElse) {
  auto tokens = [](uint64_t seed) {
    return Tokens(MakeRequests(TwoPrompts(), 6, kVocabulary, seed));
  };
  EXPECT_EQ(tokens(1), tokens(1));
  EXPECT_NE(tokens(1), tokens(2));
  auto sorted = [&](uint64_t seed) {
    auto all = tokens(seed);
    std::sort(all.begin(), all.end());
    return all;
  };
  EXPECT_EQ(sorted(1), sorted(2));
}

TEST(WorkloadTest, TurnsComeAgainWhenThereAreMoreRequests) {
  const std::vector<Request> requests = MakeRequests(TwoPrompts(), 12, kVocabulary, 1);
  const auto tokens = Tokens(requests);
  EXPECT_EQ(std::set(tokens.begin(), tokens.end()).size(), 6u);
}

TEST(WorkloadTest, TheLongestRequestCounts) {
  EXPECT_EQ(MostTokens(MakeRequests(TwoPrompts(), 6, kVocabulary, 1)), 4u);
  EXPECT_EQ(MostTokens({}), 0u);
}

}  // namespace
}  // namespace kvcache::examples
