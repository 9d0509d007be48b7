#include "kvcache/examples/demo/measure.h"

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/examples/demo/prefix_store.h"

namespace kvcache::examples {
namespace {

constexpr uint32_t kTokensPerBlock = 16;
constexpr int kDecode = 2;

std::unique_ptr<Transformer> SmallModel() {
  TransformerConfig config;
  config.layers = 2;
  config.model_dim = 64;
  config.ff_dim = 96;
  config.vocabulary = 96;
  config.max_tokens = 100;
  absl::StatusOr<std::unique_ptr<Transformer>> model = Transformer::Create(config);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

std::vector<int32_t> Tokens(int count, int seed) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back((i * 7 + seed * 31) % 96);
  return tokens;
}

// A prompt of 48 shared tokens and 22 of its own, and a turn of 5.
Request RequestOf(int prompt, int turn) {
  Request request = {static_cast<size_t>(prompt), 70, Tokens(48, 0)};
  for (int token : Tokens(22, prompt + 1)) request.tokens.push_back(token);
  for (int token : Tokens(5, turn + 10)) request.tokens.push_back(token);
  return request;
}

std::unique_ptr<PrefixStore> WholePrompts(const Transformer& model, size_t capacity_bytes) {
  auto backend = CreateCpuRamBackend({.capacity_bytes = capacity_bytes});
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto store = MakeWholePromptStore(model, *std::move(backend), CreateLruPolicy());
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

std::unique_ptr<PrefixStore> TokenBlocks(const Transformer& model, size_t capacity_bytes) {
  auto backend = CreateCpuRamBackend({.capacity_bytes = capacity_bytes});
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto store = MakeTokenBlockStore(model, kTokensPerBlock, *std::move(backend), CreateLruPolicy());
  EXPECT_TRUE(store.ok()) << store.status();
  return *std::move(store);
}

std::vector<size_t> Restored(const Measured::WithStore& with) {
  std::vector<size_t> restored;
  for (const Sample& sample : with.samples) restored.push_back(sample.restored_tokens);
  return restored;
}

class MeasureTest : public testing::Test {
 protected:
  Measured MeasureAll(PrefixStore* store) {
    absl::StatusOr<Measured> measured =
        Measure(engine_, requests_, {&store, 1}, [](size_t) { return true; });
    EXPECT_TRUE(measured.ok()) << measured.status();
    return *std::move(measured);
  }

  Engine engine_{SmallModel(), kDecode};
  const std::vector<Request> requests_ = {RequestOf(0, 0), RequestOf(0, 1), RequestOf(1, 2),
                                          RequestOf(1, 3), RequestOf(0, 4)};
};

constexpr size_t kEnough = 4 << 20;
// A token of the small model is 1 KiB: room for two blocks of 16, and for no prompt.
constexpr size_t kTooLittle = 40 << 10;

TEST_F(MeasureTest, WholePromptsAreRestoredAsAWholeOrNotAtAll) {
  const auto store = WholePrompts(engine_.model(), kEnough);
  const Measured measured = MeasureAll(store.get());
  EXPECT_EQ(Restored(measured.with[0]), (std::vector<size_t>{0, 70, 0, 70, 70}));
  EXPECT_EQ(measured.with[0].logits_mismatches, 0u);
  EXPECT_EQ(measured.logits, requests_.size() * (1 + kDecode) * 96);
  EXPECT_EQ(store->stats().counters.block_hits, 3u);
  EXPECT_GT(store->stats().counters.compute_saved, absl::ZeroDuration());
}

TEST_F(MeasureTest, TokenBlocksAreRestoredAsFarAsPromptsAgree) {
  const auto store = TokenBlocks(engine_.model(), kEnough);
  const Measured measured = MeasureAll(store.get());
  EXPECT_EQ(Restored(measured.with[0]), (std::vector<size_t>{0, 70, 48, 70, 70}));
  EXPECT_EQ(measured.with[0].logits_mismatches, 0u);
  EXPECT_EQ(store->stats().counters.tokens_found, 3 * 70u + 48);
}

TEST_F(MeasureTest, AnswersAreRightAndRefusalsAreToldWhenTheCacheIsTooSmall) {
  for (const auto& [store, restored] :
       {std::pair(WholePrompts(engine_.model(), kTooLittle).release(), 0u),
        std::pair(TokenBlocks(engine_.model(), kTooLittle).release(), 32u)}) {
    const std::unique_ptr<PrefixStore> owner(store);
    const Measured measured = MeasureAll(store);
    EXPECT_EQ(measured.with[0].logits_mismatches, 0u);
    EXPECT_EQ(Restored(measured.with[0]),
              (std::vector<size_t>{0, restored, restored, restored, restored}));
    for (const Sample& sample : measured.with[0].samples) EXPECT_FALSE(sample.kept.ok());
  }
}

// Restores the prompt with the sign of one number changed.
class WrongStore : public PrefixStore {
 public:
  explicit WrongStore(std::unique_ptr<PrefixStore> store) : store_(std::move(store)) {}

  absl::StatusOr<size_t> Restore(absl::Span<const int32_t> prompt, KvState& kv) override {
    absl::StatusOr<size_t> restored = store_->Restore(prompt, kv);
    kv.mutable_v(1)[3] *= -1;
    return restored;
  }
  absl::Status Keep(absl::Span<const int32_t> prompt, size_t restored, KvState& kv,
                    absl::Duration compute) override {
    return store_->Keep(prompt, restored, kv, compute);
  }
  CacheStats stats() const override { return store_->stats(); }

 private:
  const std::unique_ptr<PrefixStore> store_;
};

TEST_F(MeasureTest, OneWrongNumberInTheCacheIsNoticed) {
  WrongStore store(WholePrompts(engine_.model(), kEnough));
  EXPECT_GT(MeasureAll(&store).with[0].logits_mismatches, 0u);
}

TEST_F(MeasureTest, StopsBetweenRequestsWhenAsked) {
  const auto store = WholePrompts(engine_.model(), kEnough);
  PrefixStore* const stores[] = {store.get()};
  const absl::StatusOr<Measured> measured =
      Measure(engine_, requests_, stores, [](size_t done) { return done < 2; });
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->without.size(), 2u);
  EXPECT_EQ(measured->with[0].samples.size(), 2u);
}

TEST_F(MeasureTest, TellsWhyAModelRefusesARequest) {
  Request too_long = RequestOf(0, 0);
  too_long.tokens.resize(99);
  const absl::StatusOr<Measured> measured =
      Measure(engine_, {&too_long, 1}, {}, [](size_t) { return true; });
  EXPECT_EQ(measured.status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace kvcache::examples
