// What the kernels have in common. Which bytes a thread copies is arithmetic, and loops, that the
// host can run, and test, too: Access<bytes> says how to Load and Store a Unit of 16, 8, 4, 2 or 1
// bytes.
#ifndef KVCACHE_BACKENDS_GPU_KERNEL_UNITS_H_
#define KVCACHE_BACKENDS_GPU_KERNEL_UNITS_H_

#include <cstdint>

#if defined(__CUDACC__)
#define KVCACHE_HOST_DEVICE __host__ __device__ __forceinline__
#define KVCACHE_DEVICE __device__ __forceinline__
#define KVCACHE_UNROLL _Pragma("unroll")
#else
#define KVCACHE_HOST_DEVICE inline
#define KVCACHE_DEVICE inline
#define KVCACHE_UNROLL
#endif

namespace kvcache {

// Threads of a block.
inline constexpr uint32_t kThreads = 256;
// Loads that a thread has under way before it stores the first: enough for the latency of any
// memory, with as many threads as there are.
inline constexpr uint32_t kInFlight = 4;

// The largest power of two, up to `most`, that divides everything or-ed into `bits`.
KVCACHE_HOST_DEVICE uint32_t UnitOf(uint64_t bits, uint32_t most) {
  const uint32_t low = static_cast<uint32_t>(bits) | most;
  return low & -low;
}

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_KERNEL_UNITS_H_
