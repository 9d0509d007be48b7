#include "kvcache/examples/demo/measure.h"

#include <cstring>
#include <utility>

namespace kvcache::examples {
namespace {

size_t CountDifferent(absl::Span<const float> a, absl::Span<const float> b) {
  if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return 0;
  size_t different = 0;
  for (size_t i = 0; i < a.size(); ++i) different += std::memcmp(&a[i], &b[i], sizeof(float)) != 0;
  return different;
}

}  // namespace

absl::StatusOr<Measured> Measure(Engine& engine, absl::Span<const Request> requests,
                                 absl::Span<PrefixStore* const> stores,
                                 absl::FunctionRef<bool(size_t done)> go_on) {
  const size_t ways = 1 + stores.size();
  // Way 0 is without a store. One buffer for each, so that all see the same caches of the machine.
  std::vector<std::vector<float>> answers(ways, std::vector<float>(engine.answer_size()));
  std::vector<Sample> samples(ways);
  // Whatever runs first is slower; nobody's first request should be.
  if (!requests.empty() && go_on(0)) {
    const absl::StatusOr<Sample> warm_up =
        engine.Serve(requests.front(), nullptr, absl::MakeSpan(answers[0]));
    if (!warm_up.ok()) return warm_up.status();
  }
  Measured measured;
  measured.with.resize(stores.size());
  for (size_t done = 0; done < requests.size() && go_on(done); ++done) {
    for (size_t turn = 0; turn < ways; ++turn) {
      const size_t way = (done + turn) % ways;
      absl::StatusOr<Sample> sample = engine.Serve(
          requests[done], way == 0 ? nullptr : stores[way - 1], absl::MakeSpan(answers[way]));
      if (!sample.ok()) return sample.status();
      samples[way] = *std::move(sample);
    }
    measured.logits += engine.answer_size();
    measured.without.push_back(samples[0]);
    for (size_t i = 0; i < stores.size(); ++i) {
      measured.with[i].samples.push_back(samples[i + 1]);
      measured.with[i].logits_mismatches += CountDifferent(answers[0], answers[i + 1]);
    }
  }
  return measured;
}

}  // namespace kvcache::examples
