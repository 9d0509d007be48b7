#include "kvcache/examples/demo/engine.h"

#include <time.h>

#include <utility>

namespace kvcache::examples {
namespace {

// The time since it was made, by one of the system's clocks.
class Stopwatch {
 public:
  explicit Stopwatch(clockid_t clock) : clock_(clock), start_(Now()) {}
  absl::Duration Elapsed() const { return Now() - start_; }

 private:
  absl::Duration Now() const {
    timespec now;
    clock_gettime(clock_, &now);
    return absl::DurationFromTimespec(now);
  }

  const clockid_t clock_;
  const absl::Duration start_;
};

}  // namespace

Engine::Engine(std::unique_ptr<Transformer> model, int decode)
    : model_(std::move(model)), decode_(decode), kv_(model_->NewKvState()) {}

size_t Engine::answer_size() const {
  return static_cast<size_t>(1 + decode_) * model_->config().vocabulary;
}

absl::StatusOr<Sample> Engine::Serve(const Request& request, PrefixStore* store,
                                     absl::Span<float> answer) {
  const size_t vocabulary = model_->config().vocabulary;
  Sample sample;
  kv_.Poison();

  const Stopwatch total(CLOCK_MONOTONIC);
  if (store != nullptr) {
    const absl::StatusOr<size_t> restored = store->Restore(request.prompt(), kv_);
    if (!restored.ok()) return restored.status();
    sample.restored_tokens = *restored;
    sample.in_store = total.Elapsed();
  }
  const absl::Span<const int32_t> rest =
      absl::MakeConstSpan(request.tokens).subspan(sample.restored_tokens);
  if (absl::Status s = Forward(rest, answer.first(vocabulary), sample.computing); !s.ok()) return s;
  const size_t missed = request.prompt_tokens - sample.restored_tokens;
  if (missed > 0) {
    prefill_time_ += sample.computing;
    prefill_tokens_ += rest.size();
  }
  if (missed > 0 && store != nullptr) {
    const Stopwatch keep(CLOCK_MONOTONIC);
    sample.kept = store->Keep(request.prompt(), sample.restored_tokens, kv_,
                              prefill_time_ / prefill_tokens_ * missed);
    sample.in_store += keep.Elapsed();
  }
  for (int i = 0; i < decode_; ++i) {
    const int32_t token = GreedyToken(answer.subspan(i * vocabulary, vocabulary));
    const absl::Span<float> logits = answer.subspan((i + 1) * vocabulary, vocabulary);
    if (absl::Status s = Forward({&token, 1}, logits, sample.computing); !s.ok()) return s;
  }
  sample.time = total.Elapsed();
  return sample;
}

absl::Status Engine::Forward(absl::Span<const int32_t> tokens, absl::Span<float> logits,
                             absl::Duration& computing) {
  const Stopwatch stopwatch(CLOCK_THREAD_CPUTIME_ID);
  absl::Status status = model_->Forward(kv_, tokens, logits);
  computing += stopwatch.Elapsed();
  return status;
}

}  // namespace kvcache::examples
