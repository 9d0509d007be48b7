#include "kvcache/bench/targets/suite.h"

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "kvcache/examples/demo/json.h"

namespace kvcache::bench {

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double Seconds(const std::function<void()>& f) {
  const auto now = [] {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  f();
  return now() - start;
}

bool Suite::Wants(absl::string_view name) const {
  return absl::StrContains(name, options_.only) || absl::StrContains(options_.only, name);
}

void Suite::Ratio(absl::string_view name, absl::string_view unit, Goal goal, double target,
                  const Round& measured, absl::string_view reference_name, const Round& reference) {
  if (!Wants(name)) return;
  std::vector<double> values, references, ratios;
  for (int round = 0; round < options_.rounds; ++round) {
    references.push_back(reference());
    values.push_back(measured());
    ratios.push_back(values.back() / references.back());
  }
  Add({std::string(name), std::string(unit), goal, target, Median(values),
       std::string(reference_name), Median(references), Median(ratios)});
}

void Suite::Value(absl::string_view name, absl::string_view unit, Goal goal, double target,
                  const Round& measured) {
  if (!Wants(name)) return;
  std::vector<double> values;
  for (int round = 0; round < options_.rounds; ++round) values.push_back(measured());
  const double median = Median(values);
  Add({std::string(name), std::string(unit), goal, target, median, "", 0, median});
}

void Suite::Add(Row row) {
  const char* sign = row.goal == Goal::kAtMost ? "<=" : ">=";
  std::string line = absl::StrFormat("%-7s %-62s %9.4g %s", row.met() ? "met" : "MISSED", row.name,
                                     row.measured, row.unit);
  if (!row.reference_name.empty()) {
    absl::StrAppendFormat(&line, ", %.3g x %s (%.4g)", row.judged, row.reference_name,
                          row.reference);
  }
  std::printf("%s; to reach: %s %.4g\n", line.c_str(), sign, row.target);
  std::fflush(stdout);
  rows_.push_back(std::move(row));
}

std::string Suite::Report() const {
  const auto met = std::count_if(rows_.begin(), rows_.end(), [](const Row& r) { return r.met(); });
  std::printf("%d of %d targets met\n", static_cast<int>(met), static_cast<int>(rows_.size()));
  std::vector<examples::JsonObject> results;
  for (const Row& row : rows_) {
    results.push_back(examples::JsonObject()
                          .Add("name", row.name)
                          .Add("unit", row.unit)
                          .Add("measured", row.measured)
                          .Add("reference", row.reference_name)
                          .Add("reference_value", row.reference)
                          .Add("judged", row.judged)
                          .Add("goal", row.goal == Goal::kAtMost ? "at most" : "at least")
                          .Add("target", row.target)
                          .Add("met", row.met()));
  }
  return examples::JsonObject().Add("results", results).ToString() + "\n";
}

}  // namespace kvcache::bench
