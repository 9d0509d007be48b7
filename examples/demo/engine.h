#ifndef KVCACHE_EXAMPLES_DEMO_ENGINE_H_
#define KVCACHE_EXAMPLES_DEMO_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/examples/demo/prefix_store.h"
#include "kvcache/examples/demo/workload.h"
#include "kvcache/examples/transformer/kv_state.h"
#include "kvcache/examples/transformer/transformer.h"

namespace kvcache::examples {

// How one request was served.
struct Sample {
  absl::Duration time;      // from the tokens to the last logits, on the clock on the wall
  absl::Duration in_store;  // of it: keys, look-up and copies
  // What the model took of the processor. It is not the clock on the wall, so that sums can be
  // compared whose summands come from moments when other programs were more or less busy.
  absl::Duration computing;
  size_t restored_tokens = 0;
  absl::Status kept;  // whether what was computed of the prompt could be kept
};

// Serves one request after the other with a model, on the calling thread.
class Engine {
 public:
  // Each request is answered by the logits after its last token and then by `decode` more tokens,
  // of which each is the most likely one. REQUIRES: the model takes the requests' tokens and those.
  Engine(std::unique_ptr<Transformer> model, int decode);

  const Transformer& model() const { return *model_; }
  // Floats of an answer.
  size_t answer_size() const;

  // Sets `answer` [answer_size()] to the logits, one vector after the other. With a store, the
  // prompt comes from there as far as it can, and goes there as far as it did not; without one
  // (nullptr), all of the request is computed in one piece.
  //
  // Before the clock starts, the working K and V are filled with NaN, so that nothing can be right
  // that was neither computed nor restored.
  absl::StatusOr<Sample> Serve(const Request& request, PrefixStore* store,
                               absl::Span<float> answer);

 private:
  // Transformer::Forward(), with its time added to `computing`.
  absl::Status Forward(absl::Span<const int32_t> tokens, absl::Span<float> logits,
                       absl::Duration& computing);

  const std::unique_ptr<Transformer> model_;
  const int decode_;
  KvState kv_;

  // Of all that computed at least some of a prompt: what tokens of prompts cost. One measurement
  // alone would be at the mercy of what else the machine did at that moment.
  absl::Duration prefill_time_;
  int64_t prefill_tokens_ = 0;
};

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_ENGINE_H_
