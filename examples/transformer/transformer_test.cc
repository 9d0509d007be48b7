#include "kvcache/examples/transformer/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/examples/transformer/instruction_set.h"
#include "kvcache/examples/transformer/kv_state.h"
#include "kvcache/examples/transformer/weights.h"

namespace kvcache::examples {
namespace {

TransformerConfig SmallConfig() {
  TransformerConfig config;
  config.layers = 3;
  config.model_dim = 64;
  config.ff_dim = 96;
  config.vocabulary = 96;
  config.max_tokens = 300;
  return config;
}

std::vector<int32_t> SomeTokens(int count, int vocabulary) {
  std::vector<int32_t> tokens;
  uint32_t random = 1;
  for (int i = 0; i < count; ++i) {
    random = random * 1664525 + 1013904223;
    tokens.push_back(static_cast<int32_t>((random >> 8) % static_cast<uint32_t>(vocabulary)));
  }
  return tokens;
}

std::unique_ptr<Transformer> MakeTransformer(const TransformerConfig& config) {
  absl::StatusOr<std::unique_ptr<Transformer>> transformer = Transformer::Create(config);
  EXPECT_TRUE(transformer.ok()) << transformer.status();
  return *std::move(transformer);
}

std::vector<float> Forward(Transformer& transformer, KvState& kv,
                           absl::Span<const int32_t> tokens) {
  std::vector<float> logits(transformer.config().vocabulary);
  const absl::Status status = transformer.Forward(kv, tokens, absl::MakeSpan(logits));
  EXPECT_TRUE(status.ok()) << status;
  return logits;
}

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool HasNan(absl::Span<const float> values) {
  return std::any_of(values.begin(), values.end(), [](float x) { return std::isnan(x); });
}

// A poisoned state into which the first `tokens` tokens of `from` are restored.
void Restore(const KvState& from, int tokens, KvState& to) {
  to.Poison();
  const size_t size = tokens * from.token_size();
  for (int layer = 0; layer < from.layers(); ++layer) {
    std::copy_n(from.k(layer).begin(), size, to.mutable_k(layer).begin());
    std::copy_n(from.v(layer).begin(), size, to.mutable_v(layer).begin());
  }
  to.SetTokens(tokens);
}

void ExpectSameKv(const KvState& a, const KvState& b) {
  ASSERT_EQ(a.tokens(), b.tokens());
  for (int layer = 0; layer < a.layers(); ++layer) {
    EXPECT_TRUE(SameBits(a.k(layer), b.k(layer))) << "K of layer " << layer;
    EXPECT_TRUE(SameBits(a.v(layer), b.v(layer))) << "V of layer " << layer;
  }
}

// The same model in double precision, token by token, straight from its definition.
class NaiveTransformer {
 public:
  explicit NaiveTransformer(const TransformerConfig& config) : c_(config) {}

  std::vector<double> Logits(absl::Span<const int32_t> tokens) const {
    std::vector<std::vector<double>> x;
    const WeightSource embedding(c_.seed, 0, Matrix::kEmbedding, 1.0);
    for (int32_t token : tokens) {
      std::vector<double>& row = x.emplace_back();
      for (int i = 0; i < c_.model_dim; ++i) {
        row.push_back(embedding[uint64_t{1} * token * c_.model_dim + i]);
      }
    }
    for (int layer = 0; layer < c_.layers; ++layer) Layer(layer, x);
    const std::vector<double> last = Normed(0, Matrix::kFinalGain, x.back());
    return Times(last, 0, Matrix::kHead, c_.vocabulary);
  }

 private:
  std::vector<double> Times(const std::vector<double>& x, int layer, Matrix matrix,
                            int columns) const {
    const WeightSource weight(c_.seed, layer, matrix, 1.0 / x.size());
    std::vector<double> y(columns);
    for (size_t k = 0; k < x.size(); ++k) {
      for (int n = 0; n < columns; ++n) y[n] += x[k] * weight[k * columns + n];
    }
    return y;
  }

