// Pages, thread by thread: a block of threads takes a tile of a part, of K and of V, at a time.
#ifndef KVCACHE_BACKENDS_GPU_COPY_PAGES_H_
#define KVCACHE_BACKENDS_GPU_COPY_PAGES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvcache/backends/gpu/device_kernels.h"
#include "kvcache/backends/gpu/kernel_units.h"

namespace kvcache {

// Division of numbers below 2^31 by one that is known before: a multiplication and a shift.
// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994, figure
// 4.1.
struct Divisor {
  uint32_t divisor;
  uint32_t multiplier;
  uint32_t shift;

  // REQUIRES: 0 < divisor < 2^31.
  static Divisor Of(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t multiplier = (((uint64_t{1} << shift) - divisor) << 32) / divisor + 1;
    return {divisor, static_cast<uint32_t>(multiplier), shift};
  }

  KVCACHE_HOST_DEVICE uint32_t Quotient(uint32_t n) const {
#if defined(__CUDA_ARCH__)
    const uint32_t high = __umulhi(n, multiplier);
#else
    const uint32_t high = static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32);
#endif
    return (high + n) >> shift;
  }
};

inline constexpr uint32_t kTileUnits = kThreads * kInFlight;
// A tile is of at most as many tokens as it has units.
inline constexpr uint32_t kMostTilePages = kTileUnits + 1;

// A PagedCopy in units that never go over the end of a head's row.
struct PagedShape {
  uint32_t unit_bytes;  // 16, 8, 4, 2 or 1
  uint32_t page_tokens;
  bool head_token_dim;
  Divisor by_token;  // units of a token, all heads
  Divisor by_row;    // units of one head of a token
  Divisor by_page;   // tokens of a page
};

inline PagedShape ShapeOf(const PagedCopy& copy) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(copy.k) | reinterpret_cast<uintptr_t>(copy.v) |
                        copy.page_stride | copy.row_bytes | copy.alignment;
  const uint32_t unit = UnitOf(bits, 16);
  return {unit,
          copy.page_tokens,
          copy.head_token_dim,
          Divisor::Of(copy.heads * copy.row_bytes / unit),
          Divisor::Of(copy.row_bytes / unit),
          Divisor::Of(copy.page_tokens)};
}

// Of `tokens` tokens, K or V.
KVCACHE_HOST_DEVICE uint32_t UnitsOfTensor(const PagedShape& shape, uint32_t tokens) {
  return tokens * shape.by_token.divisor;
}

inline uint32_t TilesOfPart(const PagedShape& shape, uint32_t tokens) {
  const uint32_t units = UnitsOfTensor(shape, tokens);
  return units / kTileUnits + (units % kTileUnits > 0 ? 1 : 0);
}

// Units [first, end) of a tensor, in pages [first_page, first_page + pages) of the page table.
// Empty: end <= first.
struct PagedTile {
  uint32_t first;
  uint32_t end;
  uint32_t first_page;
  uint32_t pages;
};

KVCACHE_HOST_DEVICE PagedTile TileOf(const PagedShape& shape, const PartOfTokens& part,
                                     uint32_t tile) {
  const uint32_t units = UnitsOfTensor(shape, part.tokens);
  const uint32_t first = tile * kTileUnits;
  if (first >= units) return {0, 0, 0, 0};
  const uint32_t end = units - first < kTileUnits ? units : first + kTileUnits;
  const uint32_t first_page =
      shape.by_page.Quotient(part.first_token + shape.by_token.Quotient(first));
  const uint32_t last_page =
      shape.by_page.Quotient(part.first_token + shape.by_token.Quotient(end - 1));
  return {first, end, first_page, last_page - first_page + 1};
}

struct PagedUnit {
  uint32_t page;  // in the page table
  uint32_t unit_of_page;
};

// Where unit `i` of a dense tensor that begins with token `first_token` is in the pages.
KVCACHE_HOST_DEVICE PagedUnit Locate(const PagedShape& shape, uint32_t first_token, uint32_t i) {
  const uint32_t t = shape.by_token.Quotient(i);
  const uint32_t in_token = i - t * shape.by_token.divisor;
  const uint32_t token = first_token + t;
  const uint32_t page = shape.by_page.Quotient(token);
  const uint32_t in_page = token - page * shape.page_tokens;
  if (!shape.head_token_dim) return {page, in_page * shape.by_token.divisor + in_token};
  const uint32_t head = shape.by_row.Quotient(in_token);
  const uint32_t in_row = in_token - head * shape.by_row.divisor;
  return {page, (head * shape.page_tokens + in_page) * shape.by_row.divisor + in_row};
}

