// What runs on a device: copies of many pieces, and between pages and blocks.
#ifndef KVCACHE_BACKENDS_GPU_DEVICE_KERNELS_H_
#define KVCACHE_BACKENDS_GPU_DEVICE_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace kvcache {

// A stretch of bytes to copy. The two do not overlap, in any piece of a batch.
struct CopyPiece {
  std::byte* to;
  const std::byte* from;
  size_t bytes;
};

// Of a part of a block of part_tokens tokens: `tokens` of them, which are those from first_token on
// of a sequence.
struct PartOfTokens {
  std::byte* k;  // of the first one; its V is part_tokens tokens behind that
  uint32_t first_token;
  uint32_t tokens;
  uint32_t part_tokens;
};

// A copy of one layer between its pages (see core/pages/paged_kv.h) and parts of blocks.
struct PagedCopy {
  std::byte* k;  // of page 0
  std::byte* v;  // nullptr: there is none
  size_t page_stride;
  uint32_t page_tokens;
  uint32_t heads;
  uint32_t row_bytes;  // of one head of one token
  bool head_token_dim;
  bool to_pages;
  const int32_t* page_table;  // best on the device
  const PartOfTokens* parts;  // [num_parts], in host memory that the device reaches
  uint32_t num_parts;
  uint32_t most_tokens;  // of any
  uint32_t alignment;    // a power of two: all parts of blocks begin at multiples of it
  // The page table once more, where this processor can read it: one that is short then goes with
  // the launch, and the kernel has not to wait for it. Null: it cannot.
  const int32_t* host_page_table = nullptr;
};

// Enqueue on a CUDA stream of the current device. `pieces` are in host memory that the device
// reaches. They and `parts` are read in the call, or when the stream gets there, or both;
// `page_table` when the stream gets there. Everything must be reachable by the device. They return
// a cudaError_t; nothing is enqueued when it is not 0. REQUIRES: there is something to copy; a
// piece, and the K of a part, have less than kMostKernelBytes; tokens are below 2^31.
inline constexpr size_t kMostKernelBytes = size_t{1} << 31;
int LaunchCopyPieces(const CopyPiece* pieces, size_t num_pieces, void* stream);
int LaunchPagedCopy(const PagedCopy& copy, void* stream);
// Loads them on the current device, which they do at their first launch otherwise.
int LoadKernels();

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_DEVICE_KERNELS_H_
