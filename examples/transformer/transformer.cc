#include "kvcache/examples/transformer/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvcache/examples/transformer/weights.h"

namespace kvcache::examples {
namespace {

// Tokens that go through a layer together: enough to use every weight many times while it is in
// the first-level cache, few enough for their activations to stay in the second.
constexpr size_t kChunk = 128;

constexpr double kRopeBase = 10000.0;
constexpr double kGainVariance = 0.01;

size_t RoundUp(size_t n, size_t step) { return (n + step - 1) / step * step; }

absl::Status CheckConfig(const TransformerConfig& c) {
  constexpr int kMaxSize = 1 << 16;
  constexpr uint64_t kMaxNumbers = uint64_t{1} << 31;
  const struct {
    const char* name;
    int value;
    int step;
  } sizes[] = {
      {"layers", c.layers, 1},
      {"model_dim", c.model_dim, kDimensionStep},
      {"heads", c.heads, 1},
      {"kv_heads", c.kv_heads, 1},
      {"head_dim", c.head_dim, kDimensionStep},
      {"ff_dim", c.ff_dim, kDimensionStep},
      {"vocabulary", c.vocabulary, kDimensionStep},
      {"max_tokens", c.max_tokens, 1},
  };
  for (const auto& size : sizes) {
    if (size.value <= 0 || size.value > kMaxSize || size.value % size.step != 0) {
      return absl::InvalidArgumentError(absl::StrCat(size.name, " is ", size.value,
                                                     ", must be a multiple of ", size.step,
                                                     " from ", size.step, " to ", kMaxSize));
    }
  }
  if (c.heads % c.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("heads is ", c.heads, ", must be a multiple of kv_heads, ", c.kv_heads));
  }
  const uint64_t heads_dim = uint64_t{1} * c.heads * c.head_dim;
  const uint64_t kv_dim = uint64_t{1} * c.kv_heads * c.head_dim;
  // One at a time and each factor at most 2^16, so that nothing overflows before it is refused.
  const struct {
    const char* name;
    uint64_t per_layer;
  } numbers[] = {
      {"query weights", c.model_dim * heads_dim},
      {"feed-forward weights", uint64_t{3} * c.model_dim * c.ff_dim},
      {"K and V", 2 * c.max_tokens * kv_dim},
  };
  for (const auto& n : numbers) {
    if (n.per_layer > kMaxNumbers / c.layers) {
      return absl::InvalidArgumentError(absl::StrCat(c.layers, " layers of ", n.per_layer, " ",
                                                     n.name, " are more than ", kMaxNumbers));
    }
  }
  return absl::OkStatus();
}

AlignedArray<float> MakeGain(const TransformerConfig& c, int layer, Matrix matrix) {
  const WeightSource source(c.seed, layer, matrix, kGainVariance);
  AlignedArray<float> gain(c.model_dim);
  for (size_t i = 0; i < gain.size(); ++i) gain.data()[i] = source[i];
  return gain;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(const TransformerConfig& config) {
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  const std::vector<InstructionSet> supported = SupportedInstructionSets();
  const InstructionSet chosen = config.instruction_set.value_or(supported.back());
  if (std::find(supported.begin(), supported.end(), chosen) == supported.end()) {
    return absl::InvalidArgumentError(absl::StrCat("instruction_set is ", Name(chosen),
                                                   ", this machine supports up to ",
                                                   Name(supported.back())));
  }
  return absl::WrapUnique(new Transformer(config, chosen));
}

Transformer::Transformer(const TransformerConfig& config, InstructionSet instruction_set)
    : config_(config), instruction_set_(instruction_set), kernels_(KernelsFor(instruction_set)) {
  const TransformerConfig& c = config_;
  const size_t d = c.model_dim, ff = c.ff_dim, vocabulary = c.vocabulary;
  const size_t q_dim = size_t{1} * c.heads * c.head_dim;
  const size_t kv_dim = size_t{1} * c.kv_heads * c.head_dim;

  struct Part {
    Matrix matrix;
    size_t columns;
  };
  const size_t panel = kernels_.panel_columns;
  weights_ = AlignedArray<uint16_t>(c.layers * (d * (q_dim + 2 * kv_dim) + q_dim * d + 3 * d * ff) +
                                    d * vocabulary);
  uint16_t* to = weights_.data();
  auto make_weights = [&](int layer, size_t inner, std::initializer_list<Part> parts) {
    PackedMatrix matrix{.data = to, .inner = inner, .columns = 0};
    for (const Part& part : parts) {
      matrix.columns += part.columns;
      const WeightSource source(c.seed, layer, part.matrix, 1.0 / inner);
      for (size_t column = 0; column < part.columns; column += panel) {
        for (size_t k = 0; k < inner; ++k) {
          for (size_t j = 0; j < panel; ++j) *to++ = source.Bf16(k * part.columns + column + j);
        }
      }
    }
    return matrix;
  };

  for (int i = 0; i < c.layers; ++i) {
    Layer& layer = layers_.emplace_back();
    layer.attention_gain = MakeGain(c, i, Matrix::kAttentionGain);
    layer.query_key_value = make_weights(
        i, d, {{Matrix::kQuery, q_dim}, {Matrix::kKey, kv_dim}, {Matrix::kValue, kv_dim}});
    layer.output = make_weights(i, q_dim, {{Matrix::kOutput, d}});
    layer.feed_forward_gain = MakeGain(c, i, Matrix::kFeedForwardGain);
    layer.gate_up = make_weights(i, d, {{Matrix::kGate, ff}, {Matrix::kUp, ff}});
    layer.down = make_weights(i, ff, {{Matrix::kDown, d}});
  }
  final_gain_ = MakeGain(c, 0, Matrix::kFinalGain);
  head_ = make_weights(0, d, {{Matrix::kHead, vocabulary}});
  embedding_ = AlignedArray<uint16_t>(vocabulary * d);
  const WeightSource embedding(c.seed, 0, Matrix::kEmbedding, 1.0);
  for (size_t i = 0; i < embedding_.size(); ++i) embedding_.data()[i] = embedding.Bf16(i);

  const size_t half = c.head_dim / 2;
  cosines_ = AlignedArray<float>(c.max_tokens * half);
  sines_ = AlignedArray<float>(c.max_tokens * half);
  for (size_t j = 0; j < half; ++j) {
    const double frequency = std::pow(kRopeBase, -2.0 * j / c.head_dim);
    for (int t = 0; t < c.max_tokens; ++t) {
      cosines_.data()[t * half + j] = static_cast<float>(std::cos(t * frequency));
      sines_.data()[t * half + j] = static_cast<float>(std::sin(t * frequency));
    }
  }

  const size_t capacity = RoundUp(c.max_tokens, kDimensionStep);
  hidden_ = AlignedArray<float>(c.max_tokens * d);
  normed_ = AlignedArray<float>(kChunk * d);
  projected_ = AlignedArray<float>(kChunk * std::max(q_dim + 2 * kv_dim, 2 * ff));
  mixed_ = AlignedArray<float>(kChunk * std::max(q_dim, ff));
  transposed_keys_ = AlignedArray<float>(capacity * kv_dim);
  attention_scratch_ =
      AlignedArray<float>(kernels_.attention_scratch(c.heads / c.kv_heads, c.head_dim, capacity));
  panel_ = AlignedArray<float>(panel * std::max({d, q_dim, ff}));
}

KvState Transformer::NewKvState() const {
  return KvState(config_.layers, config_.max_tokens, config_.kv_heads, config_.head_dim);
}

absl::Status Transformer::Check(const KvState& kv, absl::Span<const int32_t> tokens,
                                absl::Span<const float> logits) const {
  if (tokens.empty()) return absl::InvalidArgumentError("tokens is empty");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= config_.vocabulary) {
      return absl::InvalidArgumentError(absl::StrCat("tokens[", i, "] is ", tokens[i],
                                                     ", the vocabulary has ", config_.vocabulary));
    }
  }
  if (logits.size() != static_cast<size_t>(config_.vocabulary)) {
    return absl::InvalidArgumentError(absl::StrCat("logits has room for ", logits.size(),
                                                   ", the vocabulary has ", config_.vocabulary));
  }
  const size_t token_size = size_t{1} * config_.kv_heads * config_.head_dim;
  if (kv.layers() != config_.layers || kv.token_size() != token_size ||
      kv.max_tokens() != config_.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("kv is for ", kv.layers(), " layers x ",
                                                   kv.max_tokens(), " tokens x ", kv.token_size(),
                                                   " floats, the transformer for ", config_.layers,
                                                   " x ", config_.max_tokens, " x ", token_size));
  }
  if (tokens.size() > static_cast<size_t>(kv.max_tokens() - kv.tokens())) {
    return absl::ResourceExhaustedError(absl::StrCat(tokens.size(), " tokens after ", kv.tokens(),
                                                     " exceed max_tokens, ", kv.max_tokens()));
  }
  return absl::OkStatus();
}

