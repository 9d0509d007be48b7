#include "kvcache/examples/prompts/prompts.h"

#include <cstdint>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "kvcache/examples/transformer/tokenizer.h"

namespace kvcache::examples {
namespace {

std::vector<int32_t> Tokens(absl::string_view text) { return Tokenize(text, 2048); }

void ExpectBetween(size_t low, size_t value, size_t high, absl::string_view what) {
  EXPECT_GE(value, low) << what;
  EXPECT_LE(value, high) << what;
}

void ExpectGoodPrompts(const std::vector<Prompt>& prompts, size_t turns) {
  std::set<absl::string_view> seen;
  for (const Prompt& prompt : prompts) {
    ExpectBetween(490, Tokens(prompt.text).size(), 530, prompt.name);
    EXPECT_TRUE(absl::EndsWith(prompt.text, "\n")) << prompt.name;
    EXPECT_EQ(prompt.turns.size(), turns) << prompt.name;
    size_t tokens = 0;
    for (absl::string_view turn : prompt.turns) {
      ExpectBetween(12, Tokens(turn).size(), 20, turn);
      EXPECT_TRUE(seen.insert(turn).second) << "twice: " << turn;
      tokens += Tokens(turn).size();
    }
    ExpectBetween(14 * turns, tokens, 18 * turns, prompt.name);
  }
}

TEST(PromptsTest, DocumentsHaveAbout500TokensAndQuestionsAbout16) {
  EXPECT_EQ(DocumentPrompts().size(), 3u);
  ExpectGoodPrompts(DocumentPrompts(), 34);
}

TEST(PromptsTest, AgentTasksHaveAbout512TokensAndStepsAbout16) {
  EXPECT_EQ(AgentPrompts().size(), 5u);
  ExpectGoodPrompts(AgentPrompts(), 10);
}

TEST(PromptsTest, AgentTasksShareMoreThanHalfOfTheirTokens) {
  const size_t shared = Tokens(AgentPreamble()).size();
  for (const Prompt& prompt : AgentPrompts()) {
    EXPECT_TRUE(absl::StartsWith(prompt.text, AgentPreamble())) << prompt.name;
    EXPECT_GE(2 * shared, Tokens(prompt.text).size()) << prompt.name;
  }
}

TEST(PromptsTest, ARequestHasTheTokensOfItsPromptAndThenThoseOfItsTurn) {
  for (const Prompt& prompt : DocumentPrompts()) {
    std::vector<int32_t> expected = Tokens(prompt.text);
    for (int32_t token : Tokens(prompt.turns.front())) expected.push_back(token);
    EXPECT_EQ(Tokens(absl::StrCat(prompt.text, prompt.turns.front())), expected);
  }
}

}  // namespace
}  // namespace kvcache::examples
