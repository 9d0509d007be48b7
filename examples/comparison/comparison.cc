// The same requests without and with a cache of whole prompts.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kvcache/examples/demo/demo.h"
#include "kvcache/examples/demo/flags.h"

ABSL_FLAG(int, requests, 100, "requests");
ABSL_FLAG(int, decode, 0, "tokens to generate after each request");

namespace kvcache::examples {
namespace {

constexpr char kUsage[] =
    "Answers questions about three documents with a small transformer, without and with a cache "
    "of\n"
    "the documents' K and V, and compares times and answers.\n"
    "\n"
    "  --requests=N            requests (default: 100)\n"
    "  --decode=N              tokens to generate after each request (default: 0)\n";

double Throughput(const Results& results) {
  return results.with[0].latency.tokens_per_s / results.without.tokens_per_s;
}

double Speedup(const Results& results, absl::Duration Latency::*time) {
  return absl::FDivDuration(results.without.*time, results.with[0].latency.*time);
}

JsonObject LatencyJson(const Latency& latency) {
  return JsonObject()
      .Add("p50_ms", absl::ToDoubleMilliseconds(latency.p50))
      .Add("p95_ms", absl::ToDoubleMilliseconds(latency.p95))
      .Add("p99_ms", absl::ToDoubleMilliseconds(latency.p99))
      .Add("mean_ms", absl::ToDoubleMilliseconds(latency.mean))
      .Add("tokens_per_s", latency.tokens_per_s);
}

JsonObject Json(const Results& results) {
  const StoreResult& with = results.with[0];
  const Rate hits = with.reuse.requests;
  return JsonObject()
      .Add("requests", results.requests)
      .Add("unique_prefixes", results.unique_prompts)
      .Add("cold_requests", hits.whole - hits.part)
      .Add("request_hit_rate", hits.value())
      .Add("token_hit_rate", with.reuse.tokens.value())
      .Add("layer_hit_rate", with.reuse.layers.value())
      .Add("logits_mismatches", with.logits_mismatches)
      .Add("without_cache", LatencyJson(results.without))
      .Add("with_cache", LatencyJson(with.latency))
      .Add("speedup", JsonObject()
                          .Add("p50", Speedup(results, &Latency::p50))
                          .Add("mean", Speedup(results, &Latency::mean))
                          .Add("throughput", Throughput(results)));
}

std::string Table(const Results& results) {
  const Latency& without = results.without;
  const Latency& with = results.with[0].latency;
  auto row = [&](const char* label, absl::Duration Latency::*time) -> TableRow {
    return {label, FormatMs(without.*time), FormatMs(with.*time),
            FormatFactor(Speedup(results, time))};
  };
  const std::vector<TableRow> times = {
      {"time of a request", "without cache", "with cache", "speed-up"},
      row("P50", &Latency::p50),
      row("P95", &Latency::p95),
      row("P99", &Latency::p99),
      row("mean", &Latency::mean),
      {"tokens/s", FormatCount(static_cast<uint64_t>(without.tokens_per_s)),
       FormatCount(static_cast<uint64_t>(with.tokens_per_s)), FormatFactor(Throughput(results))},
  };
  return absl::StrCat(FormatTable(times), "\n", FormatTable(ReuseRows(results)));
}

}  // namespace
}  // namespace kvcache::examples

int main(int argc, char** argv) {
  using namespace kvcache::examples;  // NOLINT
  ParseCommandLine(argc, argv, kUsage);
  return RunDemo({.prompts = DocumentPrompts(),
                  .requests = absl::GetFlag(FLAGS_requests),
                  .decode = absl::GetFlag(FLAGS_decode),
                  .stores = {{"whole prompts", MakeWholePromptStore}},
                  .json = Json,
                  .table = Table});
}
