#ifndef KVCACHE_EXAMPLES_DEMO_KV_ROWS_H_
#define KVCACHE_EXAMPLES_DEMO_KV_ROWS_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/examples/transformer/instruction_set.h"
#include "kvcache/examples/transformer/kv_state.h"
#include "kvcache/examples/transformer/transformer.h"

namespace kvcache::examples {

// The rows of `count` tokens from `first` on, of one layer's K or V. REQUIRES: within `plane`,
// which is one of kv.mutable_k() and kv.mutable_v().
inline MutableBytes Rows(const KvState& kv, absl::Span<float> plane, size_t first, size_t count) {
  const absl::Span<float> rows = plane.subspan(first * kv.token_size(), count * kv.token_size());
  return {reinterpret_cast<std::byte*>(rows.data()), rows.size() * sizeof(float)};
}

// Those of all layers in the order of a block: K and V of layer 0, K and V of layer 1 ... `Bytes`
// is MutableBytes or ConstBytes.
template <typename Bytes>
std::vector<Bytes> RowsOfAllLayers(KvState& kv, size_t first, size_t count) {
  std::vector<Bytes> rows;
  rows.reserve(2 * kv.layers());
  for (int layer = 0; layer < kv.layers(); ++layer) {
    rows.push_back(Rows(kv, kv.mutable_k(layer), first, count));
    rows.push_back(Rows(kv, kv.mutable_v(layer), first, count));
  }
  return rows;
}

inline constexpr char kModelName[] = "kvcache/examples/transformer";

// What else makes two runs' K and V different. The shape is in the layout.
inline std::string Revision(const Transformer& model) {
  const TransformerConfig& c = model.config();
  const absl::string_view set = Name(model.instruction_set());
  return absl::StrCat("seed ", c.seed, ", ", c.model_dim, " wide, ", c.heads, " heads, ff ",
                      c.ff_dim, ", ", c.vocabulary, " tokens, ", set);
}

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_KV_ROWS_H_
