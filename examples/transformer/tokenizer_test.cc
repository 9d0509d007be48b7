#include "kvcache/examples/transformer/tokenizer.h"

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

constexpr int kVocabulary = 2048;

std::vector<int32_t> Tokens(const std::string& text) { return Tokenize(text, kVocabulary); }

TEST(TokenizerTest, WordsAndPunctuationAreTokensAndWhiteSpaceIsNot) {
  EXPECT_EQ(Tokens("Stop, please.").size(), 4u);
  EXPECT_EQ(Tokens("Stop ,\n\tplease . "), Tokens("Stop, please."));
  EXPECT_TRUE(Tokens("").empty());
  EXPECT_TRUE(Tokens(" \n\t").empty());
}

TEST(TokenizerTest, LongWordsAreCutIntoPieces) {
  EXPECT_EQ(Tokens("abcdefgh").size(), 1u);
  EXPECT_EQ(Tokens("abcdefghi").size(), 2u);
  EXPECT_EQ(Tokens("abcdefghabcdefgha").size(), 3u);
}

TEST(TokenizerTest, TheRestOfAWordDiffersFromAWordOfItsOwn) {
  EXPECT_NE(Tokens("abcdefghi"), Tokens("abcdefgh i"));
}

TEST(TokenizerTest, BytesBeyondAsciiBelongToWords) { EXPECT_EQ(Tokens("na\xc3\xafve").size(), 1u); }

TEST(TokenizerTest, TextsJoinedByWhiteSpaceKeepTheirTokens) {
  std::vector<int32_t> joined = Tokens("A prompt that is shared.");
  const std::vector<int32_t> question = Tokens("What does it say?");
  joined.insert(joined.end(), question.begin(), question.end());
  EXPECT_EQ(Tokens("A prompt that is shared.\nWhat does it say?"), joined);
}

TEST(TokenizerTest, TokensAreInTheVocabularyAndSpreadOverIt) {
  std::set<int32_t> seen;
  for (int i = 0; i < 1000; ++i) {
    for (int32_t token : Tokenize("w" + std::to_string(i), 64)) {
      ASSERT_GE(token, 0);
      ASSERT_LT(token, 64);
      seen.insert(token);
    }
  }
  EXPECT_EQ(seen.size(), 64u);
}

TEST(TokenizerTest, NumbersDoNotChangeBetweenReleases) {
  EXPECT_EQ(Tokens("The cache."), (std::vector<int32_t>{197, 639, 253}));
}

}  // namespace
}  // namespace kvcache::examples
