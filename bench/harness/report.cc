#include "kvcache/bench/harness/report.h"

#include <stdlib.h>

#include <fstream>
#include <limits>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kvcache/examples/demo/json.h"
#include "kvcache/examples/demo/table.h"

namespace kvcache::bench {
namespace {

using examples::JsonObject;

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (absl::StartsWith(line, "model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string FormatLoad(const std::array<double, 3>& load) {
  return absl::StrFormat("%.2f %.2f %.2f", load[0], load[1], load[2]);
}

JsonObject LoadJson(const std::array<double, 3>& load) {
  return JsonObject().Add("1_min", load[0]).Add("5_min", load[1]).Add("15_min", load[2]);
}

std::string FormatMicroseconds(double us) {
  return absl::StrFormat("%.*f", us < 10 ? 2 : us < 100 ? 1 : 0, us);
}

}  // namespace

std::array<double, 3> LoadAverage() {
  std::array<double, 3> load;
  load.fill(std::numeric_limits<double>::quiet_NaN());
  getloadavg(load.data(), static_cast<int>(load.size()));
  return load;
}

std::string FormatPayload(size_t bytes) {
  return bytes % (size_t{1} << 20) == 0 ? absl::StrCat(bytes >> 20, " MiB")
                                        : absl::StrCat(bytes >> 10, " KiB");
}

std::string Table(const Report& report) {
  std::string text;
  for (const Report::Skipped& skipped : report.skipped) {
    absl::StrAppend(&text, skipped.system, ": skipped, ", skipped.reason, "\n");
  }
  for (const Operation operation : kOperations) {
    std::vector<examples::TableRow> rows;
    for (const Result& result : report.results) {
      if (result.operation != operation) continue;
      if (rows.empty()) {
        rows.push_back(
            {std::string(Name(operation)), "payload", "GB/s", "ops/s", "P50 us", "P99 us"});
      }
      const Figures& figures = result.figures;
      // Nothing is moved without a copy.
      const bool moves = operation != Operation::kGetZeroCopy;
      rows.push_back({result.system, FormatPayload(result.payload_bytes),
                      moves ? absl::StrFormat("%.2f", figures.gb_per_s) : "-",
                      examples::FormatCount(static_cast<uint64_t>(figures.ops_per_s)),
                      FormatMicroseconds(figures.p50_us), FormatMicroseconds(figures.p99_us)});
    }
    if (!rows.empty()) absl::StrAppend(&text, "\n", examples::FormatTable(rows));
  }
  absl::StrAppend(&text, "\n", CpuModel(), ", ", std::thread::hardware_concurrency(),
                  " cores; each store may take ", report.working_set_mb, " MiB; medians of ",
                  report.rounds, " rounds; load average ", FormatLoad(report.load_before),
                  " before, ", FormatLoad(report.load_after), " after\n");
  return text;
}

std::string Json(const Report& report) {
  std::vector<JsonObject> results;
  for (const Result& result : report.results) {
    results.push_back(JsonObject()
                          .Add("system", result.system)
                          .Add("operation", Name(result.operation))
                          .Add("payload_bytes", static_cast<double>(result.payload_bytes))
                          .Add("gb_per_s", result.figures.gb_per_s)
                          .Add("ops_per_s", result.figures.ops_per_s)
                          .Add("p50_us", result.figures.p50_us)
                          .Add("p99_us", result.figures.p99_us));
  }
  JsonObject skipped;
  for (const Report::Skipped& one : report.skipped) skipped.Add(one.system, one.reason);
  return JsonObject()
      .Add("cpu_model", CpuModel())
      .Add("cores", std::thread::hardware_concurrency())
      .Add("working_set_mb", static_cast<double>(report.working_set_mb))
      .Add("rounds", static_cast<double>(report.rounds))
      .Add("load_average_before", LoadJson(report.load_before))
      .Add("load_average_after", LoadJson(report.load_after))
      .Add("skipped", skipped)
      .Add("results", results)
      .ToString();
}

}  // namespace kvcache::bench
