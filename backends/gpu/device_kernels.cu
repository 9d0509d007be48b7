#include <cuda_runtime.h>

#include <algorithm>

#include "kvcache/backends/gpu/copy_pages.h"
#include "kvcache/backends/gpu/copy_pieces.h"
#include "kvcache/backends/gpu/device_kernels.h"
#include "kvcache/backends/gpu/kernel_units.h"

namespace kvcache {
namespace {

template <uint32_t kBytes>
struct UnitOfBytes;
template <>
struct UnitOfBytes<16> {
  using Type = uint4;
};
template <>
struct UnitOfBytes<8> {
  using Type = uint2;
};
template <>
struct UnitOfBytes<4> {
  using Type = unsigned int;
};
template <>
struct UnitOfBytes<2> {
  using Type = unsigned short;
};
template <>
struct UnitOfBytes<1> {
  using Type = unsigned char;
};

// What is copied is not read again soon: it goes out of the caches first.
template <uint32_t kBytes>
struct DeviceAccess {
  using Unit = typename UnitOfBytes<kBytes>::Type;
  static __device__ __forceinline__ Unit Load(const std::byte* from) {
    return __ldcs(reinterpret_cast<const Unit*>(from));
  }
  static __device__ __forceinline__ void Store(std::byte* to, Unit unit) {
    __stcs(reinterpret_cast<Unit*>(to), unit);
  }
};

// Descriptors are in host memory, a microsecond away: the next is read while this one is copied.
__global__ void __launch_bounds__(kThreads)
    CopyPiecesKernel(const CopyPiece* pieces, uint64_t tiles, PieceTiles numbering) {
  const uint64_t step = uint64_t{gridDim.x} * (kThreads / kWarp);
  uint64_t tile = (uint64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (tile >= tiles) return;
  CopyPiece next = pieces[tile >> numbering.tiles_shift];
  while (true) {
    const CopyPiece piece = next;
    const uint64_t following = tile + step;
    if (following < tiles) next = pieces[following >> numbering.tiles_shift];
    const uint32_t in_piece = static_cast<uint32_t>(tile) & ((1u << numbering.tiles_shift) - 1);
    CopyPieceTile<DeviceAccess>(piece, numbering.tile_units, in_piece, threadIdx.x % kWarp);
    if (following >= tiles) return;
    tile = following;
  }
}

// blockIdx.x: a tile; blockIdx.y: a part.
template <uint32_t kUnitBytes, typename Descriptors>
__global__ void __launch_bounds__(kThreads)
    CopyPagesKernel(const __grid_constant__ PagedCopy copy,
                    const __grid_constant__ PagedShape shape,
                    const __grid_constant__ Descriptors descriptors, uint32_t tiles) {
  // Read once for all threads.
  __shared__ PartOfTokens part;
  __shared__ int32_t pages[kMostTilePages];
  for (uint32_t p = blockIdx.y; p < copy.num_parts; p += gridDim.y) {
    if (threadIdx.x == 0) part = descriptors.Part(p);
    __syncthreads();
    for (uint32_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const PagedTile tile = TileOf(shape, part, t);
      for (uint32_t i = threadIdx.x; i < tile.pages; i += kThreads) {
        pages[i] = descriptors.Page(tile.first_page + i);
      }
      __syncthreads();
      CopyTile(copy, shape, part, tile, pages, threadIdx.x, DeviceAccess<kUnitBytes>());
      __syncthreads();
    }
  }
}

// Says what became of this launch; cudaGetLastError() would also say what somebody else left
// behind.
template <typename... Arguments>
int LaunchKernel(void (*kernel)(Arguments...), dim3 grid, cudaStream_t stream,
                 Arguments... arguments) {
  void* pointers[] = {&arguments...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(kThreads), pointers, 0,
                          stream);
}

// What all devices and drivers take.
static_assert(sizeof(PagedCopy) + sizeof(PagedShape) + sizeof(PagesByValue) + sizeof(uint32_t) <=
              4096);

template <typename Descriptors>
int Launch(const PagedCopy& copy, const PagedShape& shape, const Descriptors& descriptors,
           cudaStream_t stream) {
  constexpr uint32_t kMostBlocksX = 1u << 20;
  constexpr uint32_t kMostBlocksY = 65535;
  const uint32_t tiles = TilesOfPart(shape, copy.most_tokens);
  const dim3 grid(std::min(tiles, kMostBlocksX), std::min(copy.num_parts, kMostBlocksY));
  switch (shape.unit_bytes) {
    case 16:
      return LaunchKernel(CopyPagesKernel<16, Descriptors>, grid, stream, copy, shape, descriptors,
                          tiles);
    case 8:
      return LaunchKernel(CopyPagesKernel<8, Descriptors>, grid, stream, copy, shape, descriptors,
                          tiles);
    case 4:
      return LaunchKernel(CopyPagesKernel<4, Descriptors>, grid, stream, copy, shape, descriptors,
                          tiles);
    case 2:
      return LaunchKernel(CopyPagesKernel<2, Descriptors>, grid, stream, copy, shape, descriptors,
                          tiles);
    default:
      return LaunchKernel(CopyPagesKernel<1, Descriptors>, grid, stream, copy, shape, descriptors,
                          tiles);
  }
}

template <typename Kernel>
int LoadKernel(Kernel* kernel) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
}

template <typename Descriptors, uint32_t... kUnitBytes>
int LoadCopyPages() {
  int error = 0;
  ((error = error != 0 ? error : LoadKernel(CopyPagesKernel<kUnitBytes, Descriptors>)), ...);
  return error;
}

}  // namespace

int LoadKernels() {
  int error = LoadKernel(CopyPiecesKernel);
  if (error == 0) error = LoadCopyPages<PagesByValue, 16, 8, 4, 2, 1>();
  if (error == 0) error = LoadCopyPages<PagesByPointer, 16, 8, 4, 2, 1>();
  return error;
}

int LaunchCopyPieces(const CopyPiece* pieces, size_t num_pieces, void* stream) {
  // Twice what a large device runs at a time.
  constexpr uint64_t kMostBlocks = 4096;
  uint32_t most_units = 0;
  for (size_t i = 0; i < num_pieces; ++i) {
    most_units = std::max(most_units, UnitsOf(pieces[i]).units);
  }
  const PieceTiles numbering = PieceTiles::Of(num_pieces, most_units);
  const uint64_t tiles = uint64_t{num_pieces} << numbering.tiles_shift;
  const uint64_t blocks = (tiles + kThreads / kWarp - 1) / (kThreads / kWarp);
  return LaunchKernel(CopyPiecesKernel, dim3(static_cast<unsigned>(std::min(blocks, kMostBlocks))),
                      static_cast<cudaStream_t>(stream), pieces, tiles, numbering);
}

int LaunchPagedCopy(const PagedCopy& copy, void* stream) {
  const PagedShape shape = ShapeOf(copy);
  const auto on = static_cast<cudaStream_t>(stream);
  if (copy.num_parts <= PagesByValue::kMostParts) {
    return Launch(copy, shape, PagesByValue::Of(copy), on);
  }
  return Launch(copy, shape, PagesByPointer{copy.parts, copy.page_table}, on);
}

}  // namespace kvcache
