// Copies into and out of the store, with and without a checksum, as ratios to a reference.
//
//   bazel run //bench:copy_bench
//
// The two sides take turns, 16 MiB each, and "ratio" is the median of reference time / time over
// the turns: the noise of the machine hits both. "GB/s" and "reference_GB/s" are medians, too. A
// put copies a hot source to the next place of 2 GiB, a get from the next place of 2 GiB to one
// warm buffer.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "benchmark/benchmark.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/core/copy/copy_bytes.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {
namespace {

using Copy = void (*)(std::byte* to, ConstBytes from);

enum class Direction { kPut, kGet };

constexpr size_t kColdBytes = size_t{2} << 30;
constexpr size_t kTurnBytes = size_t{16} << 20;
constexpr int kTurns = 101;

// The references.

void Memcpy(std::byte* to, ConstBytes from) { std::memcpy(to, from.data(), from.size()); }

#if defined(__x86_64__)

__attribute__((target("avx512f"))) void StreamAvx512(std::byte* to, ConstBytes from) {
  for (size_t i = 0; i < from.size(); i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from.data() + i));
  }
  _mm_sfence();
}

void StreamSse2(std::byte* to, ConstBytes from) {
  for (size_t i = 0; i < from.size(); i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.data() + i)));
  }
  _mm_sfence();
}

void BareStreamingLoop(std::byte* to, ConstBytes from) {
  static const Copy loop = __builtin_cpu_supports("avx512f") ? &StreamAvx512 : &StreamSse2;
  loop(to, from);
}

#else

void BareStreamingLoop(std::byte* to, ConstBytes from) { Memcpy(to, from); }

#endif

// What is measured.

void Put(std::byte* to, ConstBytes from) { CopyBytes(to, from, NextRead::kLater); }
void Get(std::byte* to, ConstBytes from) { CopyBytes(to, from, NextRead::kSoon); }

template <NextRead next_read>
void CopyAndSum(std::byte* to, ConstBytes from) {
  Checksum sum;
  sum.Copy(to, from, next_read);
  benchmark::DoNotOptimize(sum.Value());
}

void CopyThenSum(std::byte* to, ConstBytes from) {
  Memcpy(to, from);
  benchmark::DoNotOptimize(ChecksumOf({to, from.size()}));
}

void Sum(std::byte*, ConstBytes from) { benchmark::DoNotOptimize(ChecksumOf(from)); }

// As a caller does: reads what it got.
template <Copy copy>
void AndRead(std::byte* to, ConstBytes from) {
  copy(to, from);
  benchmark::DoNotOptimize(ChecksumOf({to, from.size()}));
}

struct alignas(4096) Page {
  std::byte bytes[4096];
};

// 2 GiB that are faulted in, shared by all benchmarks.
std::byte* ColdMemory() {
  static const std::unique_ptr<Page[]> pages = [] {
    std::unique_ptr<Page[]> memory(new Page[kColdBytes / sizeof(Page)]);
    std::memset(static_cast<void*>(memory.get()), 1, kColdBytes);
    return memory;
  }();
  return pages[0].bytes;
}

class Turns {
 public:
  Turns(Direction direction, size_t payload)
      : direction_(direction), payload_(payload), hot_(new Page[payload / sizeof(Page)]) {
    std::memset(static_cast<void*>(hot_.get()), 2, payload);
  }

  // Returns seconds for kTurnBytes.
  double Run(Copy copy) {
    RunOnce(copy);  // warms the code and the hot buffer
    const auto start = std::chrono::steady_clock::now();
    for (size_t done = 0; done < kTurnBytes; done += payload_) RunOnce(copy);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void RunOnce(Copy copy) {
    std::byte* const cold = ColdMemory() + position_;
    std::byte* const hot = hot_[0].bytes;
    if (direction_ == Direction::kPut) {
      copy(cold, {hot, payload_});
    } else {
      copy(hot, {cold, payload_});
    }
    position_ = (position_ + payload_) % kColdBytes;
  }

  const Direction direction_;
  const size_t payload_;
  const std::unique_ptr<Page[]> hot_;
  size_t position_ = 0;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void BM_Copy(benchmark::State& state, Direction direction, Copy copy, Copy reference) {
  Turns turns(direction, state.range(0));
  std::vector<double> ratios, times, reference_times;
  for (auto _ : state) {
    reference_times.push_back(turns.Run(reference));
    times.push_back(turns.Run(copy));
    ratios.push_back(reference_times.back() / times.back());
    state.SetIterationTime(times.back());
  }
  state.counters["ratio"] = Median(ratios);
  state.counters["GB/s"] = kTurnBytes / Median(times) / 1e9;
  state.counters["reference_GB/s"] = kTurnBytes / Median(reference_times) / 1e9;
}

void Payloads(benchmark::internal::Benchmark* benchmark) {
  benchmark->Arg(128 << 10)->Arg(1 << 20)->Arg(4 << 20)->Iterations(kTurns)->UseManualTime();
}

#define KVCACHE_COPY_BENCHMARK(name, ...) \
  BENCHMARK_CAPTURE(BM_Copy, name, __VA_ARGS__)->Apply(Payloads)

KVCACHE_COPY_BENCHMARK(put_to_bare_streaming_loop, Direction::kPut, &Put, &BareStreamingLoop);
KVCACHE_COPY_BENCHMARK(put_and_checksum_to_put, Direction::kPut, &CopyAndSum<NextRead::kLater>,
                       &Put);
KVCACHE_COPY_BENCHMARK(get_to_memcpy, Direction::kGet, &Get, &Memcpy);
KVCACHE_COPY_BENCHMARK(get_and_checksum_to_get, Direction::kGet, &CopyAndSum<NextRead::kSoon>,
                       &Get);

// For orientation.
KVCACHE_COPY_BENCHMARK(put_to_memcpy, Direction::kPut, &Put, &Memcpy);
KVCACHE_COPY_BENCHMARK(get_and_checksum_to_memcpy, Direction::kGet, &CopyAndSum<NextRead::kSoon>,
                       &Memcpy);
KVCACHE_COPY_BENCHMARK(get_and_read_to_memcpy_and_read, Direction::kGet, &AndRead<&Get>,
                       &AndRead<&Memcpy>);
KVCACHE_COPY_BENCHMARK(get_and_checksum_to_memcpy_then_checksum, Direction::kGet,
                       &CopyAndSum<NextRead::kSoon>, &CopyThenSum);
KVCACHE_COPY_BENCHMARK(checksum_of_cold_to_memcpy, Direction::kGet, &Sum, &Memcpy);

}  // namespace
}  // namespace kvcache
