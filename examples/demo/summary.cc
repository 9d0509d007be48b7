#include "kvcache/examples/demo/summary.h"

#include <set>
#include <vector>

#include "kvcache/examples/demo/percentile.h"

namespace kvcache::examples {

Latency SummarizeLatency(absl::Span<const Request> requests, absl::Span<const Sample> samples,
                         int decode) {
  std::vector<absl::Duration> times;
  Latency latency;
  size_t tokens = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    times.push_back(samples[i].time);
    latency.total += samples[i].time;
    tokens += requests[i].tokens.size() + decode;
  }
  latency.p50 = Percentile(times, 50);
  latency.p95 = Percentile(times, 95);
  latency.p99 = Percentile(times, 99);
  latency.mean = latency.total / static_cast<double>(times.size());
  latency.tokens_per_s = static_cast<double>(tokens) / absl::ToDoubleSeconds(latency.total);
  return latency;
}

Reuse SummarizeReuse(absl::Span<const Request> requests, absl::Span<const Sample> without,
                     absl::Span<const Sample> with, int layers) {
  Reuse reuse;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Sample& sample = with[i];
    const size_t hit = sample.restored_tokens == requests[i].prompt_tokens ? 1 : 0;
    reuse.requests.part += hit;
    reuse.requests.whole += 1;
    reuse.layers.part += hit * layers;
    reuse.layers.whole += layers;
    reuse.tokens.part += sample.restored_tokens;
    reuse.tokens.whole += requests[i].tokens.size();
    reuse.in_store += sample.in_store;
    if (sample.restored_tokens > 0) {
      reuse.compute_saved += without[i].computing - sample.computing;
    }
    if (!sample.kept.ok() && ++reuse.puts_refused == 1) reuse.first_refusal = sample.kept;
  }
  return reuse;
}

size_t UniquePrompts(absl::Span<const Request> requests) {
  std::set<size_t> prompts;
  for (const Request& request : requests) prompts.insert(request.prompt_id);
  return prompts.size();
}

}  // namespace kvcache::examples
