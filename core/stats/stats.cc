#include "kvcache/core/stats/stats.h"

#include <array>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace kvcache {
namespace {

template <typename Struct, typename Number>
struct Metric {
  Number Struct::*field;
  const char* name;
  const char* help;
};

using Counter = Metric<CacheCounters, uint64_t>;
using Gauge = Metric<CacheUsage, size_t>;

// All numbers of CacheCounters except compute_saved.
constexpr std::array kCounters = {
    Counter{&CacheCounters::request_lookups, "request_lookups_total", "Prompts looked up."},
    Counter{&CacheCounters::request_hits, "request_hits_total",
            "Prompts that were there as a whole."},
    Counter{&CacheCounters::block_lookups, "block_lookups_total", "Blocks looked up."},
    Counter{&CacheCounters::block_hits, "block_hits_total", "Blocks that were there."},
    Counter{&CacheCounters::block_pending, "block_pending_total",
            "Blocks looked up while they were being written."},
    Counter{&CacheCounters::layer_lookups, "layer_lookups_total", "Single layers looked up."},
    Counter{&CacheCounters::layer_hits, "layer_hits_total", "Single layers that were there."},
    Counter{&CacheCounters::layer_pending, "layer_pending_total",
            "Single layers looked up while they were being written."},
    Counter{&CacheCounters::tokens_looked_up, "looked_up_tokens_total",
            "Tokens of the prompts looked up."},
    Counter{&CacheCounters::tokens_found, "found_tokens_total",
            "Tokens of the prompts looked up that were there."},
    Counter{&CacheCounters::tokens_loaded, "loaded_tokens_total",
            "Tokens that were there and that the caller did not have itself."},
    Counter{&CacheCounters::blocks_written, "written_blocks_total", "Blocks that became complete."},
    Counter{&CacheCounters::evictions, "evictions_total", "Blocks evicted to make room."},
    Counter{&CacheCounters::evicted_before_reuse, "evictions_before_reuse_total",
            "Blocks evicted that had never been hit."},
    Counter{&CacheCounters::evicted_before_copied, "evictions_before_copied_total",
            "Blocks evicted that nobody had marked as copied elsewhere."},
    Counter{&CacheCounters::expirations, "expirations_total", "Blocks that outlived their TTL."},
    Counter{&CacheCounters::erased, "erased_total", "Blocks erased by a caller."},
    Counter{&CacheCounters::replaced, "replaced_total", "Blocks replaced by a newer copy."},
    Counter{&CacheCounters::corrupted, "corrupted_total",
            "Blocks dropped because their bytes had changed, and blocks lost with such a parent."},
    Counter{&CacheCounters::failed_writes, "failed_writes_total",
            "Writes dropped, aborted or failed, and blocks lost with such a parent."},
    Counter{&CacheCounters::rejected_too_large, "rejected_too_large_total",
            "Writes refused: larger than the capacity."},
    Counter{&CacheCounters::rejected_pinned, "rejected_pinned_total",
            "Writes refused: no room, and nothing that may go."},
    Counter{&CacheCounters::rejected_fragmented, "rejected_fragmented_total",
            "Writes refused: the free room is in pieces."},
    Counter{&CacheCounters::rejected_by_policy, "rejected_by_policy_total",
            "Writes refused by the eviction policy."},
    Counter{&CacheCounters::bytes_written, "written_bytes_total", "Bytes committed."},
    Counter{&CacheCounters::bytes_read, "read_bytes_total",
            "Bytes copied out by the cache, without reads in place."},
};

constexpr std::array kGauges = {
    Gauge{&CacheUsage::bytes_in_use, "in_use_bytes", "Bytes taken from the backend."},
    Gauge{&CacheUsage::bytes_detached, "detached_bytes",
          "Bytes that are leased while no key reaches them any more."},
    Gauge{&CacheUsage::blocks, "blocks", "Blocks that a key reaches."},
    Gauge{&CacheUsage::blocks_complete, "complete_blocks", "Complete blocks that a key reaches."},
};

// A field that is in no table would be neither added up nor exported.
constexpr bool AllDifferent(const auto& metrics) {
  for (size_t i = 0; i < metrics.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (metrics[i].field == metrics[j].field) return false;
    }
  }
  return true;
}
constexpr size_t kDurationBytes = (sizeof(absl::Duration) + 7) / 8 * 8;
static_assert(AllDifferent(kCounters) && AllDifferent(kGauges));
static_assert(sizeof(CacheCounters) == kCounters.size() * sizeof(uint64_t) + kDurationBytes);
static_assert(sizeof(CacheUsage) == kGauges.size() * sizeof(size_t));

