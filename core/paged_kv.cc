#include "kvcache/core/paged_kv.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "absl/strings/str_cat.h"
#include "kvcache/core/copy_bytes.h"

namespace kvcache {
namespace {

constexpr uint32_t kMostPageTokens = 65536;
constexpr size_t kCacheLine = 64;
// Longer runs the processor fetches by itself.
constexpr size_t kShortRun = 8192;
constexpr size_t kPagesAhead = 4;

size_t RowBytes(const PagedKv& kv) {
  return size_t{1} * kv.layout.kv_heads * kv.layout.head_dim * DTypeSize(kv.layout.dtype);
}

// Of a tensor of one layer: whether its last page ends below the end of addresses.
bool Fits(const PagedKv& kv, const std::byte* tensor) {
  size_t bytes;
  size_t end;
  return !__builtin_mul_overflow(kv.page_stride, kv.pages - 1, &bytes) &&
         !__builtin_add_overflow(bytes, kv.PageBytes(), &bytes) &&
         !__builtin_add_overflow(reinterpret_cast<uintptr_t>(tensor), bytes, &end);
}

absl::Status ValidateTensor(const PagedKv& kv, size_t layer, const char* name,
                            const std::byte* tensor) {
  const size_t element = DTypeSize(kv.layout.dtype);
  const char* wrong = tensor == nullptr                                   ? "is null"
                      : reinterpret_cast<uintptr_t>(tensor) % element > 0 ? "is not aligned"
                      : !Fits(kv, tensor) ? "has pages behind the end of addresses"
                                          : nullptr;
  if (wrong == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layers[", layer, "].", name, " ", wrong, ": ",
                                                 kv.pages, " pages of ", kv.PageBytes(),
                                                 " bytes, page_stride ", kv.page_stride));
}

// Asks for the `bytes` at `at`, for reading or for writing.
template <bool kForWriting>
void Prefetch(const std::byte* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(at + i, kForWriting ? 1 : 0);
}

// Copies past the caches, so that no line is read in order to be overwritten. FinishStores() orders
// the stores before later ones.
void StorePastCache(std::byte* to, const std::byte* from, size_t bytes) {
#if defined(__x86_64__)
  if (bytes % kCacheLine == 0 && reinterpret_cast<uintptr_t>(to) % kCacheLine == 0) {
    for (size_t i = 0; i < bytes; i += sizeof(__m128i)) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

void FinishStores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Copies `run` tokens between a page, from token in_page on, and a dense tensor.
template <bool kGather>
void CopyHeadMajor(const PagedKv& kv, std::byte* page, size_t in_page, std::byte* dense,
                   size_t run) {
  const size_t heads = kv.layout.kv_heads;
  const size_t row = RowBytes(kv) / heads;
  const auto in_pages = [&](size_t t, size_t head) {
    return page + (head * kv.page_tokens + in_page + t) * row;
  };
  const auto in_part = [&](size_t t, size_t head) { return dense + (t * heads + head) * row; };
  if (kGather) {
    // Along the page: its heads are often 4 KiB apart, at the same place of the caches.
    for (size_t head = 0; head < heads; ++head) {
      for (size_t t = 0; t < run; ++t) StorePastCache(in_part(t, head), in_pages(t, head), row);
    }
  } else {
    for (size_t t = 0; t < run; ++t) {
      for (size_t head = 0; head < heads; ++head) {
        StorePastCache(in_pages(t, head), in_part(t, head), row);
      }
    }
  }
}

// Page by page, K and V, which are near each other. The processor cannot guess where the next page
// is, so it is asked for while this one is copied.
template <bool kGather>
void CopyPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
              TokenRange tokens, std::byte* part) {
  const size_t row = RowBytes(kv);
  const size_t page_tokens = kv.page_tokens;
  // A page of one token, or of one head, is the same in both orders.
  const bool by_token =
      kv.order == PagedKv::Order::kTokenHeadDim || page_tokens == 1 || kv.layout.kv_heads == 1;
  const bool dense_pages = kv.page_stride == kv.PageBytes();
  std::byte* const tensors[] = {kv.layers[layer].k, kv.layers[layer].v};
  for (size_t token = tokens.first, end = token + tokens.count; token < end;) {
    size_t i = token / page_tokens;
    const size_t in_page = token % page_tokens;
    const size_t page = page_table[i] * kv.page_stride;
    size_t run = std::min(page_tokens - in_page, end - token);
    while (by_token && dense_pages && token + run < end && page_table[i + 1] == page_table[i] + 1) {
      run += std::min(page_tokens, end - token - run);
      ++i;
    }
    const size_t bytes = run * row;
    const size_t ahead = token + run + kPagesAhead * page_tokens;
    std::byte* dense = part + (token - tokens.first) * row;
    for (std::byte* tensor : tensors) {
      if (tensor == nullptr) continue;
      if (by_token) {
        if (bytes <= kShortRun && ahead < end) {
          Prefetch<!kGather>(tensor + page_table[ahead / page_tokens] * kv.page_stride, bytes);
        }
        std::byte* const paged = tensor + page + in_page * row;
        CopyBytes(kGather ? dense : paged, {kGather ? paged : dense, bytes}, NextRead::kSoon);
      } else {
        CopyHeadMajor<kGather>(kv, tensor + page, in_page, dense, run);
      }
      dense += tokens.count * row;
    }
    token += run;
  }
  FinishStores();
}

}  // namespace

size_t PagedKv::PageBytes() const { return page_tokens * RowBytes(*this); }

absl::Status PagedKv::Validate() const {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (layout.kind == KvLayout::Kind::kOpaque || layout.scale_bytes_per_token > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: pages of ", layout.ToString(),
                     layout.scale_bytes_per_token > 0 ? " with scales" : "", " are not supported"));
  }
  if (order != Order::kTokenHeadDim && order != Order::kHeadTokenDim) {
    return absl::InvalidArgumentError(
        absl::StrCat("order: ", static_cast<int>(order), " is no order"));
  }
  if (page_tokens == 0 || page_tokens > kMostPageTokens || pages == 0) {
    return absl::InvalidArgumentError(absl::StrCat("page_tokens: ", page_tokens, ", pages: ", pages,
                                                   ": must be 1 to ", kMostPageTokens,
                                                   " and at least 1"));
  }
  size_t page_bytes;
  if (__builtin_mul_overflow(size_t{page_tokens}, RowBytes(*this), &page_bytes) ||
      page_stride < page_bytes || page_stride % DTypeSize(layout.dtype) > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_stride: ", page_stride, " for pages of ", page_tokens, " tokens of ",
                     RowBytes(*this), " bytes, each element ", DTypeSize(layout.dtype)));
  }
  if (layers.size() != layout.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers: ", layers.size(), ", the layout has ", layout.layers));
  }
  const bool latent = layout.kind == KvLayout::Kind::kLatent;
  for (size_t i = 0; i < layers.size(); ++i) {
    absl::Status status = ValidateTensor(*this, i, "k", layers[i].k);
    if (!latent) status.Update(ValidateTensor(*this, i, "v", layers[i].v));
    if (latent && layers[i].v != nullptr) {
      status.Update(
          absl::InvalidArgumentError(absl::StrCat("layers[", i, "].v: a latent layout has none")));
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ValidateTokens(const PagedKv& kv, absl::Span<const int32_t> page_table,
                            TokenRange tokens) {
  const uint64_t end = uint64_t{tokens.first} + tokens.count;
  if (tokens.count == 0 || end > uint64_t{page_table.size()} * kv.page_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: ", tokens.count, " from ", tokens.first,
                                                   " on, in a page_table of ", page_table.size(),
                                                   " pages of ", kv.page_tokens));
  }
  for (size_t i = tokens.first / kv.page_tokens; i <= (end - 1) / kv.page_tokens; ++i) {
    if (page_table[i] >= 0 && static_cast<uint32_t>(page_table[i]) < kv.pages) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("page_table[", i, "]: ", page_table[i], " is none of ", kv.pages, " pages"));
  }
  return absl::OkStatus();
}

void GatherPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
                TokenRange tokens, std::byte* part) {
  CopyPart<true>(kv, page_table, layer, tokens, part);
}

void ScatterPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
                 TokenRange tokens, const std::byte* part) {
  CopyPart<false>(kv, page_table, layer, tokens, const_cast<std::byte*>(part));
}

}  // namespace kvcache
