#include "kvcache/core/stats/stats.h"

#include <algorithm>
#include <map>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

CacheStats Example() {
  CacheStats stats;
  stats.backend = "cpu_ram";
  stats.policy = "lru";
  stats.capacity_bytes = size_t{4} << 30;
  stats.peak_bytes = size_t{3} << 30;
  stats.max_blocks = 1000;
  stats.leases = 2;
  stats.longest_pinned = absl::Milliseconds(1500);
  stats.scrubbed_bytes = 4096;
  NamespaceStats ns;
  ns.id = 0;
  ns.model = "llama";
  ns.counters.request_lookups = 100;
  ns.counters.request_hits = 97;
  ns.counters.block_lookups = 1200;
  ns.counters.block_hits = 1100;
  ns.counters.block_pending = 40;
  ns.counters.tokens_looked_up = 19200;
  ns.counters.tokens_found = 17600;
  ns.counters.tokens_loaded = 16000;
  ns.counters.compute_saved = absl::Seconds(12.25);
  ns.counters.blocks_written = 61;
  ns.counters.evictions = 8;
  ns.counters.evicted_before_reuse = 2;
  ns.counters.expirations = 3;
  ns.counters.erased = 4;
  ns.counters.replaced = 5;
  ns.counters.corrupted = 1;
  ns.counters.failed_writes = 6;
  ns.counters.rejected_too_large = 7;
  ns.counters.rejected_pinned = 9;
  ns.counters.rejected_fragmented = 10;
  ns.counters.rejected_by_policy = 11;
  ns.counters.bytes_written = 1536;
  ns.counters.bytes_read = 1023;
  ns.usage = {.bytes_in_use = size_t{1} << 30,
              .bytes_detached = 1 << 20,
              .blocks = 50,
              .blocks_complete = 48};
  stats.namespaces = {ns, {.id = 1, .model = "a \"b\"\\\n", .counters = {}, .usage = {}}};
  for (const NamespaceStats& n : stats.namespaces) {
    stats.counters += n.counters;
    stats.usage += n.usage;
  }
  stats.backend_stats.facts = {{"fault_in", "background"}, {"error", "a \"b\""}};
  stats.backend_stats.metrics = {
      {"faulted_bytes", "Bytes of memory faulted in.", 3221225472, /*counter=*/false},
      {"page_fault_bytes", "Bytes used before that.", 1536, /*counter=*/true},
      {"first_touch_bytes_per_second", "How fast that is.", 2.5e9, /*counter=*/false},
      {"seconds", "How long it took.", 1.25, /*counter=*/false}};
  return stats;
}

// Checks the text exposition format 0.0.4: every line is a HELP, a TYPE or a sample; the lines of a
// metric are together, HELP and TYPE first and once; names and types fit together; no sample twice.
// Returns the samples.
std::map<std::string, std::string> CheckPrometheus(const std::string& text) {
  static const std::regex kHelp("# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)");
  static const std::regex kType(
      "# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary|untyped)");
  static const std::string kLabel = R"re([a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\[\\"n])*")re";
  static const std::regex kSample("([a-zA-Z_:][a-zA-Z0-9_:]*)(\\{" + kLabel + "(?:," + kLabel +
                                  ")*\\})? ([0-9]+(?:\\.[0-9]+)?(?:e[+-][0-9]+)?)");
  std::map<std::string, std::string> samples;
  std::set<std::string> seen;
  std::string metric;
  bool typed = false;
  EXPECT_TRUE(absl::EndsWith(text, "\n"));
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  lines.pop_back();
  for (const std::string& line : lines) {
    std::smatch match;
    if (std::regex_match(line, match, kHelp)) {
      metric = match[1];
      typed = false;
      EXPECT_TRUE(seen.insert(metric).second) << "two groups of lines: " << line;
      EXPECT_TRUE(absl::StartsWith(metric, "kvcache_")) << line;
    } else if (std::regex_match(line, match, kType)) {
      EXPECT_EQ(match[1], metric) << line;
      EXPECT_FALSE(typed) << line;
      typed = true;
      EXPECT_EQ(match[2] == "counter", absl::EndsWith(metric, "_total")) << line;
    } else if (std::regex_match(line, match, kSample)) {
      EXPECT_EQ(match[1], metric) << line;
      EXPECT_TRUE(typed) << line;
      EXPECT_TRUE(samples.emplace(absl::StrCat(match[1].str(), match[2].str()), match[3]).second)
          << "twice: " << line;
    } else {
      ADD_FAILURE() << "not the format: " << line;
    }
  }
  return samples;
}

