#include "kvcache/bench/trace_replay/html.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvcache/bench/trace_replay/chart.h"

namespace kvcache::bench {
namespace {

// Colours that stay apart for the colour-blind (after Okabe and Ito), a set for each background.
constexpr absl::string_view kStyle = R"(
:root {
  --page: #ffffff; --panel: #f6f7f9; --text: #1c2230; --soft: #5b6475; --rule: #dfe3ea;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5488f; --c4: #9a7400; --c5: #8a5a3c;
  --c6: #7a4fbf; --c7: #5f6b7a; --c8: #a03030; --c9: #2f7d32; --best: #1c2230;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171d; --panel: #1c2129; --text: #e7eaf0; --soft: #a2abba; --rule: #323945;
    --c0: #56b4e9; --c1: #ff8c42; --c2: #2fcf9f; --c3: #e58bc4; --c4: #e6c229; --c5: #cfa384;
    --c6: #b69cf2; --c7: #9fb0c3; --c8: #f07f7f; --c9: #86d489; --best: #e7eaf0;
  }
}
body {
  margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; background: var(--page);
  color: var(--text); font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; }
p { margin: 8px 0; }
.soft { color: var(--soft); }
.answer {
  background: var(--panel); border-left: 5px solid var(--c0); border-radius: 6px;
  padding: 14px 20px; margin: 24px 0; font-size: 18px;
}
svg { width: 100%; height: auto; display: block; margin: 8px 0; font-size: 13px; }
svg text { fill: var(--soft); }
.grid { stroke: var(--rule); stroke-width: 1; }
.enough { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 5; }
.line { fill: none; stroke: var(--c); stroke-width: 2.2; stroke-linejoin: round; }
.leader { fill: none; stroke: var(--c); stroke-width: 1; opacity: .6; }
.dot { fill: var(--page); stroke: var(--c); stroke-width: 2; }
.dot:hover { fill: var(--c); }
svg .label { fill: var(--c); font-weight: 600; }
.best .line { stroke-dasharray: 7 5; }
.answer b { white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
td.top { font-weight: 700; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; background: var(--c);
  margin-right: 8px; }
)";

constexpr size_t kColours = 10;

std::string ClassOf(size_t policy) { return absl::StrCat("k", policy % kColours); }

std::string Style() {
  std::string style(kStyle);
  for (size_t i = 0; i < kColours; ++i)
    absl::StrAppendFormat(&style, ".k%d { --c: var(--c%d); }\n", i, i);
  return absl::StrCat(style, ".best { --c: var(--best); }\n");
}

std::string WithMemory(const Report& report, size_t blocks) {
  const std::string memory = FormatMemory(report, blocks);
  return absl::StrCat("<b>", FormatCount(blocks), " blocks",
                      memory.empty() ? "" : absl::StrCat(", ", memory), "</b>");
}

// The question that the page is for, and its answer.
std::string Answer(const Report& report) {
  const Need& optimum = report.sweep.needs.back();
  const auto policies = absl::MakeSpan(report.sweep.needs).first(report.policies.size());
  size_t least = optimum.capacity_blocks;
  size_t lru = 0;
  std::vector<std::string> best;
  for (const Need& need : policies) {
    if (best.empty() || need.capacity_blocks < least) {
      best.clear();
      least = need.capacity_blocks;
    }
    if (need.capacity_blocks == least) best.push_back(EscapeHtml(need.policy));
    if (need.policy == "lru") lru = need.capacity_blocks;
  }
  std::string answer = absl::StrCat(
      "<p class=\"answer\">The smallest cache that reaches ", 100 * kEnough,
      " % of the possible hits has ", WithMemory(report, least), ", under the ",
      best.size() == 1 ? "policy" : "policies", " <b>", absl::StrJoin(best, "</b>, <b>"), "</b>.");
  if (lru > least) absl::StrAppend(&answer, " LRU needs ", WithMemory(report, lru), ".");
  return absl::StrCat(answer, " The optimum, which knows the future, would need ",
                      WithMemory(report, optimum.capacity_blocks), ".</p>\n");
}

Chart HitChart(const Report& report) {
  Chart chart = {.x = report.capacities,
                 .x_labels = {},
                 .x_sublabels = {},
                 .x_title = "capacity in blocks, logarithmic",
                 .y_title = "prefix hits of all block references",
                 .curves = {},
                 .enough = kEnough * report.sweep.possible_prefix_hit_ratio,
                 .enough_label = absl::StrCat(100 * kEnough, " % of the possible hits")};
  for (size_t capacity : report.capacities) {
    chart.x_labels.push_back(FormatCount(capacity));
    const std::string memory = FormatMemory(report, capacity);
    if (!memory.empty()) chart.x_sublabels.push_back(memory);
  }
  chart.curves.push_back({"optimum", "best", report.sweep.optimum});
  for (size_t policy = 0; policy < report.policies.size(); ++policy) {
    Curve curve = {EscapeHtml(report.policies[policy]), ClassOf(policy), {}};
    for (size_t i = 0; i < report.capacities.size(); ++i) {
      curve.y.push_back(report.result(policy, i).replay.prefix_hit_ratio());
    }
    // One line for policies that do the same: the upper would hide the lower.
    const auto same = std::find_if(chart.curves.begin(), chart.curves.end(),
                                   [&curve](const Curve& other) { return other.y == curve.y; });
    if (same == chart.curves.end()) {
      chart.curves.push_back(std::move(curve));
    } else {
      absl::StrAppend(&same->name, ", ", curve.name);
    }
  }
  return chart;
}

std::string NeedTable(const Report& report) {
  const bool memory = !FormatMemory(report, 1).empty();
  std::string table =
      absl::StrCat("<div class=\"scroll\"><table><tr><th>policy</th><th>blocks</th>",
                   memory ? "<th>memory</th>" : "", "<th>of all blocks</th></tr>\n");
  for (size_t i = 0; i < report.sweep.needs.size(); ++i) {
    const Need& need = report.sweep.needs[i];
    const bool optimum = i + 1 == report.sweep.needs.size();
    absl::StrAppend(&table, "<tr><td><span class=\"key ", optimum ? "best" : ClassOf(i),
                    "\"></span>", EscapeHtml(need.policy), "</td><td>",
                    FormatCount(need.capacity_blocks), "</td>");
    if (memory) {
      absl::StrAppend(&table, "<td>", FormatMemory(report, need.capacity_blocks), "</td>");
    }
    absl::StrAppend(&table, "<td>",
                    FormatPercent(ReplayResult::Ratio(need.capacity_blocks, report.unique_blocks)),
                    "</td></tr>\n");
  }
  return absl::StrCat(table, "</table></div>\n");
}

// A column for each capacity, with the best policy of each in bold.
std::string RatioTable(const Report& report, double (ReplayResult::*ratio)() const) {
  const auto value = [&](size_t policy, size_t i) {
    return (report.result(policy, i).replay.*ratio)();
  };
  std::string table = "<div class=\"scroll\"><table><tr><th>policy</th>";
  for (size_t capacity : report.capacities) {
    absl::StrAppend(&table, "<th>", FormatCount(capacity), "</th>");
  }
  absl::StrAppend(&table, "</tr>\n");
  for (size_t policy = 0; policy < report.policies.size(); ++policy) {
    absl::StrAppend(&table, "<tr><td><span class=\"key ", ClassOf(policy), "\"></span>",
                    EscapeHtml(report.policies[policy]), "</td>");
    for (size_t i = 0; i < report.capacities.size(); ++i) {
      double best = 0;
      for (size_t other = 0; other < report.policies.size(); ++other) {
        best = std::max(best, value(other, i));
      }
      absl::StrAppend(&table, value(policy, i) == best ? "<td class=\"top\">" : "<td>",
                      FormatPercent(value(policy, i)), "</td>");
    }
    absl::StrAppend(&table, "</tr>\n");
  }
  return absl::StrCat(table, "</table></div>\n");
}

}  // namespace

