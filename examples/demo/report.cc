#include "kvcache/examples/demo/report.h"

#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvcache::examples {
namespace {

std::string FormatMiB(size_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

// "27.9 s (+1.8 %)": the part in brackets says how it differs from `reference`.
std::string FormatAgainst(absl::Duration duration, absl::Duration reference) {
  if (reference <= absl::ZeroDuration()) return FormatSeconds(duration);
  const double difference = 100 * (absl::FDivDuration(duration, reference) - 1);
  return absl::StrFormat("%s (%+.1f %%)", FormatSeconds(duration), difference);
}

}  // namespace

std::string FormatMs(absl::Duration duration) {
  return absl::StrFormat("%.1f ms", absl::ToDoubleMilliseconds(duration));
}

std::string FormatSeconds(absl::Duration duration) {
  return absl::StrFormat("%.2f s", absl::ToDoubleSeconds(duration));
}

std::string FormatFactor(double factor) { return absl::StrFormat("%.1fx", factor); }

std::string FormatRate(Rate rate) {
  return absl::StrFormat("%s of %s = %.1f %%", FormatCount(rate.part), FormatCount(rate.whole),
                         100 * rate.value());
}

std::vector<TableRow> ReuseRows(const Results& results) {
  std::vector<TableRow> rows;
  auto add = [&](absl::string_view label,
                 const std::function<std::string(const StoreResult&)>& cell) {
    TableRow& row = rows.emplace_back(1, std::string(label));
    for (const StoreResult& result : results.with) row.push_back(cell(result));
  };
  add("requests hit", [](const StoreResult& r) { return FormatRate(r.reuse.requests); });
  add("layers hit", [](const StoreResult& r) { return FormatRate(r.reuse.layers); });
  add("tokens hit", [](const StoreResult& r) { return FormatRate(r.reuse.tokens); });
  add("cold requests", [](const StoreResult& r) {
    return FormatCount(r.reuse.requests.whole - r.reuse.requests.part);
  });
  add("bytes used", [](const StoreResult& r) {
    return absl::StrCat(FormatMiB(r.stats.usage.bytes_in_use), " of ",
                        FormatMiB(r.stats.capacity_bytes));
  });
  add("time in the cache", [](const StoreResult& r) { return FormatSeconds(r.reuse.in_store); });
  add("time saved",
      [&](const StoreResult& r) { return FormatSeconds(results.without.total - r.latency.total); });
  add("computing saved, stopwatch",
      [](const StoreResult& r) { return FormatSeconds(r.reuse.compute_saved); });
  add("computing saved, stats()", [](const StoreResult& r) {
    return FormatAgainst(r.stats.counters.compute_saved, r.reuse.compute_saved);
  });
  add("logits that differ", [&](const StoreResult& r) {
    return absl::StrCat(FormatCount(r.logits_mismatches), " of ", FormatCount(results.logits));
  });
  return rows;
}

std::string Notes(const Results& results) {
  std::string notes =
      "Times are of one thread, with keys, look-ups, copies in and out, and all computing. Not in\n"
      "them are two checks: before every request the working K and V are filled with NaN, and "
      "after\n"
      "it all logits are compared, bit by bit, with those computed without a cache.\n"
      "A request hits when its whole prompt came from the cache; the others are cold.\n"
      "Computing saved is the model's processor time. By the stopwatch: what requests that found\n"
      "something in the cache took without it, minus what they took with it. By stats(): what all\n"
      "that was found would have taken at the speed that had been measured when it was put.\n";
  for (const StoreResult& result : results.with) {
    const Reuse& reuse = result.reuse;
    if (reuse.puts_refused == 0) continue;
    absl::StrAppend(&notes, result.name, ": the cache refused a put in ",
                    FormatCount(reuse.puts_refused), " of ", FormatCount(reuse.requests.whole),
                    " requests; first: ", reuse.first_refusal.message(), "\n");
  }
  return notes;
}

}  // namespace kvcache::examples