TEST(StatsTest, AdviceComesWithTheSizeOfItsSample) {
  CacheStats stats = Example();
  EXPECT_THAT(StatsText(stats), Not(HasSubstr("would hit")));
  EXPECT_THAT(PrometheusText(stats), Not(HasSubstr("advice")));
  stats.advice = {{.policy = "lru",
                   .times_capacity = 2,
                   .capacity_bytes = size_t{8} << 30,
                   .hit_ratio = 0.5314,
                   .lookups = 288'500,
                   .sampled_lookups = 14'400,
                   .sampled_hits = 7650,
                   .sampled_hits_of_cache = 6600},
                  {.policy = "s3fifo",
                   .times_capacity = 0.5,
                   .capacity_bytes = size_t{2} << 30,
                   .sampled_lookups = 12,
                   .sampled_hits = 5,
                   .sampled_hits_of_cache = 3}};
  const std::string text = StatsText(stats);
  EXPECT_THAT(text, HasSubstr("would hit      lru with 2 times the capacity (8.0 GiB): 53.1 % of "
                              "288500 blocks, by 7650 hits of 14400 sampled blocks, of which the "
                              "cache hit 6600\n"));
  EXPECT_THAT(text, HasSubstr("would hit      s3fifo with 0.5 times the capacity (2.0 GiB): too "
                              "small a sample: 5 hits of 12 sampled blocks, of which the cache hit "
                              "3\n"));
  auto samples = CheckPrometheus(PrometheusText(stats));
  EXPECT_EQ(samples["kvcache_advice_hit_ratio{policy=\"lru\",times_capacity=\"2\"}"], "0.531400");
  EXPECT_EQ(samples.count("kvcache_advice_hit_ratio{policy=\"s3fifo\",times_capacity=\"0.5\"}"),
            0u);
  EXPECT_EQ(samples["kvcache_advice_capacity_bytes{policy=\"s3fifo\",times_capacity=\"0.5\"}"],
            "2147483648");
  EXPECT_EQ(samples["kvcache_advice_lookups{policy=\"lru\",times_capacity=\"2\"}"], "288500");
  EXPECT_EQ(samples["kvcache_advice_sampled_lookups{policy=\"s3fifo\",times_capacity=\"0.5\"}"],
            "12");
  EXPECT_EQ(samples["kvcache_advice_sampled_hits{policy=\"lru\",times_capacity=\"2\"}"], "7650");
  EXPECT_EQ(samples["kvcache_advice_sampled_hits_of_cache{policy=\"lru\",times_capacity=\"2\"}"],
            "6600");
}

TEST(StatsTest, CountersAddUpFieldByField) {
  CacheStats stats = Example();
  const CacheCounters once = stats.counters;
  stats.counters += once;
  EXPECT_EQ(stats.counters.request_hits, 194u);
  EXPECT_EQ(stats.counters.bytes_read, 2046u);
  EXPECT_EQ(stats.counters.compute_saved, absl::Seconds(24.5));
  EXPECT_EQ(stats.counters.block_misses(), 120u);
  stats.usage += stats.usage;
  EXPECT_EQ(stats.usage.bytes_in_use, size_t{2} << 30);
  EXPECT_EQ(stats.usage.blocks_complete, 96u);
}

// A counter that operator+= or PrometheusText() forgot would keep one of these values out.
TEST(StatsTest, NoCounterIsForgotten) {
  constexpr size_t kNumbers = (sizeof(CacheCounters) - sizeof(absl::Duration)) / sizeof(uint64_t);
  CacheCounters counters;
  uint64_t next = 1000;
  for (uint64_t* counter : {&counters.request_lookups,
                            &counters.request_hits,
                            &counters.block_lookups,
                            &counters.block_hits,
                            &counters.block_pending,
                            &counters.layer_lookups,
                            &counters.layer_hits,
                            &counters.layer_pending,
                            &counters.tokens_looked_up,
                            &counters.tokens_found,
                            &counters.tokens_loaded,
                            &counters.blocks_written,
                            &counters.evictions,
                            &counters.evicted_before_reuse,
                            &counters.evicted_before_copied,
                            &counters.expirations,
                            &counters.erased,
                            &counters.replaced,
                            &counters.corrupted,
                            &counters.failed_writes,
                            &counters.rejected_too_large,
                            &counters.rejected_pinned,
                            &counters.rejected_fragmented,
                            &counters.rejected_by_policy,
                            &counters.bytes_written,
                            &counters.bytes_read}) {
    *counter = next++;
  }
  ASSERT_EQ(next, 1000 + kNumbers) << "this list is not complete";
  CacheStats stats;
  stats.namespaces.resize(1);
  stats.namespaces[0].counters += counters;
  std::multiset<std::string> values;
  for (const auto& [name, value] : CheckPrometheus(PrometheusText(stats))) values.insert(value);
  for (uint64_t value = 1000; value < next; ++value) {
    EXPECT_EQ(values.count(absl::StrCat(value)), 1u) << value;
  }
}

