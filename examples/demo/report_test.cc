#include "kvcache/examples/demo/report.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvcache::examples {
namespace {

TEST(FormatTest, NumbersReadEasily) {
  EXPECT_EQ(FormatMs(absl::Microseconds(12345)), "12.3 ms");
  EXPECT_EQ(FormatSeconds(absl::Milliseconds(12345)), "12.35 s");
  EXPECT_EQ(FormatFactor(12.34), "12.3x");
}

TEST(FormatTest, ARateComesWithItsDenominator) {
  EXPECT_EQ(FormatRate({97, 100}), "97 of 100 = 97.0 %");
  EXPECT_EQ(FormatRate({3104, 3200}), "3,104 of 3,200 = 97.0 %");
}

Results OneResult() {
  Results results;
  results.requests = 2;
  results.logits = 20;
  results.without.total = absl::Seconds(10);
  StoreResult& with = results.with.emplace_back();
  with.name = "whole prompts";
  with.latency.total = absl::Seconds(2);
  with.reuse.requests = {1, 2};
  with.reuse.compute_saved = absl::Seconds(8);
  with.stats.counters.compute_saved = absl::Seconds(9);
  with.stats.usage.bytes_in_use = 3 << 20;
  with.stats.capacity_bytes = 4 << 20;
  with.logits_mismatches = 7;
  return results;
}

std::string Cell(const Results& results, const std::string& label) {
  for (const TableRow& row : ReuseRows(results)) {
    if (row[0] == label) return row[1];
  }
  return "no such row";
}

TEST(ReuseRowsTest, SayWhatWasMeasured) {
  const Results results = OneResult();
  EXPECT_EQ(Cell(results, "requests hit"), "1 of 2 = 50.0 %");
  EXPECT_EQ(Cell(results, "cold requests"), "1");
  EXPECT_EQ(Cell(results, "bytes used"), "3.0 MiB of 4.0 MiB");
  EXPECT_EQ(Cell(results, "time saved"), "8.00 s");
  EXPECT_EQ(Cell(results, "computing saved, stopwatch"), "8.00 s");
  EXPECT_EQ(Cell(results, "computing saved, stats()"), "9.00 s (+12.5 %)");
  EXPECT_EQ(Cell(results, "logits that differ"), "7 of 20");
}

TEST(NotesTest, NameTheStoreThatRefusedPutsAndTheReason) {
  Results results = OneResult();
  EXPECT_FALSE(absl::StrContains(Notes(results), "refused"));
  results.with[0].reuse.puts_refused = 2;
  results.with[0].reuse.first_refusal = absl::ResourceExhaustedError("too large");
  EXPECT_TRUE(absl::StrContains(
      Notes(results),
      "whole prompts: the cache refused a put in 2 of 2 requests; first: too large"));
}

}  // namespace
}  // namespace kvcache::examples
