#ifndef KVCACHE_EXAMPLES_DEMO_SUMMARY_H_
#define KVCACHE_EXAMPLES_DEMO_SUMMARY_H_

#include <cstddef>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/examples/demo/engine.h"
#include "kvcache/examples/demo/workload.h"

namespace kvcache::examples {

// A part of a whole.
struct Rate {
  size_t part = 0;
  size_t whole = 0;
  double value() const { return whole == 0 ? 0 : static_cast<double>(part) / whole; }
};

// The times of some requests.
struct Latency {
  absl::Duration p50, p95, p99, mean, total;
  double tokens_per_s = 0;  // prompt, turn and decoded tokens over `total`
};

// REQUIRES: as many samples, at least one, as requests; `decode` tokens followed each.
Latency SummarizeLatency(absl::Span<const Request> requests, absl::Span<const Sample> samples,
                         int decode);

// What a store was good for.
struct Reuse {
  Rate requests;  // those whose whole prompt came from the store
  Rate layers;    // restored for whole prompts, of those of all requests
  Rate tokens;    // restored, of all prompt and turn tokens
  absl::Duration in_store;
  // What requests for which something was restored took less of Sample::computing.
  absl::Duration compute_saved;
  size_t puts_refused = 0;  // requests whose prompt could not be kept, or not all of it
  absl::Status first_refusal;
};

// REQUIRES: as many samples of both kinds as requests.
Reuse SummarizeReuse(absl::Span<const Request> requests, absl::Span<const Sample> without,
                     absl::Span<const Sample> with, int layers);

// How many different prompts the requests have.
size_t UniquePrompts(absl::Span<const Request> requests);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_SUMMARY_H_
