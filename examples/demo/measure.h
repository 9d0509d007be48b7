#ifndef KVCACHE_EXAMPLES_DEMO_MEASURE_H_
#define KVCACHE_EXAMPLES_DEMO_MEASURE_H_

#include <cstddef>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/examples/demo/engine.h"
#include "kvcache/examples/demo/prefix_store.h"
#include "kvcache/examples/demo/workload.h"

namespace kvcache::examples {

// The first requests, as many as were served: element i of everything is requests[i]'s.
struct Measured {
  // With everything computed, and with each of the stores.
  std::vector<Sample> without;
  struct WithStore {
    std::vector<Sample> samples;
    // Logits that are not, bit by bit, those of `without`.
    size_t logits_mismatches = 0;
  };
  std::vector<WithStore> with;
  size_t logits = 0;  // compared with each store
};

// Serves every request without a store and with each of `stores`, one way directly after the other,
// so that all of them see the same machine; who goes first changes with every request. `go_on` is
// asked before every request, with the number of those done; the rest is left out when it says no.
// Errors: those of Engine::Serve().
absl::StatusOr<Measured> Measure(Engine& engine, absl::Span<const Request> requests,
                                 absl::Span<PrefixStore* const> stores,
                                 absl::FunctionRef<bool(size_t done)> go_on);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_MEASURE_H_
