#include "kvcache/examples/demo/workload.h"

#include <algorithm>
#include <random>
#include <utility>

#include "kvcache/examples/transformer/tokenizer.h"

namespace kvcache::examples {

std::vector<Request> MakeRequests(absl::Span<const Prompt> prompts, size_t count, int vocabulary,
                                  uint64_t seed) {
  std::vector<Request> requests(count);
  for (size_t i = 0; i < count; ++i) {
    Request& request = requests[i];
    request.prompt_id = i % prompts.size();
    const Prompt& prompt = prompts[request.prompt_id];
    request.tokens = Tokenize(prompt.text, vocabulary);
    request.prompt_tokens = request.tokens.size();
    const std::vector<int32_t> turn =
        Tokenize(prompt.turns[i / prompts.size() % prompt.turns.size()], vocabulary);
    request.tokens.insert(request.tokens.end(), turn.begin(), turn.end());
  }
  // Not std::shuffle, whose order is another one in every standard library.
  std::mt19937_64 random(seed);
  for (size_t i = count; i > 1; --i) std::swap(requests[i - 1], requests[random() % i]);
  return requests;
}

size_t MostTokens(absl::Span<const Request> requests) {
  size_t most = 0;
  for (const Request& request : requests) most = std::max(most, request.tokens.size());
  return most;
}

}  // namespace kvcache::examples