std::string Html(const Report& report) {
  const std::string trace = EscapeHtml(report.trace.substr(report.trace.find_last_of('/') + 1));
  std::string page = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta "
      "name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>How much cache? ",
      trace, "</title>\n<style>", Style(), "</style>\n</head>\n<body>\n");
  absl::StrAppend(&page, "<h1>How much memory, and which policy?</h1>\n<p class=\"soft\">", trace,
                  ": ", FormatCount(report.requests), " requests, ",
                  FormatCount(report.block_references), " references to ",
                  FormatCount(report.unique_blocks), " blocks");
  if (report.tokens_per_block > 0) {
    absl::StrAppend(&page, " of ", FormatCount(report.tokens_per_block), " tokens");
  }
  if (report.bytes_per_token > 0) {
    absl::StrAppend(&page, ", ", FormatCount(report.bytes_per_token), " bytes for each token");
  }
  absl::StrAppend(&page, "; touch order: ", Name(report.touch_order));
  if (report.skipped_lines > 0) {
    absl::StrAppend(&page, "; ", FormatCount(report.skipped_lines), " malformed lines skipped");
  }
  absl::StrAppend(&page, "</p>\n", Answer(report));
  absl::StrAppend(&page, "<h2>Hits over memory</h2>\n", HitChart(report).Svg());
  absl::StrAppend(
      &page, "<p class=\"soft\">With memory for everything, ",
      FormatPercent(report.sweep.possible_prefix_hit_ratio),
      " of the references would be hits: the rest is seen for the first time. The optimum "
      "gives up the block that is used again the latest (Belady); its hits are plain "
      "ones.</p>\n");
  absl::StrAppend(&page, "<h2>Memory for ", 100 * kEnough, " % of the possible hits</h2>\n",
                  NeedTable(report));
  absl::StrAppend(&page,
                  "<h2>Prefix hits</h2>\n<p class=\"soft\">Blocks that were there with all "
                  "before them when their request came, of all block references.</p>\n",
                  RatioTable(report, &ReplayResult::prefix_hit_ratio));
  absl::StrAppend(&page,
                  "<h2>Token hits</h2>\n<p class=\"soft\">Tokens in those blocks, of all "
                  "prompt tokens: the compute that is saved.</p>\n",
                  RatioTable(report, &ReplayResult::token_hit_ratio));
  absl::StrAppend(&page,
                  "<h2>Plain hits</h2>\n<p class=\"soft\">Blocks that were there when their "
                  "turn came, of all block references.</p>\n",
                  RatioTable(report, &ReplayResult::plain_hit_ratio));
  return absl::StrCat(page, "</body>\n</html>\n");
}

}  // namespace kvcache::bench