TEST(StatsTest, TextForPeopleIsAFewAlignedLines) {
  EXPECT_EQ(StatsText(Example()),
            "cache          backend cpu_ram, policy lru, 2 namespaces\n"
            "requests hit   97 of 100 requests (97.0 %)\n"
            "blocks hit     1100 of 1200 blocks (91.7 %), 40 pending, 60 missed\n"
            "tokens found   17600 of 19200 tokens (91.7 %), 16000 loaded\n"
            "compute saved  12.25s\n"
            "memory         1073741824 of 4294967296 bytes (25.0 %): 1.0 GiB of 4.0 GiB, peak 3.0 "
            "GiB, detached 1.0 MiB\n"
            "blocks held    50 of 1000 blocks (5.0 %), 48 complete\n"
            "leases         2, the longest pinned block for 1.5s\n"
            "copied         1.5 KiB in, 1023 B out, 61 blocks written, 6 writes failed\n"
            "never reused   2 of 8 evicted blocks (25.0 %)\n"
            "gone           8 evicted, 3 expired, 4 erased, 5 replaced, 1 corrupted\n"
            "rejected       7 too large, 9 pinned, 10 fragmented, 11 by the policy\n"
            "cpu_ram        fault_in background, error a \"b\", faulted_bytes 3.0 GiB, "
            "page_fault_bytes 1.5 KiB, first_touch_bytes_per_second 2.3 GiB/s, seconds 1.25\n");
}

TEST(StatsTest, ABackendWithNothingToSayHasNoLine) {
  CacheStats stats = Example();
  stats.backend_stats = {};
  EXPECT_THAT(StatsText(stats), HasSubstr("by the policy\n"));
  EXPECT_THAT(StatsText(stats), Not(HasSubstr("cpu_ram  ")));
  EXPECT_THAT(PrometheusText(stats), Not(HasSubstr("kvcache_backend")));
}

TEST(StatsTest, FiguresAndFactsOfTheBackendAreFoundByName) {
  const BackendStats stats = Example().backend_stats;
  EXPECT_EQ(stats.Value("page_fault_bytes"), 1536);
  EXPECT_EQ(stats.Text("fault_in"), "background");
  EXPECT_EQ(stats.Value("pinned_bytes"), std::nullopt);
  EXPECT_EQ(stats.Text("device"), std::nullopt);
}

TEST(StatsTest, WhatNobodyAskedForHasNoLine) {
  const std::string text = StatsText(CacheStats());
  EXPECT_THAT(text, Not(HasSubstr(" hit ")));
  EXPECT_THAT(text, Not(HasSubstr("tokens")));
  EXPECT_THAT(text, Not(HasSubstr("evicted blocks")));
  EXPECT_THAT(text, Not(HasSubstr("nan")));
  EXPECT_THAT(text, Not(HasSubstr("%")));
}