absl::Status Transformer::Forward(KvState& kv, absl::Span<const int32_t> tokens,
                                  absl::Span<float> logits) {
  if (absl::Status status = Check(kv, tokens, logits); !status.ok()) return status;
  const size_t d = config_.model_dim;
  const size_t first = kv.tokens();

  float* x = hidden_.data();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint16_t* row = embedding_.data() + tokens[i] * d;
    for (size_t j = 0; j < d; ++j) {
      const uint32_t bits = uint32_t{row[j]} << 16;
      std::memcpy(&x[i * d + j], &bits, sizeof(bits));
    }
  }
  for (int i = 0; i < config_.layers; ++i) {
    float* k = kv.mutable_k(i).data();
    float* v = kv.mutable_v(i).data();
    kernels_.transpose_keys(k, 0, first, config_.kv_heads, config_.head_dim,
                            transposed_keys_.data(), RoundUp(config_.max_tokens, kDimensionStep));
    for (size_t done = 0; done < tokens.size(); done += kChunk) {
      const size_t rows = std::min(kChunk, tokens.size() - done);
      Attend(layers_[i], first + done, rows, k, v, x + done * d);
      FeedForward(layers_[i], rows, x + done * d);
    }
  }
  kv.SetTokens(static_cast<int>(first + tokens.size()));

  kernels_.rms_norm(x + (tokens.size() - 1) * d, final_gain_.data(), 1, d, normed_.data());
  kernels_.matmul(normed_.data(), d, 1, head_, logits.data(), logits.size(), false, panel_.data());
  return absl::OkStatus();
}

