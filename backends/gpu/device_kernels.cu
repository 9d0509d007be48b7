#include "kvcache/backends/gpu/device_kernels.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "kvcache/backends/gpu/kernel_index.h"

namespace kvcache {
namespace {

constexpr int kThreads = 256;
// Blocks of threads: enough to keep every multiprocessor of a large device busy.
constexpr unsigned kMostBlocks = 4096;

// Copies [first, end) units of Unit bytes, every `step`-th, with four loads under way.
template <typename Unit>
__device__ void CopyUnits(std::byte* to, const std::byte* from, uint32_t first, uint32_t end,
                          uint32_t step) {
  auto* const out = reinterpret_cast<Unit*>(to);
  const auto* const in = reinterpret_cast<const Unit*>(from);
  uint32_t i = first;
  for (; i + 3 * step < end; i += 4 * step) {
    const Unit a = in[i];
    const Unit b = in[i + step];
    const Unit c = in[i + 2 * step];
    const Unit d = in[i + 3 * step];
    out[i] = a;
    out[i + step] = b;
    out[i + 2 * step] = c;
    out[i + 3 * step] = d;
  }
  for (; i < end; i += step) out[i] = in[i];
}

// A block of threads takes a tile of a piece at a time.
__global__ void CopyPiecesKernel(const CopyPiece* pieces, size_t num_pieces, unsigned blocks_each) {
  const unsigned block_of_piece = blockIdx.x % blocks_each;
  const unsigned pieces_at_once = gridDim.x / blocks_each;
  for (size_t p = blockIdx.x / blocks_each; p < num_pieces; p += pieces_at_once) {
    const CopyPiece piece = pieces[p];
    const PieceUnits units = UnitsOf(piece);
    const uint32_t first = block_of_piece * blockDim.x + threadIdx.x;
    const uint32_t step = blocks_each * blockDim.x;
    switch (units.unit_bytes) {
      case 16:
        CopyUnits<uint4>(piece.to, piece.from, first, units.units, step);
        break;
      case 8:
        CopyUnits<uint2>(piece.to, piece.from, first, units.units, step);
        break;
      case 4:
        CopyUnits<uint32_t>(piece.to, piece.from, first, units.units, step);
        break;
      default:
        CopyUnits<uint8_t>(piece.to, piece.from, first, units.units, step);
    }
    // What does not fill a last unit.
    const uint32_t tail = units.units * units.unit_bytes;
    for (uint32_t i = tail + first; i < piece.bytes; i += step) piece.to[i] = piece.from[i];
  }
}

// blockIdx.x: a part; blockIdx.y: which of its rows. Threads go along rows, so that neighbours
// touch neighbouring bytes on both sides.
template <typename Unit>
__global__ void PagedCopyKernel(PagedCopy copy, PagedShape shape) {
  for (uint32_t p = blockIdx.x; p < copy.num_parts; p += gridDim.x) {
    const PartOfTokens part = copy.parts[p];
    const uint32_t units = UnitsOfTensor(shape, part.tokens);
    const uint32_t step = gridDim.y * blockDim.x;
    const uint32_t tensors = copy.v == nullptr ? 1 : 2;
    for (uint32_t tensor = 0; tensor < tensors; ++tensor) {
      std::byte* const paged = tensor == 0 ? copy.k : copy.v;
      std::byte* const dense = part.part + size_t{tensor} * units * sizeof(Unit);
      for (uint32_t i = blockIdx.y * blockDim.x + threadIdx.x; i < units; i += step) {
        const PagedUnit at = Locate(shape, part.first_token, i);
        Unit* const in_page = reinterpret_cast<Unit*>(
            paged + copy.page_table[at.table_index] * copy.page_stride) + at.unit_of_page;
        Unit* const in_part = reinterpret_cast<Unit*>(dense) + i;
        if (copy.to_pages) {
          *in_page = *in_part;
        } else {
          *in_part = *in_page;
        }
      }
    }
  }
}

template <typename Unit>
void Launch(const PagedCopy& copy, const PagedShape& shape, dim3 grid, cudaStream_t stream) {
  PagedCopyKernel<Unit><<<grid, kThreads, 0, stream>>>(copy, shape);
}

}  // namespace

int LaunchCopyPieces(const CopyPiece* pieces, size_t num_pieces, void* stream) {
  // Few pieces are divided among several blocks each.
  const unsigned blocks_each = num_pieces < 512 ? 8 : 1;
  const auto at_once =
      static_cast<unsigned>(std::min<size_t>(num_pieces, kMostBlocks / blocks_each));
  CopyPiecesKernel<<<at_once * blocks_each, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      pieces, num_pieces, blocks_each);
  return cudaGetLastError();
}

int LaunchPagedCopy(const PagedCopy& copy, void* stream) {
  const PagedShape shape = ShapeOf(copy);
  const uint32_t units = UnitsOfTensor(shape, copy.most_tokens);
  const unsigned rows = std::min<unsigned>(64, (units + kThreads - 1) / kThreads);
  const dim3 grid(std::min(copy.num_parts, kMostBlocks), std::max(1u, rows));
  const auto on = static_cast<cudaStream_t>(stream);
  switch (shape.unit_bytes) {
    case 16:
      Launch<uint4>(copy, shape, grid, on);
      break;
    case 8:
      Launch<uint2>(copy, shape, grid, on);
      break;
    case 4:
      Launch<uint32_t>(copy, shape, grid, on);
      break;
    case 2:
      Launch<uint16_t>(copy, shape, grid, on);
      break;
    default:
      Launch<uint8_t>(copy, shape, grid, on);
  }
  return cudaGetLastError();
}

}  // namespace kvcache
