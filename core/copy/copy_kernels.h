// The loops of copy_bytes.h and checksum.h that are compiled once for each instruction set.
//
// copy_kernels.cc is built several times with different compiler flags, so nothing here or there
// may define an inline function that the linker could merge with the one of another instruction
// set.
#ifndef KVCACHE_CORE_COPY_COPY_KERNELS_H_
#define KVCACHE_CORE_COPY_COPY_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace kvcache::internal {

// XXH3-64 of more than 240 bytes: eight sums over stripes of 64 bytes. After each block of 16
// stripes the sums are scrambled. Stripe i of a block is mixed with the 64 bytes of the secret from
// 8 * i.
inline constexpr size_t kStripeBytes = 64;
inline constexpr size_t kStripesPerBlock = 16;
inline constexpr size_t kSecretBytes = 192;

// The default secret of XXH3.
inline constexpr unsigned char kSecret[kSecretBytes] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

struct alignas(64) StripeSums {
  uint64_t lanes[8];
};

struct CopyKernels {
  const char* name;

  // Adds `stripes` stripes at `from` to the sums; the first one is number `position` (0 to 15) of
  // its block. Unless `prefetch_bytes` is 0, the memory so far from each stripe (modulo 2^64, so
  // also before it) is prefetched, whatever is there.
  void (*sum)(StripeSums& sums, size_t position, const std::byte* from, size_t stripes,
              size_t prefetch_bytes);

  // sum(sums, position, from, stripes, prefetch_bytes), and a copy to `to`, of any alignment, that
  // stays in the caches. Loads each byte once.
  void (*sum_and_store)(StripeSums& sums, size_t position, const std::byte* from, size_t stripes,
                        std::byte* to, size_t prefetch_bytes);

  // Copies `lines` times 64 bytes past the caches; `to` is aligned to 64 bytes. When it returns the
  // stores are ordered before all later ones. Null where there are no such stores.
  void (*stream)(std::byte* to, const std::byte* from, size_t lines);

  // sum(sums, position, from, stripes, 0) and stream(to, copy_from, stripes) in one pass.
  // `copy_from` is at most 63 bytes after `from`. Null together with stream.
  void (*sum_and_stream)(StripeSums& sums, size_t position, const std::byte* from, size_t stripes,
                         std::byte* to, const std::byte* copy_from);

  // Copies `lines` times 64 bytes to `to`, of any alignment, while it prefetches as many lines from
  // `ahead` on, but at most `ahead_lines`.
  void (*store_ahead)(std::byte* to, const std::byte* from, size_t lines, const std::byte* ahead,
                      size_t ahead_lines);

  // The same past the caches; `to` is aligned to 64 bytes. The stores are not ordered before later
  // ones: that takes a fence. Null together with stream.
  void (*stream_ahead)(std::byte* to, const std::byte* from, size_t lines, const std::byte* ahead,
                       size_t ahead_lines);
};

extern const CopyKernels kPortableKernels;
#if defined(__linux__) && defined(__x86_64__)
extern const CopyKernels kSse2Kernels;
extern const CopyKernels kAvx2Kernels;
extern const CopyKernels kAvx512Kernels;
#endif

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_COPY_COPY_KERNELS_H_