// What a thread copies of a tile; pages[0] is that of tile.first_page.
template <typename Access>
KVCACHE_DEVICE void CopyTile(const PagedCopy& copy, const PagedShape& shape,
                             const PartOfTokens& part, const PagedTile& tile, const int32_t* pages,
                             uint32_t thread, const Access& access) {
  using Unit = typename Access::Unit;
  const bool two = copy.v != nullptr;
  std::byte* const dense_k = part.k;
  std::byte* const dense_v =
      dense_k + size_t{UnitsOfTensor(shape, part.part_tokens)} * sizeof(Unit);
  Unit k[kInFlight];
  Unit v[kInFlight];
  size_t in_pages[kInFlight];
  KVCACHE_UNROLL
  for (uint32_t j = 0; j < kInFlight; ++j) {
    const uint32_t i = tile.first + thread + j * kThreads;
    if (i >= tile.end) continue;
    const PagedUnit at = Locate(shape, part.first_token, i);
    in_pages[j] = static_cast<uint32_t>(pages[at.page - tile.first_page]) * copy.page_stride +
                  size_t{at.unit_of_page} * sizeof(Unit);
    const size_t in_part = size_t{i} * sizeof(Unit);
    k[j] = access.Load(copy.to_pages ? dense_k + in_part : copy.k + in_pages[j]);
    if (two) v[j] = access.Load(copy.to_pages ? dense_v + in_part : copy.v + in_pages[j]);
  }
  KVCACHE_UNROLL
  for (uint32_t j = 0; j < kInFlight; ++j) {
    const uint32_t i = tile.first + thread + j * kThreads;
    if (i >= tile.end) continue;
    const size_t in_part = size_t{i} * sizeof(Unit);
    access.Store(copy.to_pages ? copy.k + in_pages[j] : dense_k + in_part, k[j]);
    if (two) access.Store(copy.to_pages ? copy.v + in_pages[j] : dense_v + in_part, v[j]);
  }
}

// --- Where a kernel finds the parts and the page table

// In memory, the parts in the host's.
struct PagesByPointer {
  const PartOfTokens* parts;
  const int32_t* page_table;

  KVCACHE_HOST_DEVICE PartOfTokens Part(uint32_t part) const { return parts[part]; }
  KVCACHE_HOST_DEVICE int32_t Page(uint32_t page) const { return page_table[page]; }
};

// Among its arguments, where reading them costs nothing. All arguments have at most 4 KiB.
struct PagesByValue {
  static constexpr uint32_t kMostParts = 64;
  static constexpr uint32_t kMostPages = 512;

  PartOfTokens parts[kMostParts];
  const int32_t* page_table;  // null: here
  uint32_t first_page;
  int32_t pages[kMostPages];  // from first_page on

  // REQUIRES: there are at most kMostParts.
  static PagesByValue Of(const PagedCopy& copy) {
    PagesByValue values = {};
    std::copy_n(copy.parts, copy.num_parts, values.parts);
    values.page_table = copy.page_table;
    if (copy.host_page_table == nullptr) return values;
    uint32_t first = UINT32_MAX;
    uint32_t last = 0;
    for (uint32_t i = 0; i < copy.num_parts; ++i) {
      const PartOfTokens& part = copy.parts[i];
      if (part.tokens == 0) continue;
      first = std::min(first, part.first_token / copy.page_tokens);
      last = std::max(last, (part.first_token + part.tokens - 1) / copy.page_tokens);
    }
    if (first > last || last - first >= kMostPages) return values;
    std::copy_n(copy.host_page_table + first, last - first + 1, values.pages);
    values.page_table = nullptr;
    values.first_page = first;
    return values;
  }

  KVCACHE_HOST_DEVICE const PartOfTokens& Part(uint32_t part) const { return parts[part]; }
  KVCACHE_HOST_DEVICE int32_t Page(uint32_t page) const {
    return page_table == nullptr ? pages[page - first_page] : page_table[page];
  }
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_COPY_PAGES_H_
