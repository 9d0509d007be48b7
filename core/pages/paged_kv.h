// PagedKv: an engine's own K/V cache, in pages, and where a token's bytes are in it.
#ifndef KVCACHE_CORE_PAGES_PAGED_KV_H_
#define KVCACHE_CORE_PAGES_PAGED_KV_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/kv_layout.h"

namespace kvcache {

// K/V in pages of a fixed number of tokens, as vLLM, SGLang and TensorRT-LLM keep it. Token t of a
// sequence is token t % page_tokens of page page_table[t / page_tokens]. For each layer, the K of
// page p begins at k + p * page_stride and is dense, and so is the V:
//
//   tensor                                 k of layer l         v               page_stride
//   one for each layer, [2, pages, page]   tensor_l             k + pages * P   P
//   one for each layer, [pages, 2, page]   tensor_l             k + P           2 * P
//   one for all, [pages, layers, 2, page]  tensor + l * 2 * P   k + P           layers * 2 * P
//
//   P = page_tokens * kv_heads * head_dim * DTypeSize(dtype) bytes
//
// The memory is the engine's. A plain value.
struct PagedKv {
  enum class Order {
    kTokenHeadDim,  // a page is [page_tokens, kv_heads, head_dim]: "NHD"
    kHeadTokenDim,  // a page is [kv_heads, page_tokens, head_dim]: "HND"
  };
  struct Layer {
    std::byte* k = nullptr;
    std::byte* v = nullptr;  // nullptr when the layout is kLatent
  };

  // kGroupedHeads or kLatent, without scales.
  KvLayout layout = {};
  Order order = Order::kTokenHeadDim;
  uint32_t page_tokens = 0;
  // Of each layer; the numbers in page tables are below.
  uint32_t pages = 0;
  // Bytes from one page to the next, in K and in V.
  size_t page_stride = 0;
  std::vector<Layer> layers = {};  // [layout.layers]
  MemorySpace space = {};

  // Bytes of the K of a page.
  size_t PageBytes() const;

  // kInvalidArgument, naming the field and the values, unless: the layout is valid, and as above;
  // page_tokens is 1 to 65,536; pages are positive; page_stride is at least PageBytes() and a
  // multiple of the element's size; there is one layer for each of the layout's, without null
  // pointers where there has to be one; addresses are aligned to the element and do not overflow.
  absl::Status Validate() const;
};

// Consecutive tokens of a sequence.
struct TokenRange {
  uint32_t first = 0;
  uint32_t count = 0;
};

// kInvalidArgument, naming the values, unless `tokens` has any, all of them are in pages of the
// table, and these pages exist.
absl::Status ValidateTokens(const PagedKv& kv, absl::Span<const int32_t> page_table,
                            TokenRange tokens);

// Between the pages and a part of a block of tokens.count tokens (see KvLayout: K, then V, each
// [tokens, kv_heads, head_dim]). On this processor: all memory must be the host's. The bytes go
// past the caches. Unless `checksum` is null it is set to that of the part (core/copy/checksum.h),
// which costs less than a second pass. The first skip_tokens tokens of a part stay out of the
// pages. REQUIRES: kv.Validate(); ValidateTokens() of what is copied; skip_tokens < tokens.count;
// layer < kv.layout.layers.
void GatherPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
                TokenRange tokens, std::byte* part, uint64_t* checksum = nullptr);
void ScatterPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
                 TokenRange tokens, const std::byte* part, uint64_t* checksum = nullptr,
                 uint32_t skip_tokens = 0);

}  // namespace kvcache

#endif  // KVCACHE_CORE_PAGES_PAGED_KV_H_
