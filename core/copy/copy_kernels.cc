#include "kvcache/core/copy/copy_kernels.h"

#include <cstring>

#if !defined(KVCACHE_COPY_KERNELS_PORTABLE)
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12 takes the undefined operands of its own intrinsics for mistakes (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace kvcache::internal {
namespace {

constexpr uint32_t kPrime32 = 0x9E3779B1;

// One register of the instruction set: Load, Store, Stream (to an aligned address), and what XXH3
// does to the 64-bit lanes. SwapLanes exchanges the lanes of each pair, MultiplyLow multiplies the
// low halves of the lanes.

#if defined(KVCACHE_COPY_KERNELS_PORTABLE)

#define KVCACHE_COPY_KERNELS_NAME "portable"

struct Vector {
  uint64_t a, b;
};

inline Vector Load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline void Store(void* to, Vector v) { std::memcpy(to, &v, sizeof(v)); }
inline Vector Broadcast(uint32_t x) { return {x, x}; }
inline Vector Add(Vector x, Vector y) { return {x.a + y.a, x.b + y.b}; }
inline Vector Xor(Vector x, Vector y) { return {x.a ^ y.a, x.b ^ y.b}; }
inline Vector MultiplyLow(Vector x, Vector y) {
  return {(x.a & 0xffffffff) * (y.a & 0xffffffff), (x.b & 0xffffffff) * (y.b & 0xffffffff)};
}
inline Vector SwapLanes(Vector x) { return {x.b, x.a}; }
template <int kBits>
inline Vector ShiftRight(Vector x) {
  return {x.a >> kBits, x.b >> kBits};
}
template <int kBits>
inline Vector ShiftLeft(Vector x) {
  return {x.a << kBits, x.b << kBits};
}

#elif defined(__AVX512F__)

#define KVCACHE_COPY_KERNELS_NAME "AVX-512"

using Vector = __m512i;

inline Vector Load(const void* from) { return _mm512_loadu_si512(from); }
inline void Store(void* to, Vector v) { _mm512_storeu_si512(to, v); }
inline void Stream(void* to, Vector v) { _mm512_stream_si512(static_cast<__m512i*>(to), v); }
inline Vector Broadcast(uint32_t x) { return _mm512_set1_epi64(x); }
inline Vector Add(Vector x, Vector y) { return _mm512_add_epi64(x, y); }
inline Vector Xor(Vector x, Vector y) { return _mm512_xor_si512(x, y); }
inline Vector MultiplyLow(Vector x, Vector y) { return _mm512_mul_epu32(x, y); }
inline Vector SwapLanes(Vector x) {
  return _mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(_MM_SHUFFLE(1, 0, 3, 2)));
}
template <int kBits>
inline Vector ShiftRight(Vector x) {
  return _mm512_srli_epi64(x, kBits);
}
template <int kBits>
inline Vector ShiftLeft(Vector x) {
  return _mm512_slli_epi64(x, kBits);
}

#elif defined(__AVX2__)

#define KVCACHE_COPY_KERNELS_NAME "AVX2"

using Vector = __m256i;

inline Vector Load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void Store(void* to, Vector v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
inline void Stream(void* to, Vector v) { _mm256_stream_si256(static_cast<__m256i*>(to), v); }
inline Vector Broadcast(uint32_t x) { return _mm256_set1_epi64x(x); }
inline Vector Add(Vector x, Vector y) { return _mm256_add_epi64(x, y); }
inline Vector Xor(Vector x, Vector y) { return _mm256_xor_si256(x, y); }
inline Vector MultiplyLow(Vector x, Vector y) { return _mm256_mul_epu32(x, y); }
inline Vector SwapLanes(Vector x) { return _mm256_shuffle_epi32(x, _MM_SHUFFLE(1, 0, 3, 2)); }
template <int kBits>
inline Vector ShiftRight(Vector x) {
  return _mm256_srli_epi64(x, kBits);
}
template <int kBits>
inline Vector ShiftLeft(Vector x) {
  return _mm256_slli_epi64(x, kBits);
}

#else

#define KVCACHE_COPY_KERNELS_NAME "SSE2"

using Vector = __m128i;

inline Vector Load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void Store(void* to, Vector v) { _mm_storeu_si128(static_cast<__m128i*>(to), v); }
inline void Stream(void* to, Vector v) { _mm_stream_si128(static_cast<__m128i*>(to), v); }
inline Vector Broadcast(uint32_t x) { return _mm_set1_epi64x(x); }
inline Vector Add(Vector x, Vector y) { return _mm_add_epi64(x, y); }
inline Vector Xor(Vector x, Vector y) { return _mm_xor_si128(x, y); }
inline Vector MultiplyLow(Vector x, Vector y) { return _mm_mul_epu32(x, y); }
inline Vector SwapLanes(Vector x) { return _mm_shuffle_epi32(x, _MM_SHUFFLE(1, 0, 3, 2)); }
template <int kBits>
inline Vector ShiftRight(Vector x) {
  return _mm_srli_epi64(x, kBits);
}
template <int kBits>
inline Vector ShiftLeft(Vector x) {
  return _mm_slli_epi64(x, kBits);
}

#endif

constexpr size_t kVectorBytes = sizeof(Vector);
constexpr size_t kVectors = kStripeBytes / kVectorBytes;  // per stripe

// Row i is what stripe i of a block is mixed with, the last row scrambles. Loads from the secret
// itself would cross cache lines: 27 GB/s instead of 33 on Zen 5, AVX-512, cold memory.
struct alignas(kStripeBytes) SecretRows {
  unsigned char row[kStripesPerBlock + 1][kStripeBytes];
};

constexpr SecretRows ExpandSecret() {
  SecretRows rows = {};
  for (size_t i = 0; i <= kStripesPerBlock; ++i) {
    for (size_t j = 0; j < kStripeBytes; ++j) rows.row[i][j] = kSecret[8 * i + j];
  }
  return rows;
}

constexpr SecretRows kSecretRows = ExpandSecret();

// The sums while they are in registers.
struct Sums {
  Vector v[kVectors];
};

// A stripe in registers.
struct Stripe {
  Vector v[kVectors];
};

inline Stripe LoadStripe(const std::byte* from) {
  Stripe stripe;
  for (size_t i = 0; i < kVectors; ++i) stripe.v[i] = Load(from + kVectorBytes * i);
  return stripe;
}

inline void AddStripe(Sums& sums, const Stripe& stripe, const unsigned char* secret) {
  for (size_t i = 0; i < kVectors; ++i) {
    const Vector data = stripe.v[i];
    const Vector key = Xor(data, Load(secret + kVectorBytes * i));
    const Vector product = MultiplyLow(key, ShiftRight<32>(key));
    sums.v[i] = Add(sums.v[i], Add(SwapLanes(data), product));
  }
}

inline void Scramble(Sums& sums) {
  const unsigned char* secret = kSecretRows.row[kStripesPerBlock];
  const Vector prime = Broadcast(kPrime32);
  for (size_t i = 0; i < kVectors; ++i) {
    const Vector key =
        Xor(Xor(sums.v[i], ShiftRight<47>(sums.v[i])), Load(secret + kVectorBytes * i));
    const Vector high = MultiplyLow(ShiftRight<32>(key), prime);
    sums.v[i] = Add(MultiplyLow(key, prime), ShiftLeft<32>(high));
  }
}

// The address may be outside of every object.
inline void Prefetch(const std::byte* from, size_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + bytes));
}

// Calls stripe(sums, secret) for `stripes` stripes and scrambles after each block.
template <typename Stripe>
inline void ForEachStripe(StripeSums& memory, size_t position, size_t stripes, Stripe&& stripe) {
  Sums sums;
  for (size_t i = 0; i < kVectors; ++i) sums.v[i] = Load(&memory.lanes[kVectorBytes / 8 * i]);
  while (stripes > 0) {
    if (position == 0 && stripes >= kStripesPerBlock) {
      for (size_t i = 0; i < kStripesPerBlock; ++i) stripe(sums, kSecretRows.row[i]);
      stripes -= kStripesPerBlock;
      position = kStripesPerBlock;
    } else {
      for (; stripes > 0 && position < kStripesPerBlock; --stripes, ++position) {
        stripe(sums, kSecretRows.row[position]);
      }
    }
    if (position == kStripesPerBlock) {
      Scramble(sums);
      position = 0;
    }
  }
  for (size_t i = 0; i < kVectors; ++i) Store(&memory.lanes[kVectorBytes / 8 * i], sums.v[i]);
}

void SumStripes(StripeSums& memory, size_t position, const std::byte* from, size_t stripes,
                size_t prefetch_bytes) {
  if (prefetch_bytes == 0) {
    ForEachStripe(memory, position, stripes, [&](Sums& sums, const unsigned char* secret) {
      AddStripe(sums, LoadStripe(from), secret);
      from += kStripeBytes;
    });
    return;
  }
  ForEachStripe(memory, position, stripes, [&](Sums& sums, const unsigned char* secret) {
    Prefetch(from, prefetch_bytes);
    AddStripe(sums, LoadStripe(from), secret);
    from += kStripeBytes;
  });
}

// Each byte is loaded once: what is stored is what is summed, whatever happens to the source.
void SumAndStore(StripeSums& memory, size_t position, const std::byte* from, size_t stripes,
                 std::byte* to, size_t prefetch_bytes) {
  ForEachStripe(memory, position, stripes, [&](Sums& sums, const unsigned char* secret) {
    Prefetch(from, prefetch_bytes);
    const Stripe stripe = LoadStripe(from);
    // Before the sum: a store that may change the source keeps compilers from loading it again.
    for (size_t i = 0; i < kVectors; ++i) Store(to + kVectorBytes * i, stripe.v[i]);
    AddStripe(sums, stripe, secret);
    to += kStripeBytes;
    from += kStripeBytes;
  });
}

inline void StoreLine(std::byte* to, const std::byte* from) {
  const Stripe line = LoadStripe(from);
  for (size_t i = 0; i < kVectors; ++i) Store(to + kVectorBytes * i, line.v[i]);
}

// copy(to, from) for each line, and a prefetch beside it.
template <typename CopyLine>
inline void CopyAhead(std::byte* to, const std::byte* from, size_t lines, const std::byte* ahead,
                      size_t ahead_lines, const CopyLine& copy) {
  const size_t both = lines < ahead_lines ? lines : ahead_lines;
  for (size_t i = 0; i < both; ++i) {
    Prefetch(ahead, kStripeBytes * i);
    copy(to + kStripeBytes * i, from + kStripeBytes * i);
  }
  for (size_t i = both; i < lines; ++i) copy(to + kStripeBytes * i, from + kStripeBytes * i);
}

void StoreAhead(std::byte* to, const std::byte* from, size_t lines, const std::byte* ahead,
                size_t ahead_lines) {
  CopyAhead(to, from, lines, ahead, ahead_lines,
            [](std::byte* line, const std::byte* source) { StoreLine(line, source); });
}

#if !defined(KVCACHE_COPY_KERNELS_PORTABLE)

inline void StreamLine(std::byte* to, const std::byte* from) {
  const Stripe line = LoadStripe(from);
  for (size_t i = 0; i < kVectors; ++i) Stream(to + kVectorBytes * i, line.v[i]);
}

void StreamLines(std::byte* to, const std::byte* from, size_t lines) {
  for (; lines > 0; --lines) {
    StreamLine(to, from);
    to += kStripeBytes;
    from += kStripeBytes;
  }
  _mm_sfence();
}

void SumAndStream(StripeSums& memory, size_t position, const std::byte* from, size_t stripes,
                  std::byte* to, const std::byte* copy_from) {
  ForEachStripe(memory, position, stripes, [&](Sums& sums, const unsigned char* secret) {
    StreamLine(to, copy_from);
    AddStripe(sums, LoadStripe(from), secret);
    to += kStripeBytes;
    copy_from += kStripeBytes;
    from += kStripeBytes;
  });
  _mm_sfence();
}

void StreamAhead(std::byte* to, const std::byte* from, size_t lines, const std::byte* ahead,
                 size_t ahead_lines) {
  CopyAhead(to, from, lines, ahead, ahead_lines,
            [](std::byte* line, const std::byte* source) { StreamLine(line, source); });
}

#endif

}  // namespace

#if defined(KVCACHE_COPY_KERNELS_PORTABLE)

const CopyKernels kPortableKernels = {
    KVCACHE_COPY_KERNELS_NAME, &SumStripes, &SumAndStore, nullptr, nullptr, &StoreAhead, nullptr};

#else

const CopyKernels KVCACHE_COPY_KERNELS_TABLE = {KVCACHE_COPY_KERNELS_NAME,
                                                &SumStripes,
                                                &SumAndStore,
                                                &StreamLines,
                                                &SumAndStream,
                                                &StoreAhead,
                                                &StreamAhead};

#endif

}  // namespace kvcache::internal