TEST(StatsTest, BytesNeverShowAThousandOfAUnit) {
  const auto memory = [](size_t bytes) {
    CacheStats stats;
    stats.peak_bytes = bytes;
    const std::string text = StatsText(stats);
    const size_t begin = text.find("peak ") + 5;
    return text.substr(begin, text.find(',', begin) - begin);
  };
  EXPECT_EQ(memory(0), "0 B");
  EXPECT_EQ(memory(1023), "1023 B");
  EXPECT_EQ(memory(1024), "1.0 KiB");
  EXPECT_EQ(memory((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(memory(1000 << 10), "1000.0 KiB");
  EXPECT_EQ(memory(size_t{1} << 50), "1.0 PiB");
  EXPECT_EQ(memory(~size_t{0}), "16.0 EiB");
}

TEST(StatsTest, PrometheusTextFollowsTheFormat) {
  const auto samples = CheckPrometheus(PrometheusText(Example()));
  EXPECT_EQ(samples.at("kvcache_info{backend=\"cpu_ram\",policy=\"lru\"}"), "1");
  EXPECT_EQ(samples.at("kvcache_capacity_bytes"), "4294967296");
  EXPECT_EQ(samples.at("kvcache_longest_pinned_seconds"), "1.5");
  EXPECT_EQ(samples.at("kvcache_scrubbed_bytes_total"), "4096");
  EXPECT_EQ(samples.at("kvcache_backend_info{fault_in=\"background\",error=\"a \\\"b\\\"\"}"), "1");
  EXPECT_EQ(samples.at("kvcache_backend_faulted_bytes"), "3221225472");
  EXPECT_EQ(samples.at("kvcache_backend_page_fault_bytes_total"), "1536");
  EXPECT_EQ(samples.at("kvcache_backend_seconds"), "1.25");
  const std::string labels = "{namespace=\"0\",model=\"llama\"}";
  EXPECT_EQ(samples.at("kvcache_request_hits_total" + labels), "97");
  EXPECT_EQ(samples.at("kvcache_in_use_bytes" + labels), "1073741824");
  EXPECT_EQ(samples.at("kvcache_compute_saved_seconds_total" + labels), "12.25");
}

// Decodes as RFC 3629 says; false for anything that is not UTF-8.
bool IsUtf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    const size_t length = lead < 0x80             ? 1
                          : (lead & 0xE0) == 0xC0 ? 2
                          : (lead & 0xF0) == 0xE0 ? 3
                          : (lead & 0xF8) == 0xF0 ? 4
                                                  : 0;
    if (length == 0 || i + length > text.size()) return false;
    uint32_t point = length == 1 ? lead : lead & (0x7F >> length);
    for (size_t k = 1; k < length; ++k) {
      const auto byte = static_cast<uint8_t>(text[i + k]);
      if ((byte & 0xC0) != 0x80) return false;
      point = point << 6 | (byte & 0x3F);
    }
    static constexpr uint32_t kFirst[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < kFirst[length] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
      return false;
    }
    i += length;
  }
  return true;
}

TEST(StatsTest, PrometheusTextIsUtf8WhateverTheNameOfAModel) {
  CacheStats stats;
  stats.namespaces.resize(1);
  std::string& model = stats.namespaces[0].model;
  for (const std::string valid : {"\u00FC", "\u4E16", "\U0001F30D", "\U0010FFFF", "\u07FF"}) {
    model = valid;
    EXPECT_THAT(PrometheusText(stats), HasSubstr("model=\"" + valid + "\""));
  }
  for (const auto& [name, shown] : std::vector<std::pair<std::string, std::string>>{
           {"a\xFFz", "a\uFFFDz"},
           {"\xC3\"", "\uFFFD\\\""},
           {"\xE4\xB8\n", "\uFFFD\uFFFD\\n"},
           {"\xC0\x80", "\uFFFD\uFFFD"},
           {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
           {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"}}) {
    model = name;
    EXPECT_THAT(PrometheusText(stats), HasSubstr("model=\"" + shown + "\""));
  }
  // Every two bytes between others, and every start of a longer sequence.
  for (int first = 0x80; first < 0x100; ++first) {
    for (int second = 0; second < 0x100; ++second) {
      for (const char* end : {"", "\x80", "\xBF\xBF"}) {
        model = {static_cast<char>(first), static_cast<char>(second)};
        model += end;
        const std::string text = PrometheusText(stats);
        ASSERT_TRUE(IsUtf8(text)) << first << " " << second;
        if (IsUtf8(model) && second >= 0x80) {
          ASSERT_THAT(text, HasSubstr(model));
        }
      }
    }
  }
}

TEST(StatsTest, PrometheusTextHasTheLinesOfAMetricTogether) {
  EXPECT_THAT(
      PrometheusText(Example()),
      HasSubstr("# HELP kvcache_request_hits_total Prompts that were there as a whole.\n"
                "# TYPE kvcache_request_hits_total counter\n"
                "kvcache_request_hits_total{namespace=\"0\",model=\"llama\"} 97\n"
                "kvcache_request_hits_total{namespace=\"1\",model=\"a \\\"b\\\"\\\\\\n\"} 0\n"
                "# HELP "));
}

TEST(StatsTest, PrometheusTextWithoutNamespacesIsValidToo) {
  const auto samples = CheckPrometheus(PrometheusText(CacheStats()));
  EXPECT_EQ(samples.count("kvcache_leases"), 1u);
}

TEST(StatsTest, LargeCountsAreExact) {
  CacheStats stats;
  stats.namespaces.resize(1);
  stats.namespaces[0].counters.bytes_read = ~uint64_t{0};
  stats.namespaces[0].counters.compute_saved = absl::Seconds(123456789) + absl::Milliseconds(5);
  const std::string labels = "{namespace=\"0\",model=\"\"}";
  const auto samples = CheckPrometheus(PrometheusText(stats));
  EXPECT_EQ(samples.at("kvcache_read_bytes_total" + labels), "18446744073709551615");
  EXPECT_EQ(samples.at("kvcache_compute_saved_seconds_total" + labels), "123456789.005");
}

}  // namespace
}  // namespace kvcache
