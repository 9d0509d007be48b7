#include "kvcache/bench/trace_replay/trace.h"

#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::string_view kLine =
    R"({"timestamp": 27, "input_length": 1000, "output_length": 52, "hash_ids": [46, 47]})";

// "" when the line is good.
std::string Problem(absl::string_view line) {
  return std::string(TraceBuilder().AddLine(line).message());
}

TEST(TraceBuilderTest, NumbersBlocksInTheOrderOfTheirAppearance) {
  TraceBuilder builder;
  ASSERT_TRUE(builder.AddLine(kLine).ok());
  ASSERT_TRUE(builder
                  .AddLine(R"({"hash_ids":[46,18446744073709551615,47,0],"output_length":0,)"
                           R"("input_length":2000,"timestamp":30.5})")
                  .ok());
  ASSERT_TRUE(
      builder.AddLine(R"({"timestamp":31,"input_length":0,"output_length":0,"hash_ids":[]})").ok());
  const Trace trace = std::move(builder).Build();
  ASSERT_EQ(trace.requests.size(), 3u);
  EXPECT_EQ(trace.unique_blocks, 4u);
  EXPECT_EQ(trace.requests[0].arrival, absl::Milliseconds(27));
  EXPECT_EQ(trace.requests[0].input_tokens, 1000u);
  EXPECT_EQ(trace.requests[0].output_tokens, 52u);
  EXPECT_THAT(trace.BlocksOf(trace.requests[0]), ElementsAre(0, 1));
  EXPECT_EQ(trace.requests[1].arrival, absl::Microseconds(30'500));
  EXPECT_THAT(trace.BlocksOf(trace.requests[1]), ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(trace.BlocksOf(trace.requests[2]), ElementsAre());
}

TEST(TraceBuilderTest, TimeDoesNotGoBackwards) {
  TraceBuilder builder;
  for (const char* time : {"5", "3", "7"}) {
    ASSERT_TRUE(builder
                    .AddLine(absl::StrCat("{\"timestamp\":", time,
                                          ",\"input_length\":1,\"output_length\":1,"
                                          "\"hash_ids\":[1]}"))
                    .ok());
  }
  EXPECT_EQ(builder.trace().requests[1].arrival, absl::Milliseconds(5));
  EXPECT_EQ(builder.trace().requests[2].arrival, absl::Milliseconds(7));
}

TEST(TraceBuilderTest, SkipsOtherFields) {
  EXPECT_EQ(Problem(R"({"id": "x\n", "more": {"a": [1, {"b": null}]}, "timestamp": 0, )"
                    R"("input_length": 1, "output_length": 1, "hash_ids": [1]})"),
            "");
}

TEST(TraceBuilderTest, SaysWhatIsWrong) {
  EXPECT_EQ(Problem("hello"), "expected '{', found 'h' in column 1");
  EXPECT_EQ(Problem("{}"), "\"timestamp\" is missing");
  EXPECT_EQ(Problem(R"({"timestamp": 1, "input_length": 2, "hash_ids": [1]})"),
            "\"output_length\" is missing");
  EXPECT_EQ(Problem(R"({"timestamp": 1, "timestamp": 1})"), "\"timestamp\" is there twice");
  EXPECT_EQ(Problem(R"({"timestamp": "1"})"),
            "\"timestamp\": expected a number from 0 to 9e+12, found '\"' in column 15");
  EXPECT_EQ(Problem(R"({"input_length": 5000000000})"),
            "\"input_length\": expected a whole number from 0 to 4294967295, found '5' in column "
            "18");
  EXPECT_EQ(Problem(R"({"hash_ids": [1, -2]})"),
            "\"hash_ids\": expected a whole number from 0 to 18446744073709551615, found '-' in "
            "column 18");
  EXPECT_EQ(Problem(R"({"hash_ids": 7})"), "\"hash_ids\": expected '[', found '7' in column 14");
  EXPECT_EQ(Problem(absl::StrCat(kLine, " x")),
            absl::StrCat("expected the end of the line, found 'x' in column ", kLine.size() + 2));
}

TEST(TraceBuilderTest, ABadLineAddsNothing) {
  TraceBuilder builder;
  ASSERT_TRUE(builder.AddLine(kLine).ok());
  for (size_t size = 0; size < kLine.size(); ++size) {
    ASSERT_FALSE(builder.AddLine(kLine.substr(0, size)).ok()) << size;
  }
  EXPECT_EQ(builder.trace().requests.size(), 1u);
  EXPECT_EQ(builder.trace().unique_blocks, 2u);
}

// Under the address sanitizer this is what finds a read behind the end: each line is a string of
// its own. trace_fuzz looks harder.
TEST(TraceBuilderTest, TakesOrRefusesAnyMutationOfALine) {
  std::mt19937_64 random(1);
  TraceBuilder builder;
  size_t taken = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string line(kLine);
    for (size_t edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % (line.size() + 1);
      constexpr absl::string_view kSpecial = "{}[]:,\"\\-0.eE u9\n";
      const char c =
          random() % 4 == 0 ? static_cast<char>(random()) : kSpecial[random() % kSpecial.size()];
      switch (random() % 4) {
        case 0:
          line.insert(at, 1, c);
          break;
        case 1:
          line.erase(at, 1 + random() % 4);
          break;
        case 2:
          if (at < line.size()) line[at] = c;
          break;
        default:
          line.insert(at, line.substr(random() % (line.size() + 1), random() % 8));
      }
    }
    const std::string exact(line.begin(), line.end());
    taken += builder.AddLine(exact).ok();
    ASSERT_EQ(builder.trace().requests.size(), taken) << line;
  }
  EXPECT_GT(taken, 1'000u);
  EXPECT_LT(taken, 199'000u);
}

class ReadTraceTest : public testing::Test {
 protected:
  std::string File(absl::string_view content) {
    const std::string path = testing::TempDir() + "/trace.jsonl";
    std::ofstream(path, std::ios::binary).write(content.data(), content.size());
    return path;
  }
};

TEST_F(ReadTraceTest, ReadsLinesWithAnyEndAndIgnoresBlankOnes) {
  const std::string path = File(absl::StrCat(kLine, "\r\n\n  \n", kLine, "\n", kLine));
  const absl::StatusOr<TraceFile> file = ReadTrace(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->lines, 3u);
  EXPECT_EQ(file->trace.requests.size(), 3u);
  EXPECT_EQ(file->trace.unique_blocks, 2u);
}

TEST_F(ReadTraceTest, ReadsLinesThatAreLongerThanAChunk) {
  std::string ids = "0";
  for (int i = 1; i < 100'000; ++i) absl::StrAppend(&ids, ", ", i);
  const std::string line = absl::StrCat(
      R"({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [)", ids, "]}\n");
  const absl::StatusOr<TraceFile> file = ReadTrace(File(absl::StrCat(line, line)));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->trace.blocks.size(), 200'000u);
  EXPECT_EQ(file->trace.unique_blocks, 100'000u);
}

TEST_F(ReadTraceTest, NamesTheLineThatIsMalformed) {
  const std::string path = File(absl::StrCat(kLine, "\n\n{\n", kLine));
  const absl::Status status = ReadTrace(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            absl::StrCat(path, ": line 3: expected a string, found the end in column 2"));
}

TEST_F(ReadTraceTest, CountsMalformedLinesWhenTold) {
  const std::string path = File(absl::StrCat("x\n", kLine, "\n[]\n", kLine));
  const absl::StatusOr<TraceFile> file = ReadTrace(path, {.skip_bad_lines = true});
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->trace.requests.size(), 2u);
  EXPECT_EQ(file->lines, 4u);
  EXPECT_EQ(file->skipped_lines, 2u);
  EXPECT_THAT(file->first_skipped, HasSubstr("line 1: expected '{', found 'x'"));
}

TEST_F(ReadTraceTest, ATraceHasARequest) {
  EXPECT_THAT(std::string(ReadTrace(File("\n\n")).status().message()),
              HasSubstr("no request in 2 lines"));
  EXPECT_THAT(std::string(ReadTrace(File("")).status().message()),
              HasSubstr("no request in 0 lines"));
  EXPECT_THAT(std::string(ReadTrace(File("x\n"), {.skip_bad_lines = true}).status().message()),
              HasSubstr("line 1: expected '{'"));
}

TEST_F(ReadTraceTest, NamesWhatIsNotPlainUtf8) {
  const std::pair<absl::string_view, absl::string_view> cases[] = {
      {"\x1f\x8b", "gzip data"},
      {"\xff\xfe", "UTF-16"},
      {"\xfe\xff", "UTF-16"},
      {"\xef\xbb\xbf", "a byte order mark"}};
  for (const auto& [start, name] : cases) {
    const std::string path = File(absl::StrCat(start, kLine, "\n", kLine));
    for (bool skip : {false, true}) {
      EXPECT_EQ(ReadTrace(path, {.skip_bad_lines = skip}).status().message(),
                absl::StrCat(path, ": line 1: expected plain UTF-8, found ", name));
    }
  }
  EXPECT_THAT(std::string(ReadTrace(File(absl::StrCat(kLine, "\n\xff\xfe"))).status().message()),
              HasSubstr("line 2: expected '{', found byte 255"));
}

TEST_F(ReadTraceTest, RequestsKnowTheirLines) {
  const absl::StatusOr<TraceFile> file =
      ReadTrace(File(absl::StrCat("\n", kLine, "\nx\n", kLine)), {.skip_bad_lines = true});
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->trace.requests[0].line, 2u);
  EXPECT_EQ(file->trace.requests[1].line, 4u);
}

TEST_F(ReadTraceTest, SaysWhichFileCannotBeReadAndWhy) {
  const absl::Status missing = ReadTrace("/missing/trace.jsonl").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(), "cannot open '/missing/trace.jsonl': No such file or directory");
  EXPECT_THAT(std::string(ReadTrace(testing::TempDir()).status().message()),
              HasSubstr("Is a directory"));
}

Trace TraceOf(std::vector<std::pair<uint32_t, uint32_t>> tokens_and_blocks) {
  Trace trace;
  for (const auto& [tokens, blocks] : tokens_and_blocks) {
    trace.requests.push_back({.arrival = {}, .input_tokens = tokens, .blocks = blocks});
  }
  return trace;
}

TEST(TokensPerBlockTest, IsTheNumberThatExplainsAllRequests) {
  EXPECT_EQ(TokensPerBlock(TraceOf({{512, 1}, {513, 2}})), 512u);
  EXPECT_EQ(TokensPerBlock(TraceOf({{1000, 2}, {6758, 14}, {0, 0}})), 512u);
  EXPECT_EQ(TokensPerBlock(TraceOf({{16, 1}, {17, 2}})), 16u);
  EXPECT_EQ(TokensPerBlock(TraceOf({{100, 1}, {101, 2}})), 100u);
  EXPECT_EQ(TokensPerBlock(TraceOf({{512, 1}, {100, 2}})), 0u);
  EXPECT_EQ(TokensPerBlock(TraceOf({{1, 2}})), 0u);
  EXPECT_EQ(TokensPerBlock(TraceOf({{5, 0}})), 0u);
}

}  // namespace
}  // namespace kvcache::bench