void Transformer::Attend(const Layer& layer, size_t first, size_t rows, float* k, float* v,
                         float* x) {
  const TransformerConfig& c = config_;
  const size_t d = c.model_dim, head_dim = c.head_dim;
  const size_t q_dim = c.heads * head_dim, kv_dim = c.kv_heads * head_dim;
  const size_t stride = q_dim + 2 * kv_dim;
  const size_t capacity = RoundUp(c.max_tokens, kDimensionStep);
  float* q = projected_.data();  // a row is [q, k, v]

  kernels_.rms_norm(x, layer.attention_gain.data(), rows, d, normed_.data());
  kernels_.matmul(normed_.data(), d, rows, layer.query_key_value, q, stride, false, panel_.data());
  const float* cosines = cosines_.data() + first * (head_dim / 2);
  const float* sines = sines_.data() + first * (head_dim / 2);
  kernels_.rope(q, stride, rows, c.heads + c.kv_heads, head_dim, cosines, sines);
  for (size_t i = 0; i < rows; ++i) {
    std::copy_n(q + i * stride + q_dim, kv_dim, k + (first + i) * kv_dim);
    std::copy_n(q + i * stride + q_dim + kv_dim, kv_dim, v + (first + i) * kv_dim);
  }
  kernels_.transpose_keys(k, first, first + rows, c.kv_heads, head_dim, transposed_keys_.data(),
                          capacity);
  kernels_.attention({.rows = rows,
                      .first_position = first,
                      .kv_heads = static_cast<size_t>(c.kv_heads),
                      .group = static_cast<size_t>(c.heads / c.kv_heads),
                      .head_dim = head_dim,
                      .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
                      .q = q,
                      .q_stride = stride,
                      .keys = transposed_keys_.data(),
                      .keys_capacity = capacity,
                      .v = v,
                      .out = mixed_.data(),
                      .out_stride = q_dim,
                      .scratch = attention_scratch_.data()});
  kernels_.matmul(mixed_.data(), q_dim, rows, layer.output, x, d, true, panel_.data());
}

void Transformer::FeedForward(const Layer& layer, size_t rows, float* x) {
  const size_t d = config_.model_dim, ff = config_.ff_dim;
  kernels_.rms_norm(x, layer.feed_forward_gain.data(), rows, d, normed_.data());
  kernels_.matmul(normed_.data(), d, rows, layer.gate_up, projected_.data(), 2 * ff, false,
                  panel_.data());
  kernels_.swiglu(projected_.data(), rows, ff, mixed_.data());
  kernels_.matmul(mixed_.data(), ff, rows, layer.down, x, d, true, panel_.data());
}

int32_t GreedyToken(absl::Span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace kvcache::examples
