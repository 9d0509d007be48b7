#include "kvcache/examples/demo/demo.h"

#include <cstdio>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kvcache/examples/demo/engine.h"
#include "kvcache/examples/demo/flags.h"
#include "kvcache/examples/demo/measure.h"
#include "kvcache/examples/demo/summary.h"
#include "kvcache/examples/demo/terminal.h"
#include "kvcache/examples/demo/workload.h"
#include "kvcache/examples/transformer/instruction_set.h"

namespace kvcache::examples {
namespace {

constexpr int kMostRequests = 100'000;
constexpr int kMostDecoded = 2048;

using Stores = std::vector<std::unique_ptr<PrefixStore>>;

absl::StatusOr<Stores> MakeStores(const Demo& demo, const CommonFlags& flags,
                                  const Transformer& model) {
  Stores stores;
  for (const Demo::Store& store : demo.stores) {
    absl::StatusOr<std::unique_ptr<StorageBackend>> backend = MakeBackend(flags);
    if (!backend.ok()) return backend.status();
    absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy = MakePolicy(flags);
    if (!policy.ok()) return policy.status();
    absl::StatusOr<std::unique_ptr<PrefixStore>> made =
        store.make(model, *std::move(backend), *std::move(policy));
    if (!made.ok()) return made.status();
    stores.push_back(*std::move(made));
  }
  return stores;
}

Results Summarize(const Demo& demo, const Transformer& model, absl::Span<const Request> requests,
                  const Measured& measured, const Stores& stores) {
  Results results = {.requests = requests.size(),
                     .unique_prompts = UniquePrompts(requests),
                     .layers = model.config().layers,
                     .logits = measured.logits,
                     .without = SummarizeLatency(requests, measured.without, demo.decode),
                     .with = {}};
  for (size_t i = 0; i < stores.size(); ++i) {
    const std::vector<Sample>& samples = measured.with[i].samples;
    results.with.push_back(
        {.name = demo.stores[i].name,
         .latency = SummarizeLatency(requests, samples, demo.decode),
         .reuse = SummarizeReuse(requests, measured.without, samples, results.layers),
         .stats = stores[i]->stats(),
         .logits_mismatches = measured.with[i].logits_mismatches});
  }
  return results;
}

std::string Title(const Results& results, const CommonFlags& flags, const Transformer& model) {
  return absl::StrCat(FormatCount(results.requests), " requests over ", results.unique_prompts,
                      " prompts; a transformer of ", results.layers, " layers, f32, ",
                      Name(model.instruction_set()), "; ", flags.backend, " of ",
                      FormatCount(flags.capacity_bytes >> 20), " MiB, ", flags.policy, "; seed ",
                      flags.seed, "\n");
}

// The exit code.
absl::StatusOr<int> Run(const Demo& demo) {
  absl::StatusOr<CommonFlags> flags = CheckCommonFlags();
  if (!flags.ok()) return flags.status();
  if (absl::Status s = CheckRange("requests", demo.requests, 1, kMostRequests); !s.ok()) return s;
  if (absl::Status s = CheckRange("decode", demo.decode, 0, kMostDecoded); !s.ok()) return s;

  const std::vector<Request> requests =
      MakeRequests(demo.prompts, demo.requests, flags->model.vocabulary, flags->seed);
  flags->model.max_tokens = static_cast<int>(MostTokens(requests)) + demo.decode;
  absl::StatusOr<std::unique_ptr<Transformer>> model = Transformer::Create(flags->model);
  if (!model.ok()) return model.status();
  Engine engine(*std::move(model), demo.decode);
  absl::StatusOr<Stores> stores = MakeStores(demo, *flags, engine.model());
  if (!stores.ok()) return stores.status();
  std::optional<ResultFile> file;
  if (!flags->json.empty()) {
    absl::StatusOr<ResultFile> opened = ResultFile::Open(flags->json);
    if (!opened.ok()) return opened.status();
    file.emplace(*std::move(opened));
  }

  CatchInterrupt();
  absl::StatusOr<Measured> measured;
  {
    ProgressLine progress("request", requests.size());
    std::vector<PrefixStore*> pointers;
    for (const std::unique_ptr<PrefixStore>& store : *stores) pointers.push_back(store.get());
    measured = Measure(engine, requests, pointers, [&](size_t done) {
      progress.Show(done);
      return !Interrupted();
    });
  }
  if (!measured.ok()) return measured.status();
  const size_t served = measured->without.size();
  if (served == 0) {
    std::fprintf(stderr, "interrupted before a request was measured\n");
    return 130;
  }

  const Results results = Summarize(
      demo, engine.model(), absl::MakeConstSpan(requests).first(served), *measured, *stores);
  // First the file: stdout may be a pipe whose reader has seen enough.
  if (file.has_value()) {
    const std::string json = absl::StrCat(demo.json(results).ToString(), "\n");
    if (absl::Status s = file->Write(json); !s.ok()) return s;
  }
  const std::string text = absl::StrCat(Title(results, *flags, engine.model()), "\n",
                                        demo.table(results), "\n", Notes(results));
  if (absl::Status s = Print(text); !s.ok()) return s;
  if (served < requests.size()) {
    std::fprintf(stderr, "interrupted after %zu of %zu requests\n", served, requests.size());
    return 130;
  }
  for (const StoreResult& result : results.with) {
    if (result.logits_mismatches > 0) return 1;
  }
  return 0;
}

}  // namespace

int RunDemo(const Demo& demo) {
  const absl::StatusOr<int> code = Run(demo);
  if (code.ok()) return *code;
  std::fprintf(stderr, "error: %s\n", std::string(code.status().message()).c_str());
  return absl::IsInvalidArgument(code.status()) ? 2 : 1;
}

}  // namespace kvcache::examples
