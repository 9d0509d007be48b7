#include "kvcache/bench/trace_replay/json_scanner.h"

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();

// Empty when the whole text is one value.
std::string Skip(absl::string_view text) {
  JsonScanner scanner(text);
  absl::Status status = scanner.SkipValue();
  if (status.ok()) status = scanner.ReadEnd();
  return std::string(status.message());
}

TEST(JsonScannerTest, SkipsEveryKindOfValue) {
  for (const char* text :
       {"0", "-0", "12", "-1.5e+10", "1E5", "0.25", "true", "false", "null", "\"\"", "{}", "[]",
        " [ 1 , [ ] , { \"a\" : null , \"b\" : [ true ] } ] ", "\"a \\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\\u00e9\\ud83d\\ude00\"", "\"\xc3\xa9\""}) {
    EXPECT_EQ(Skip(text), "") << text;
  }
}

TEST(JsonScannerTest, RefusesWhatIsNoJson) {
  for (const char* text : {"",
                           " ",
                           "01",
                           "1.",
                           ".5",
                           "+1",
                           "1e",
                           "-",
                           "tru",
                           "nul",
                           "'a'",
                           "\"",
                           "\"\\",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"\\udc00\"",
                           "\"\t\"",
                           "[",
                           "[1",
                           "[1,",
                           "[1,]",
                           "[,1]",
                           "[1 2]",
                           "{",
                           "{1:2}",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{\"a\" 1}",
                           "]",
                           "1 2",
                           "{} {}",
                           "NaN",
                           "Infinity"}) {
    EXPECT_NE(Skip(text), "") << text;
  }
}

TEST(JsonScannerTest, SaysWhatItExpectedAndFoundWhere) {
  EXPECT_EQ(Skip("[1, 2"), "expected ']', found the end in column 6");
  EXPECT_EQ(Skip("[1; 2]"), "expected ']', found ';' in column 3");
  EXPECT_EQ(Skip("[1, \x01]"), "expected a value, found byte 1 in column 5");
}

TEST(JsonScannerTest, RefusesWhatIsNestedTooDeeply) {
  const std::string open(JsonScanner::kMostDepth, '[');
  const std::string close(JsonScanner::kMostDepth, ']');
  EXPECT_EQ(Skip(absl::StrCat(open.substr(1), "1", close.substr(1))), "");
  EXPECT_EQ(Skip(absl::StrCat(open, "1", close)),
            "expected at most 32 levels, found '1' in column 33");
  EXPECT_NE(Skip(std::string(1'000'000, '[')), "");
}

TEST(JsonScannerTest, UnescapesStrings) {
  JsonScanner scanner(R"("a\"\\\/\b\f\n\r\t\u0041\u00e9\u20ac\ud83d\ude00é")");
  std::string value;
  ASSERT_TRUE(scanner.ReadString(&value).ok());
  EXPECT_EQ(value, "a\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xc3\xa9");
}

TEST(JsonScannerTest, ReadsWholeNumbersUpToALimit) {
  const auto read = [](absl::string_view text, uint64_t most) {
    uint64_t value = 0;
    JsonScanner scanner(text);
    const absl::Status status = scanner.ReadInteger(most, &value);
    return status.ok() ? absl::StrCat(value) : std::string(status.message());
  };
  EXPECT_EQ(read(" 0", 10), "0");
  EXPECT_EQ(read("10,", 10), "10");
  EXPECT_EQ(read("18446744073709551615", kMost), "18446744073709551615");
  EXPECT_EQ(read("11", 10), "expected a whole number from 0 to 10, found '1' in column 1");
  for (const char* text : {"-1", "1.0", "1e3", "\"1\"", "", "18446744073709551616", "x"}) {
    EXPECT_EQ(read(text, kMost).substr(0, 23), "expected a whole number") << text;
  }
}

TEST(JsonScannerTest, ReadsNumbersUpToALimit) {
  const auto read = [](absl::string_view text, double* value) {
    return JsonScanner(text).ReadNumber(1e12, value).ok();
  };
  double value = 0;
  EXPECT_TRUE(read("27482.5", &value));
  EXPECT_EQ(value, 27482.5);
  EXPECT_TRUE(read("1e3", &value));
  EXPECT_EQ(value, 1000);
  for (const char* text : {"-1", "1e13", "1e999", "null", "\"1\""}) {
    EXPECT_FALSE(read(text, &value)) << text;
  }
}

}  // namespace
}  // namespace kvcache::bench
