#include "kvcache/examples/transformer/kv_state.h"

#include <algorithm>
#include <limits>

#include "kvcache/core/base/check.h"

namespace kvcache::examples {

KvState::KvState(int layers, int max_tokens, int kv_heads, int head_dim)
    : layers_(layers),
      max_tokens_(max_tokens),
      token_size_(static_cast<size_t>(kv_heads) * head_dim),
      plane_size_(max_tokens * token_size_),
      data_(2 * layers * plane_size_) {}

void KvState::SetTokens(int tokens) {
  KVCACHE_CHECK(tokens >= 0 && tokens <= max_tokens_, "SetTokens(", tokens, ") outside of 0 to ",
                max_tokens_);
  tokens_ = tokens;
}

void KvState::Poison() {
  std::fill_n(data_.data(), data_.size(), std::numeric_limits<float>::quiet_NaN());
  tokens_ = 0;
}

}  // namespace kvcache::examples
