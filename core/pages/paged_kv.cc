#include "kvcache/core/pages/paged_kv.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/core/copy/copy_bytes.h"
#include "kvcache/core/copy/copy_runs.h"

namespace kvcache {
namespace {

constexpr uint32_t kMostPageTokens = 65536;
// Runs from this size on are copied and summed in one pass.
constexpr size_t kLongRun = 8192;
// What is copied and summed at a time otherwise: well below any second-level cache.
constexpr size_t kSummedPiece = size_t{128} << 10;

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

// A page of one token, or of one head, is the same in both orders.
bool TokenMajor(const PagedKv& kv) {
  return kv.order == PagedKv::Order::kTokenHeadDim || kv.page_tokens == 1 ||
         kv.layout.kv_heads == 1;
}

// Calls copy(to, from, bytes) for the rows between a page, from token in_page on, and `run` tokens
// of a dense tensor. In the order of the source, whose lines the processor then fetches in one go.
template <bool kGather, typename Copy>
void ForRows(const PagedKv& kv, std::byte* page, size_t in_page, std::byte* dense, size_t run,
             const Copy& copy) {
  const size_t heads = kv.layout.kv_heads;
  const size_t row = RowBytes(kv) / heads;
  if (kGather) {
    for (size_t head = 0; head < heads; ++head) {
      const std::byte* from = page + (head * kv.page_tokens + in_page) * row;
      std::byte* to = dense + head * row;
      for (size_t t = 0; t < run; ++t, from += row, to += heads * row) copy(to, from, row);
    }
  } else {
    const std::byte* from = dense;
    for (size_t t = 0; t < run; ++t) {
      std::byte* to = page + (in_page + t) * row;
      for (size_t head = 0; head < heads; ++head, from += row, to += kv.page_tokens * row) {
        copy(to, from, row);
      }
    }
  }
}

// Calls copy(to, from, bytes) for all runs between the tensors, which are in the same pages, and
// the dense ones behind each other at `dense`, each of `dense_stride` bytes. Page by page, all
// tensors, since K and V are often near each other.
template <bool kGather, typename Copy>
void ForRuns(const PagedKv& kv, absl::Span<const int32_t> page_table, TokenRange tokens,
             absl::Span<std::byte* const> tensors, std::byte* dense, size_t dense_stride,
             const Copy& copy) {
  const size_t row = RowBytes(kv);
  const size_t page_tokens = kv.page_tokens;
  const bool token_major = TokenMajor(kv);
  const bool dense_pages = token_major && kv.page_stride == kv.PageBytes();
  size_t i = tokens.first / page_tokens;
  size_t in_page = tokens.first % page_tokens;
  for (size_t left = tokens.count; left > 0;) {
    const size_t page = page_table[i] * kv.page_stride;
    size_t run = std::min(page_tokens - in_page, left);
    while (dense_pages && run < left && page_table[i + 1] == page_table[i] + 1) {
      run += std::min(page_tokens, left - run);
      ++i;
    }
    std::byte* in_part = dense;
    for (std::byte* tensor : tensors) {
      if (token_major) {
        std::byte* const paged = tensor + page + in_page * row;
        copy(kGather ? in_part : paged, kGather ? paged : in_part, run * row);
      } else {
        ForRows<kGather>(kv, tensor + page, in_page, in_part, run, copy);
      }
      in_part += dense_stride;
    }
    dense += run * row;
    left -= run;
    in_page = 0;
    ++i;
  }
}

template <bool kGather>
void CopyTensors(const PagedKv& kv, absl::Span<const int32_t> page_table, TokenRange tokens,
                 absl::Span<std::byte* const> tensors, std::byte* dense, size_t dense_stride) {
  RunCopier copier;
  ForRuns<kGather>(
      kv, page_table, tokens, tensors, dense, dense_stride,
      [&](std::byte* to, const std::byte* from, size_t bytes) { copier.Add(to, from, bytes); });
  copier.Finish();
}

// Copies the dense tensor at `dense` and appends it to the sum.
template <bool kGather>
void CopyAndSumTensor(const PagedKv& kv, absl::Span<const int32_t> page_table, TokenRange tokens,
                      std::byte* tensor, std::byte* dense, Checksum* sum) {
  const size_t row = RowBytes(kv);
  if (TokenMajor(kv) && kv.PageBytes() >= kLongRun) {
    ForRuns<kGather>(kv, page_table, tokens, {&tensor, 1}, dense, 0,
                     [&](std::byte* to, const std::byte* from, size_t bytes) {
                       sum->Copy(to, {from, bytes}, NextRead::kLater);
                     });
    return;
  }
  const uint32_t most_tokens = static_cast<uint32_t>(std::max<size_t>(1, kSummedPiece / row));
  for (uint32_t done = 0; done < tokens.count;) {
    const uint32_t count = std::min(most_tokens, tokens.count - done);
    const ConstBytes piece(dense + done * row, count * row);
    if (!kGather) sum->Update(piece);
    CopyTensors<kGather>(kv, page_table, {tokens.first + done, count}, {&tensor, 1},
                         dense + done * row, 0);
    if (kGather) sum->Update(piece);
    done += count;
  }
}

template <bool kGather>
void CopyPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
              TokenRange tokens, uint32_t skip_tokens, std::byte* part, uint64_t* checksum) {
  std::byte* const tensors[] = {kv.layers[layer].k, kv.layers[layer].v};
  const size_t count = tensors[1] == nullptr ? 1 : 2;
  const size_t dense_stride = tokens.count * RowBytes(kv);
  const size_t skip_bytes = skip_tokens * RowBytes(kv);
  const TokenRange copied = {tokens.first + skip_tokens, tokens.count - skip_tokens};
  if (checksum == nullptr) {
    CopyTensors<kGather>(kv, page_table, copied, absl::MakeSpan(tensors, count), part + skip_bytes,
                         dense_stride);
    return;
  }
  Checksum sum;
  for (size_t i = 0; i < count; ++i, part += dense_stride) {
    sum.Update({part, skip_bytes});
    CopyAndSumTensor<kGather>(kv, page_table, copied, tensors[i], part + skip_bytes, &sum);
  }
  *checksum = sum.Value();
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
                TokenRange tokens, std::byte* part, uint64_t* checksum) {
  CopyPart<true>(kv, page_table, layer, tokens, 0, part, checksum);
}

void ScatterPart(const PagedKv& kv, absl::Span<const int32_t> page_table, uint32_t layer,
                 TokenRange tokens, const std::byte* part, uint64_t* checksum,
                 uint32_t skip_tokens) {
  CopyPart<false>(kv, page_table, layer, tokens, skip_tokens, const_cast<std::byte*>(part),
                  checksum);
}

}  // namespace kvcache
