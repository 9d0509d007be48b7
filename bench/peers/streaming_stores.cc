#include "kvcache/bench/peers/contenders.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace kvcache::bench {
namespace {

// Stores that do not read their destination into the caches first. `to` is aligned to 64 bytes,
// `bytes` a multiple of 64.

__attribute__((target("avx512f"))) void StreamAvx512(std::byte* to, const std::byte* from,
                                                     size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
  }
  _mm_sfence();
}

__attribute__((target("avx"))) void StreamAvx(std::byte* to, const std::byte* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
  }
  _mm_sfence();
}

void StreamSse2(std::byte* to, const std::byte* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
  _mm_sfence();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateStreamingStores(const ContenderOptions& options) {
  if (__builtin_cpu_supports("avx512f")) return CreateCopyLimit(options, StreamAvx512);
  if (__builtin_cpu_supports("avx")) return CreateCopyLimit(options, StreamAvx);
  return CreateCopyLimit(options, StreamSse2);
}

}  // namespace kvcache::bench

#else

namespace kvcache::bench {

absl::StatusOr<std::unique_ptr<Contender>> CreateStreamingStores(const ContenderOptions&) {
  return absl::UnimplementedError("is written for x86-64 only");
}

}  // namespace kvcache::bench

#endif
