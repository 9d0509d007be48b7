#ifndef KVCACHE_EXAMPLES_DEMO_WORKLOAD_H_
#define KVCACHE_EXAMPLES_DEMO_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/examples/prompts/prompts.h"

namespace kvcache::examples {

// One of the prompts, followed by one of its turns.
struct Request {
  size_t prompt_id = 0;  // equal for requests with the same prompt
  size_t prompt_tokens = 0;
  std::vector<int32_t> tokens;  // the prompt's, then the turn's

  absl::Span<const int32_t> prompt() const { return absl::MakeSpan(tokens).first(prompt_tokens); }
};

// `count` requests that use all prompts equally often, each prompt with its first turns (with all
// of them again when there are fewer turns than requests), in an order that depends on `seed` only.
// Requires prompts with turns and vocabulary > 0.
std::vector<Request> MakeRequests(absl::Span<const Prompt> prompts, size_t count, int vocabulary,
                                  uint64_t seed);

// Of the longest request; 0 when there is none.
size_t MostTokens(absl::Span<const Request> requests);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_WORKLOAD_H_