  std::vector<double> Normed(int layer, Matrix matrix, const std::vector<double>& x) const {
    const WeightSource gain(c_.seed, layer, matrix, 0.01);
    double squares = 0;
    for (double value : x) squares += value * value;
    std::vector<double> y;
    for (size_t i = 0; i < x.size(); ++i) {
      y.push_back(x[i] / std::sqrt(squares / x.size() + 1e-5) * gain[i]);
    }
    return y;
  }

  void Rotate(std::vector<double>& x, int position) const {
    const int half = c_.head_dim / 2;
    for (size_t head = 0; head < x.size(); head += c_.head_dim) {
      for (int j = 0; j < half; ++j) {
        const double angle = position * std::pow(10000.0, -2.0 * j / c_.head_dim);
        const double a = x[head + j], b = x[head + j + half];
        x[head + j] = a * std::cos(angle) - b * std::sin(angle);
        x[head + j + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }

  void Layer(int layer, std::vector<std::vector<double>>& x) const {
    std::vector<std::vector<double>> keys, values;
    for (size_t t = 0; t < x.size(); ++t) {
      const std::vector<double> h = Normed(layer, Matrix::kAttentionGain, x[t]);
      std::vector<double> q = Times(h, layer, Matrix::kQuery, c_.heads * c_.head_dim);
      keys.push_back(Times(h, layer, Matrix::kKey, c_.kv_heads * c_.head_dim));
      values.push_back(Times(h, layer, Matrix::kValue, c_.kv_heads * c_.head_dim));
      Rotate(q, static_cast<int>(t));
      Rotate(keys.back(), static_cast<int>(t));
      std::vector<double> mixed(q.size());
      for (int head = 0; head < c_.heads; ++head) {
        const int to = head * c_.head_dim;
        const int from = head / (c_.heads / c_.kv_heads) * c_.head_dim;
        std::vector<double> weights;
        double sum = 0;
        for (size_t s = 0; s <= t; ++s) {
          double score = 0;
          for (int e = 0; e < c_.head_dim; ++e) score += q[to + e] * keys[s][from + e];
          weights.push_back(std::exp(score / std::sqrt(c_.head_dim)));
          sum += weights.back();
        }
        for (size_t s = 0; s <= t; ++s) {
          for (int e = 0; e < c_.head_dim; ++e) {
            mixed[to + e] += weights[s] / sum * values[s][from + e];
          }
        }
      }
      Add(Times(mixed, layer, Matrix::kOutput, c_.model_dim), x[t]);
    }
    for (std::vector<double>& row : x) {
      const std::vector<double> h = Normed(layer, Matrix::kFeedForwardGain, row);
      std::vector<double> gate = Times(h, layer, Matrix::kGate, c_.ff_dim);
      const std::vector<double> up = Times(h, layer, Matrix::kUp, c_.ff_dim);
      for (int i = 0; i < c_.ff_dim; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      Add(Times(gate, layer, Matrix::kDown, c_.model_dim), row);
    }
  }

  static void Add(const std::vector<double>& y, std::vector<double>& x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  const TransformerConfig c_;
};

class EveryInstructionSetTest : public testing::TestWithParam<InstructionSet> {
 protected:
  static TransformerConfig With(TransformerConfig config) {
    config.instruction_set = GetParam();
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(Supported, EveryInstructionSetTest,
                         testing::ValuesIn(SupportedInstructionSets()),
                         [](const testing::TestParamInfo<InstructionSet>& info) {
                           std::string name(Name(info.param));
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

TEST_P(EveryInstructionSetTest, AgreesWithTheDefinitionInDoublePrecision) {
  struct Shape {
    int heads, kv_heads, head_dim, tokens;
  };
  for (const Shape& shape :
       {Shape{6, 2, 32, 140}, Shape{4, 4, 64, 33}, Shape{16, 1, 32, 40}, Shape{1, 1, 96, 1}}) {
    TransformerConfig config = With(SmallConfig());
    config.heads = shape.heads;
    config.kv_heads = shape.kv_heads;
    config.head_dim = shape.head_dim;
    const std::unique_ptr<Transformer> transformer = MakeTransformer(config);
    EXPECT_EQ(transformer->instruction_set(), GetParam());
    KvState kv = transformer->NewKvState();
    const std::vector<int32_t> tokens = SomeTokens(shape.tokens, config.vocabulary);
    const std::vector<float> logits = Forward(*transformer, kv, tokens);
    const std::vector<double> expected = NaiveTransformer(config).Logits(tokens);
    double magnitude = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      EXPECT_NEAR(logits[i], expected[i], 1e-4) << shape.heads << " heads, logit " << i;
      magnitude = std::max(magnitude, std::abs(expected[i]));
    }
    EXPECT_GT(magnitude, 0.5);
  }
}

TEST_P(EveryInstructionSetTest, EverySuffixGivesTheSameBitsAfterARestoredPrefix) {
  constexpr int kTokens = 150;
  const std::unique_ptr<Transformer> transformer = MakeTransformer(With(SmallConfig()));
  const std::vector<int32_t> tokens = SomeTokens(kTokens, transformer->config().vocabulary);
  KvState computed = transformer->NewKvState();
  const std::vector<float> expected = Forward(*transformer, computed, tokens);

  KvState restored = transformer->NewKvState();
  for (int prefix = 0; prefix < kTokens; ++prefix) {
    SCOPED_TRACE(prefix);
    Restore(computed, prefix, restored);
    const std::vector<float> logits =
        Forward(*transformer, restored, absl::MakeSpan(tokens).subspan(prefix));
    EXPECT_FALSE(HasNan(logits));
    EXPECT_TRUE(SameBits(logits, expected));
    ExpectSameKv(restored, computed);
  }
}

TEST_P(EveryInstructionSetTest, TheLogitsOfAPromptDoNotDependOnHowItIsDivided) {
  const std::unique_ptr<Transformer> transformer = MakeTransformer(With(SmallConfig()));
  const std::vector<int32_t> tokens = SomeTokens(270, transformer->config().vocabulary);
  KvState whole = transformer->NewKvState();
  const std::vector<float> expected = Forward(*transformer, whole, tokens);
  for (size_t piece : {1, 7, 16, 150}) {
    KvState kv = transformer->NewKvState();
    kv.Poison();
    std::vector<float> logits;
    for (size_t done = 0; done < tokens.size(); done += piece) {
      logits = Forward(*transformer, kv, absl::MakeSpan(tokens).subspan(done, piece));
    }
    EXPECT_TRUE(SameBits(logits, expected)) << "pieces of " << piece;
    ExpectSameKv(kv, whole);
  }
}

TEST_P(EveryInstructionSetTest, TheDefaultModelGivesTheSameBitsAfterARestoredPrefix) {
  const std::unique_ptr<Transformer> transformer = MakeTransformer(With(TransformerConfig{}));
  const std::vector<int32_t> tokens = SomeTokens(150, transformer->config().vocabulary);
  KvState computed = transformer->NewKvState();
  const std::vector<float> expected = Forward(*transformer, computed, tokens);
  KvState restored = transformer->NewKvState();
  for (int suffix : {1, 2, 13, 16, 20, 37}) {
    SCOPED_TRACE(suffix);
    const int prefix = static_cast<int>(tokens.size()) - suffix;
    Restore(computed, prefix, restored);
    EXPECT_TRUE(SameBits(Forward(*transformer, restored, absl::MakeSpan(tokens).subspan(prefix)),
                         expected));
  }
}

class TransformerTest : public testing::Test {
 protected:
  TransformerTest()
      : transformer_(MakeTransformer(SmallConfig())),
        tokens_(SomeTokens(100, SmallConfig().vocabulary)),
        computed_(transformer_->NewKvState()),
        expected_(Forward(*transformer_, computed_, tokens_)) {}

  // The logits after the last 16 tokens, the K and V of the others being those of `kv`.
  std::vector<float> AfterSuffix(KvState& kv) {
    return Forward(*transformer_, kv, absl::MakeSpan(tokens_).subspan(kPrefix));
  }

  static constexpr int kPrefix = 84;
  const std::unique_ptr<Transformer> transformer_;
  const std::vector<int32_t> tokens_;
  KvState computed_;
  const std::vector<float> expected_;
};

TEST_F(TransformerTest, UsesTheFastestInstructionSetByDefault) {
  EXPECT_EQ(transformer_->instruction_set(), SupportedInstructionSets().back());
}

TEST_F(TransformerTest, TheSignOfOneCachedElementChangesTheLogits) {
  KvState kv = transformer_->NewKvState();
  for (int layer = 0; layer < kv.layers(); ++layer) {
    for (size_t element : {size_t{3}, kPrefix * kv.token_size() - 1}) {
      Restore(computed_, kPrefix, kv);
      kv.mutable_k(layer)[element] *= -1;
      EXPECT_FALSE(SameBits(AfterSuffix(kv), expected_)) << "K of layer " << layer;
      Restore(computed_, kPrefix, kv);
      kv.mutable_v(layer)[element] *= -1;
      EXPECT_FALSE(SameBits(AfterSuffix(kv), expected_)) << "V of layer " << layer;
    }
  }
}

TEST_F(TransformerTest, ARowThatIsNotRestoredSpoilsTheLogits) {
  KvState kv = transformer_->NewKvState();
  for (bool k : {true, false}) {
    Restore(computed_, kPrefix, kv);
    absl::Span<float> rows = k ? kv.mutable_k(1) : kv.mutable_v(1);
    std::fill_n(rows.begin() + 40 * kv.token_size(), kv.token_size(),
                std::numeric_limits<float>::quiet_NaN());
    EXPECT_TRUE(HasNan(AfterSuffix(kv)));
  }
}

TEST_F(TransformerTest, PoisonForgetsEverything) {
  computed_.Poison();
  EXPECT_EQ(computed_.tokens(), 0);
  EXPECT_TRUE(computed_.k(0).empty());
  for (int layer = 0; layer < computed_.layers(); ++layer) {
    for (float x : computed_.mutable_k(layer)) ASSERT_TRUE(std::isnan(x));
    for (float x : computed_.mutable_v(layer)) ASSERT_TRUE(std::isnan(x));
  }
}

TEST_F(TransformerTest, GoingBackAndForwardAgainGivesTheSameBits) {
  computed_.SetTokens(kPrefix);
  EXPECT_EQ(computed_.k(0).size(), kPrefix * computed_.token_size());
  EXPECT_TRUE(SameBits(AfterSuffix(computed_), expected_));
}

TEST_F(TransformerTest, GreedyDecodingIsTheSameAfterARestoredPrefix) {
  KvState restored = transformer_->NewKvState();
  Restore(computed_, kPrefix, restored);
  std::vector<float> logits = expected_;
  std::vector<float> logits_after_restore = AfterSuffix(restored);
  for (int i = 0; i < 20; ++i) {
    const int32_t token = GreedyToken(logits);
    ASSERT_EQ(GreedyToken(logits_after_restore), token);
    logits = Forward(*transformer_, computed_, {token});
    logits_after_restore = Forward(*transformer_, restored, {token});
    ASSERT_TRUE(SameBits(logits_after_restore, logits));
  }
}

TEST_F(TransformerTest, TheSeedDecidesTheWeights) {
  const std::unique_ptr<Transformer> same = MakeTransformer(SmallConfig());
  KvState kv = same->NewKvState();
  EXPECT_TRUE(SameBits(Forward(*same, kv, tokens_), expected_));

  TransformerConfig config = SmallConfig();
  config.seed = 43;
  const std::unique_ptr<Transformer> other = MakeTransformer(config);
  kv.Poison();
  EXPECT_FALSE(SameBits(Forward(*other, kv, tokens_), expected_));
}

TEST_F(TransformerTest, ForwardRefusesBadInputAndChangesNothing) {
  std::vector<float> logits(SmallConfig().vocabulary, 7.0f);
  std::vector<float> short_logits(SmallConfig().vocabulary - 1);
  TransformerConfig deeper = SmallConfig();
  deeper.layers = 4;
  KvState other_shape = MakeTransformer(deeper)->NewKvState();
  const std::vector<int32_t> too_many = SomeTokens(201, SmallConfig().vocabulary);

  KvState before = transformer_->NewKvState();
  Restore(computed_, 100, before);
  auto forward = [&](absl::Span<const int32_t> tokens) {
    return transformer_->Forward(computed_, tokens, absl::MakeSpan(logits));
  };
  EXPECT_EQ(forward({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(forward({0, -1}).message(), "tokens[1] is -1, the vocabulary has 96");
  EXPECT_EQ(forward({96}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(forward(too_many),
            absl::ResourceExhaustedError("201 tokens after 100 exceed max_tokens, 300"));
  EXPECT_EQ(transformer_->Forward(computed_, {1}, absl::MakeSpan(short_logits)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(transformer_->Forward(other_shape, {1}, absl::MakeSpan(logits)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(other_shape.tokens(), 0);
  ExpectSameKv(computed_, before);
  EXPECT_EQ(logits, std::vector<float>(logits.size(), 7.0f));

  EXPECT_TRUE(forward(absl::MakeSpan(too_many).subspan(1)).ok());
  EXPECT_EQ(computed_.tokens(), 300);
}

TEST(TransformerConfigTest, BadSizesAreRefusedByName) {
  struct Case {
    const char* name;
    int TransformerConfig::*field;
    int value;
  };
  for (const Case& bad : {
           Case{"layers", &TransformerConfig::layers, 0},
           Case{"layers", &TransformerConfig::layers, -1},
           Case{"model_dim", &TransformerConfig::model_dim, 0},
           Case{"model_dim", &TransformerConfig::model_dim, 72},
           Case{"heads", &TransformerConfig::heads, 0},
           Case{"kv_heads", &TransformerConfig::kv_heads, 0},
           Case{"kv_heads", &TransformerConfig::kv_heads, 4},
           Case{"kv_heads", &TransformerConfig::kv_heads, 12},
           Case{"head_dim", &TransformerConfig::head_dim, 33},
           Case{"ff_dim", &TransformerConfig::ff_dim, 100},
           Case{"vocabulary", &TransformerConfig::vocabulary, 1000},
           Case{"max_tokens", &TransformerConfig::max_tokens, 0},
           Case{"max_tokens", &TransformerConfig::max_tokens, std::numeric_limits<int>::max()},
       }) {
    TransformerConfig config;
    config.*bad.field = bad.value;
    const absl::Status status = Transformer::Create(config).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.name << " " << bad.value;
    EXPECT_NE(status.message().find(bad.name), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find(std::to_string(bad.value)), absl::string_view::npos) << status;
  }
}

TEST(TransformerConfigTest, SizesThatAreTooLargeTogetherAreRefused) {
  TransformerConfig config;
  config.layers = 1 << 16;
  config.model_dim = 1 << 16;
  config.heads = 1 << 16;
  config.kv_heads = 1 << 16;
  config.head_dim = 1 << 16;
  config.ff_dim = 1 << 16;
  config.max_tokens = 1 << 16;
  EXPECT_EQ(Transformer::Create(config).status().code(), absl::StatusCode::kInvalidArgument);

  config = TransformerConfig();
  config.max_tokens = 1 << 16;
  config.kv_heads = config.heads = 1024;
  EXPECT_EQ(Transformer::Create(config).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(InstructionSetTest, TheBaselineIsAlwaysSupported) {
  const std::vector<InstructionSet> sets = SupportedInstructionSets();
  EXPECT_EQ(sets.front(), InstructionSet::kBaseline);
  EXPECT_TRUE(std::is_sorted(sets.begin(), sets.end()));
}

TEST(KvStateDeathTest, MoreTokensThanThereIsRoomForAreAnError) {
  KvState kv(1, 10, 1, 32);
  kv.SetTokens(10);
  EXPECT_DEATH(kv.SetTokens(11), "SetTokens\\(11\\) outside of 0 to 10");
}

}  // namespace
}  // namespace kvcache::examples
