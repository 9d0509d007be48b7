// An agent's steps, with all layers cached: whole prompts or their longest known beginning.
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kvcache/examples/demo/demo.h"
#include "kvcache/examples/demo/flags.h"

ABSL_FLAG(int, requests, 50, "requests");

namespace kvcache::examples {
namespace {

constexpr char kUsage[] =
    "Takes the steps of an agent's five tasks, whose prompts share the system prompt and the list "
    "of\n"
    "tools, with a small transformer: without a cache, with one that knows whole prompts, and "
    "with\n"
    "one that finds the longest beginning. All layers are cached. Compares times and answers.\n"
    "\n"
    "  --requests=N            requests (default: 50)\n";

constexpr uint32_t kTokensPerBlock = 16;

double Speedup(const Results& results, const StoreResult& with) {
  return absl::FDivDuration(results.without.total, with.latency.total);
}

JsonObject StoreJson(const Results& results, const StoreResult& with) {
  const absl::Duration saved = results.without.total - with.latency.total;
  return JsonObject()
      .Add("request_hit_rate", with.reuse.requests.value())
      .Add("layer_hit_rate", with.reuse.layers.value())
      .Add("token_hit_rate", with.reuse.tokens.value())
      .Add("total_ms_without", absl::ToDoubleMilliseconds(results.without.total))
      .Add("total_ms_with", absl::ToDoubleMilliseconds(with.latency.total))
      .Add("speedup", Speedup(results, with))
      .Add("time_saved_s", absl::ToDoubleSeconds(saved))
      .Add("logits_mismatches", with.logits_mismatches);
}

JsonObject Json(const Results& results) {
  return JsonObject()
      .Add("requests", results.requests)
      .Add("unique_prompts", results.unique_prompts)
      .Add("layers", results.layers)
      .Add("whole_prompt", StoreJson(results, results.with[0]))
      .Add("longest_prefix", StoreJson(results, results.with[1]));
}

std::string Table(const Results& results) {
  std::vector<TableRow> rows = {
      {"", "without cache"}, {"P50 of a request"}, {"mean"}, {"total"}, {"speed-up", ""}};
  auto add = [&](const Latency& latency) {
    rows[1].push_back(FormatMs(latency.p50));
    rows[2].push_back(FormatMs(latency.mean));
    rows[3].push_back(FormatSeconds(latency.total));
  };
  add(results.without);
  for (const StoreResult& with : results.with) {
    rows[0].push_back(with.name);
    add(with.latency);
    rows[4].push_back(FormatFactor(Speedup(results, with)));
  }
  for (TableRow& row : ReuseRows(results)) {
    row.insert(row.begin() + 1, "");
    rows.push_back(std::move(row));
  }
  return FormatTable(rows);
}

}  // namespace
}  // namespace kvcache::examples

int main(int argc, char** argv) {
  using namespace kvcache::examples;  // NOLINT
  ParseCommandLine(argc, argv, kUsage);
  return RunDemo({.prompts = AgentPrompts(),
                  .requests = absl::GetFlag(FLAGS_requests),
                  .stores = {{"whole prompts", MakeWholePromptStore},
                             {"longest prefix",
                              [](const Transformer& model, auto backend, auto policy) {
                                return MakeTokenBlockStore(model, kTokensPerBlock,
                                                           std::move(backend), std::move(policy));
                              }}},
                  .json = Json,
                  .table = Table});
}
