#include "kvcache/bench/trace_replay/report.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvcache::bench {

using examples::JsonObject;

namespace {

JsonObject PayloadJson(const PayloadResult& payload) {
  return JsonObject()
      .Add("bytes_read", static_cast<double>(payload.bytes_read))
      .Add("bytes_written", static_cast<double>(payload.bytes_written))
      .Add("read_gb_per_s", payload.read_gb_per_s)
      .Add("write_gb_per_s", payload.write_gb_per_s)
      .Add("load_p50_us", payload.load_p50_us)
      .Add("load_p99_us", payload.load_p99_us)
      .Add("put_p50_us", payload.put_p50_us)
      .Add("put_p99_us", payload.put_p99_us);
}

JsonObject ResultJson(const Report& report, const SweepResult& result, double optimum) {
  const ReplayResult& replay = result.replay;
  JsonObject json;
  json.Add("policy", replay.policy)
      .Add("capacity_blocks", static_cast<double>(replay.capacity_blocks))
      .Add("touch_order", Name(report.touch_order))
      .Add("plain_hit_ratio", replay.plain_hit_ratio())
      .Add("prefix_hit_ratio", replay.prefix_hit_ratio())
      .Add("token_hit_ratio", replay.token_hit_ratio())
      .Add("evictions", static_cast<double>(replay.evictions))
      .Add("expirations", static_cast<double>(replay.expirations))
      .Add("refused", static_cast<double>(replay.refused))
      .Add("optimum_hit_ratio", optimum)
      .Add("gap_closed", result.gap_closed.value_or(std::numeric_limits<double>::quiet_NaN()))
      .Add("seconds", replay.seconds);
  if (replay.payload.has_value()) json.Add("payload", PayloadJson(*replay.payload));
  return json;
}

std::string PayloadText(const Report& report) {
  std::string text =
      "\npolicy     capacity      read      write    hits of a request, P50 / P99    put, P50 / "
      "P99\n";
  for (const SweepResult& result : report.sweep.results) {
    const PayloadResult& payload = *result.replay.payload;
    absl::StrAppendFormat(&text,
                          "%-8s %10s %7.2f GB/s %5.2f GB/s %12.1f / %9.1f us %8.1f / %6.1f us\n",
                          result.replay.policy, FormatCount(result.replay.capacity_blocks),
                          payload.read_gb_per_s, payload.write_gb_per_s, payload.load_p50_us,
                          payload.load_p99_us, payload.put_p50_us, payload.put_p99_us);
  }
  return text;
}

}  // namespace

std::string FormatCount(uint64_t count) {
  const std::string digits = absl::StrCat(count);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string FormatPercent(double ratio) { return absl::StrFormat("%.2f %%", 100 * ratio); }

std::string FormatMemory(const Report& report, size_t blocks) {
  if (report.bytes_per_token == 0 || report.tokens_per_block == 0) return "";
  const double gib = static_cast<double>(blocks) * report.tokens_per_block *
                     static_cast<double>(report.bytes_per_token) / (uint64_t{1} << 30);
  if (gib >= 100)
    return absl::StrCat(FormatCount(static_cast<uint64_t>(std::llround(gib))), " GiB");
  return absl::StrFormat("%.*f GiB", gib < 10 ? 2 : 1, gib);
}

JsonObject Json(const Report& report) {
  std::vector<JsonObject> results;
  for (size_t policy = 0; policy < report.policies.size(); ++policy) {
    for (size_t i = 0; i < report.capacities.size(); ++i) {
      results.push_back(ResultJson(report, report.result(policy, i), report.sweep.optimum[i]));
    }
  }
  JsonObject json;
  json.Add("trace", report.trace)
      .Add("requests", static_cast<double>(report.requests))
      .Add("block_references", static_cast<double>(report.block_references))
      .Add("unique_blocks", static_cast<double>(report.unique_blocks))
      .Add("skipped_lines", static_cast<double>(report.skipped_lines))
      .Add("tokens_per_block", report.tokens_per_block)
      .Add("possible_prefix_hit_ratio", report.sweep.possible_prefix_hit_ratio)
      .Add("results", results);
  if (report.sweep.needs.empty()) return json;
  JsonObject needs;
  for (const Need& need : report.sweep.needs) {
    needs.Add(need.policy, static_cast<double>(need.capacity_blocks));
  }
  return json.Add("blocks_for_95_percent", needs);
}

std::string Text(const Report& report) {
  std::string text = absl::StrCat(
      FormatCount(report.requests), " requests, ", FormatCount(report.block_references),
      " references to ", FormatCount(report.unique_blocks), " blocks",
      report.tokens_per_block > 0 ? absl::StrCat(" of ", report.tokens_per_block, " tokens") : "",
      "; touch order: ", Name(report.touch_order), "\n");
  if (report.skipped_lines > 0) {
    absl::StrAppend(&text, FormatCount(report.skipped_lines), " malformed lines were skipped\n");
  }
  absl::StrAppend(&text, "With memory for everything, ",
                  FormatPercent(report.sweep.possible_prefix_hit_ratio),
                  " of the references would be prefix hits.\n\n");
  absl::StrAppend(
      &text,
      "policy     capacity     plain    prefix     token   optimum       gap   evictions"
      " expirations  seconds\n");
  for (size_t policy = 0; policy < report.policies.size(); ++policy) {
    for (size_t i = 0; i < report.capacities.size(); ++i) {
      const SweepResult& result = report.result(policy, i);
      const ReplayResult& replay = result.replay;
      absl::StrAppendFormat(
          &text, "%-8s %10s %9s %9s %9s %9s %9s %11s %11s %8.3f\n", replay.policy,
          FormatCount(replay.capacity_blocks), FormatPercent(replay.plain_hit_ratio()),
          FormatPercent(replay.prefix_hit_ratio()), FormatPercent(replay.token_hit_ratio()),
          FormatPercent(report.sweep.optimum[i]),
          result.gap_closed.has_value() ? absl::StrFormat("%.0f %%", 100 * *result.gap_closed)
                                        : "-",
          FormatCount(replay.evictions), FormatCount(replay.expirations), replay.seconds);
    }
  }
  absl::StrAppend(
      &text,
      "\nplain: blocks that were there when their turn came, of all references; prefix: with all\n"
      "before them, when the request came; token: prompt tokens in those, of all prompt tokens;\n"
      "optimum: plain hits of Belady's rule; gap: share of the way from LRU to the optimum.\n");
  if (!report.sweep.results.empty() && report.sweep.results[0].replay.payload.has_value()) {
    absl::StrAppend(&text, PayloadText(report));
  }
  if (!report.sweep.needs.empty()) absl::StrAppend(&text, "\n");
  for (const std::string& sentence : NeedSentences(report)) absl::StrAppend(&text, sentence, "\n");
  return text;
}

std::vector<std::string> NeedSentences(const Report& report) {
  std::vector<std::string> sentences;
  for (const Need& need : report.sweep.needs) {
    const std::string memory = FormatMemory(report, need.capacity_blocks);
    const bool optimum = &need == &report.sweep.needs.back();
    sentences.push_back(absl::StrCat(optimum ? "The optimum" : need.policy, " needs ",
                                     FormatCount(need.capacity_blocks), " blocks",
                                     memory.empty() ? "" : absl::StrCat(" (", memory, ")"), " for ",
                                     100 * kEnough, " % of the possible hits."));
  }
  return sentences;
}

}  // namespace kvcache::bench