// "97 of 100 requests (97.0 %)"; without the percentage when there was nothing.
std::string Ratio(uint64_t part, uint64_t whole, absl::string_view of_what) {
  std::string text = absl::StrCat(part, " of ", whole, " ", of_what);
  if (whole > 0) {
    absl::StrAppendFormat(&text, " (%.1f %%)",
                          100.0 * static_cast<double>(part) / static_cast<double>(whole));
  }
  return text;
}

std::string Bytes(double bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return absl::StrFormat("%.0f B", bytes);
  double value = bytes / 1024;
  size_t unit = 0;
  // 1023.95 would be printed as 1024.0.
  for (; value >= 1023.95 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

// "1.5 GiB", "1.5 GiB/s", "42", by the unit at the end of its name.
std::string Figure(const BackendStats::Metric& metric) {
  if (absl::EndsWith(metric.name, "_bytes")) return Bytes(metric.value);
  if (absl::EndsWith(metric.name, "_bytes_per_second")) return Bytes(metric.value) + "/s";
  return absl::StrFormat("%.6g", metric.value);
}

void AppendLine(std::string* text, absl::string_view title, absl::string_view line) {
  absl::StrAppendFormat(text, "%-15s%s\n", title, line);
}

// Bytes of the UTF-8 sequence that `text` begins with; 0 when it begins with none.
size_t SequenceLength(absl::string_view text) {
  const auto byte = [text](size_t i) {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0};
  };
  const auto follows = [byte](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return follows(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    // Neither what a shorter sequence can say nor the surrogates.
    if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F)) return 0;
    return follows(1) && follows(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if ((lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) return 0;
    return follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

// A label's value as the format wants it: UTF-8, in which each byte that is none becomes U+FFFD.
std::string Escaped(absl::string_view label) {
  std::string valid;
  while (!label.empty()) {
    const size_t length = SequenceLength(label);
    absl::StrAppend(&valid, length == 0 ? "\xEF\xBF\xBD" : label.substr(0, length));
    label.remove_prefix(length == 0 ? 1 : length);
  }
  return absl::StrReplaceAll(valid, {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", "\\n"}});
}

std::string Seconds(absl::Duration duration) {
  return absl::StrFormat("%.15g", absl::ToDoubleSeconds(duration));
}

void AppendHeader(std::string* text, absl::string_view name, absl::string_view type,
                  absl::string_view help) {
  absl::StrAppend(text, "# HELP kvcache_", name, " ", help, "\n# TYPE kvcache_", name, " ", type,
                  "\n");
}

// A metric of the whole cache.
void AppendGauge(std::string* text, absl::string_view name, absl::string_view help,
                 absl::string_view value) {
  AppendHeader(text, name, "gauge", help);
  absl::StrAppend(text, "kvcache_", name, " ", value, "\n");
}

// "53.1 % of 2885000 blocks, by 7650 hits of 14400 sampled blocks, of which the cache hit 6600".
std::string Prediction(const Advice& advice) {
  const std::string sample =
      absl::StrCat(advice.sampled_hits, " hits of ", advice.sampled_lookups,
                   " sampled blocks, of which the cache hit ", advice.sampled_hits_of_cache);
  if (!advice.hit_ratio.has_value()) return absl::StrCat("too small a sample: ", sample);
  return absl::StrFormat("%.1f %% of %d blocks, by %s", 100 * *advice.hit_ratio, advice.lookups,
                         sample);
}

void AppendAdvice(std::string* text, const std::vector<Advice>& advice) {
  if (advice.empty()) return;
  const auto append = [&](absl::string_view name, absl::string_view help, const auto& value_of) {
    AppendHeader(text, name, "gauge", help);
    for (const Advice& a : advice) {
      const std::string value = value_of(a);
      if (value.empty()) continue;
      absl::StrAppend(text, "kvcache_", name, "{policy=\"", Escaped(a.policy),
                      "\",times_capacity=\"", a.times_capacity, "\"} ", value, "\n");
    }
  };
  append("advice_hit_ratio", "Predicted block hits / lookups, where the sample says enough.",
         [](const Advice& a) {
           return a.hit_ratio.has_value() ? absl::StrFormat("%.6f", *a.hit_ratio) : "";
         });
  append("advice_capacity_bytes", "The capacity that the prediction is for.",
         [](const Advice& a) { return absl::StrCat(a.capacity_bytes); });
  append("advice_lookups", "Block lookups that the prediction is about.",
         [](const Advice& a) { return absl::StrCat(a.lookups); });
  append("advice_sampled_lookups", "Block lookups in the sample.",
         [](const Advice& a) { return absl::StrCat(a.sampled_lookups); });
  append("advice_sampled_hits", "Hits in the sample, of the simulation.",
         [](const Advice& a) { return absl::StrCat(a.sampled_hits); });
  append("advice_sampled_hits_of_cache", "Hits in the sample, of the cache.",
         [](const Advice& a) { return absl::StrCat(a.sampled_hits_of_cache); });
}

void AppendBackendStats(std::string* text, const BackendStats& stats) {
  if (!stats.facts.empty()) {
    AppendHeader(text, "backend_info", "gauge", "What the backend decided; always 1.");
    const auto label = [](std::string* out, const BackendStats::Fact& fact) {
      absl::StrAppend(out, fact.name, "=\"", Escaped(fact.value), "\"");
    };
    absl::StrAppend(text, "kvcache_backend_info{", absl::StrJoin(stats.facts, ",", label), "} 1\n");
  }
  for (const BackendStats::Metric& metric : stats.metrics) {
    const std::string name = absl::StrCat("backend_", metric.name, metric.counter ? "_total" : "");
    AppendHeader(text, name, metric.counter ? "counter" : "gauge", metric.help);
    absl::StrAppendFormat(text, "kvcache_%s %.15g\n", name, metric.value);
  }
}

// A metric with one value for each namespace.
template <typename ValueOf>
void AppendFamily(std::string* text, const CacheStats& stats, absl::string_view name,
                  absl::string_view type, absl::string_view help, const ValueOf& value_of) {
  AppendHeader(text, name, type, help);
  for (const NamespaceStats& ns : stats.namespaces) {
    absl::StrAppend(text, "kvcache_", name, "{namespace=\"", ns.id, "\",model=\"",
                    Escaped(ns.model), "\"} ", value_of(ns), "\n");
  }
}

}  // namespace

CacheCounters& CacheCounters::operator+=(const CacheCounters& other) {
  for (const Counter& counter : kCounters) this->*counter.field += other.*counter.field;
  compute_saved += other.compute_saved;
  return *this;
}

CacheUsage& CacheUsage::operator+=(const CacheUsage& other) {
  for (const Gauge& gauge : kGauges) this->*gauge.field += other.*gauge.field;
  return *this;
}

std::string StatsText(const CacheStats& stats) {
  const CacheCounters& c = stats.counters;
  const CacheUsage& u = stats.usage;
  std::string text;
  AppendLine(&text, "cache",
             absl::StrCat("backend ", stats.backend, ", policy ", stats.policy, ", ",
                          stats.namespaces.size(), " namespaces"));
  // What nobody has asked for has no line.
  if (c.request_lookups > 0) {
    AppendLine(&text, "requests hit", Ratio(c.request_hits, c.request_lookups, "requests"));
  }
  if (c.block_lookups > 0) {
    AppendLine(&text, "blocks hit",
               absl::StrCat(Ratio(c.block_hits, c.block_lookups, "blocks"), ", ", c.block_pending,
                            " pending, ", c.block_misses(), " missed"));
  }
  if (c.layer_lookups > 0) {
    AppendLine(&text, "layers hit",
               absl::StrCat(Ratio(c.layer_hits, c.layer_lookups, "layers"), ", ", c.layer_pending,
                            " pending, ", c.layer_misses(), " missed"));
  }
  if (c.tokens_looked_up > 0) {
    AppendLine(&text, "tokens found",
               absl::StrCat(Ratio(c.tokens_found, c.tokens_looked_up, "tokens"), ", ",
                            c.tokens_loaded, " loaded"));
  }
  if (c.compute_saved > absl::ZeroDuration()) {
    AppendLine(&text, "compute saved", absl::FormatDuration(c.compute_saved));
  }
  AppendLine(&text, "memory",
             absl::StrCat(Ratio(u.bytes_in_use, stats.capacity_bytes, "bytes"), ": ",
                          Bytes(u.bytes_in_use), " of ", Bytes(stats.capacity_bytes), ", peak ",
                          Bytes(stats.peak_bytes), ", detached ", Bytes(u.bytes_detached)));
  AppendLine(&text, "blocks held",
             absl::StrCat(Ratio(u.blocks, stats.max_blocks, "blocks"), ", ", u.blocks_complete,
                          " complete"));
  AppendLine(&text, "leases",
             absl::StrCat(stats.leases, ", the longest pinned block for ",
                          absl::FormatDuration(stats.longest_pinned)));
  AppendLine(
      &text, "copied",
      absl::StrCat(Bytes(c.bytes_written), " in, ", Bytes(c.bytes_read), " out, ", c.blocks_written,
                   " blocks written, ", c.failed_writes, " writes failed"));
  if (c.evictions > 0) {
    AppendLine(&text, "never reused", Ratio(c.evicted_before_reuse, c.evictions, "evicted blocks"));
  }
  AppendLine(&text, "gone",
             absl::StrCat(c.evictions, " evicted, ", c.expirations, " expired, ", c.erased,
                          " erased, ", c.replaced, " replaced, ", c.corrupted, " corrupted"));
  AppendLine(
      &text, "rejected",
      absl::StrCat(c.rejected_too_large, " too large, ", c.rejected_pinned, " pinned, ",
                   c.rejected_fragmented, " fragmented, ", c.rejected_by_policy, " by the policy"));
  std::vector<std::string> of_backend;
  for (const BackendStats::Fact& fact : stats.backend_stats.facts) {
    of_backend.push_back(absl::StrCat(fact.name, " ", fact.value));
  }
  for (const BackendStats::Metric& metric : stats.backend_stats.metrics) {
    of_backend.push_back(absl::StrCat(metric.name, " ", Figure(metric)));
  }
  if (!of_backend.empty()) AppendLine(&text, stats.backend, absl::StrJoin(of_backend, ", "));
  for (const Advice& advice : stats.advice) {
    AppendLine(
        &text, "would hit",
        absl::StrCat(advice.policy, " with ", advice.times_capacity, " times the capacity (",
                     Bytes(static_cast<double>(advice.capacity_bytes)), "): ", Prediction(advice)));
  }
  return text;
}

std::string PrometheusText(const CacheStats& stats) {
  std::string text;
  AppendHeader(&text, "info", "gauge", "The backend and the policy of this cache; always 1.");
  absl::StrAppend(&text, "kvcache_info{backend=\"", Escaped(stats.backend), "\",policy=\"",
                  Escaped(stats.policy), "\"} 1\n");
  AppendGauge(&text, "capacity_bytes", "The most bytes that may be in use.",
              absl::StrCat(stats.capacity_bytes));
  AppendGauge(&text, "peak_in_use_bytes", "The most bytes that were ever in use.",
              absl::StrCat(stats.peak_bytes));
  AppendGauge(&text, "max_blocks", "The most blocks that may be held.",
              absl::StrCat(stats.max_blocks));
  AppendGauge(&text, "leases", "Pins on blocks, by leases and by transfers.",
              absl::StrCat(stats.leases));
  AppendGauge(&text, "longest_pinned_seconds",
              "How long a block has been pinned without a break, at most; 0 without leases.",
              Seconds(stats.longest_pinned));
  AppendHeader(&text, "scrubbed_bytes_total", "counter", "Bytes read to compare their checksums.");
  absl::StrAppend(&text, "kvcache_scrubbed_bytes_total ", stats.scrubbed_bytes, "\n");
  AppendBackendStats(&text, stats.backend_stats);
  AppendAdvice(&text, stats.advice);
  for (const Gauge& gauge : kGauges) {
    AppendFamily(&text, stats, gauge.name, "gauge", gauge.help,
                 [&](const NamespaceStats& ns) { return ns.usage.*gauge.field; });
  }
  for (const Counter& counter : kCounters) {
    AppendFamily(&text, stats, counter.name, "counter", counter.help,
                 [&](const NamespaceStats& ns) { return ns.counters.*counter.field; });
  }
  AppendFamily(&text, stats, "compute_saved_seconds_total", "counter",
               "Time to recompute what was hit.",
               [](const NamespaceStats& ns) { return Seconds(ns.counters.compute_saved); });
  return text;
}

}  // namespace kvcache
