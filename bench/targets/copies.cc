// Copies in and out, with and without checksums, and writes in place.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "benchmark/benchmark.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

constexpr size_t kBlock = size_t{1} << 20;
constexpr size_t kWorkingSet = size_t{512} << 20;
constexpr size_t kBlocks = kWorkingSet / kBlock;
constexpr size_t kTurn = 16;  // blocks in one round

// Copies by stores that bypass the caches and nothing else: what a put cannot be faster than.
// REQUIRES: `to` aligned to 64 bytes, a multiple of that.
void Stream(std::byte* to, const std::byte* from, size_t bytes) {
#if defined(__x86_64__)
  for (size_t i = 0; i < bytes; i += 64) {
    for (size_t k = i; k < i + 64; k += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + k),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k)));
    }
  }
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

// A buffer that begins `offset` bytes behind a cache line's first byte. Engines align their
// tensors; large buffers of malloc() begin at 16.
class Buffer {
 public:
  explicit Buffer(size_t offset) : memory_(kBlock + 128, std::byte{1}) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    first_ = memory_.data() + (64 - address % 64) % 64 + offset;
  }
  MutableBytes bytes() { return {first_, kBlock}; }

 private:
  std::vector<std::byte> memory_;
  std::byte* first_;
};

class CopyFixture {
 public:
  explicit CopyFixture(bool checksums, size_t offset = 0)
      : keys_(RandomKeys(2 * kBlocks)), hot_(offset), warm_(offset) {
    auto backend = CreateCpuRamBackend(
        {.capacity_bytes = kWorkingSet, .fault_in = CpuRamOptions::FaultIn::kAtCreate});
    KVCACHE_CHECK(backend.ok(), backend.status().ToString());
    cache_ = *Cache::Create({.checksums = checksums}, *std::move(backend), CreateLruPolicy());
    for (size_t i = 0; i < kBlocks; ++i) PutNext();
  }

  void PutNext() {
    const ConstBytes source = hot_.bytes();
    const absl::Status status = cache_->Put(keys_[put_++ % keys_.size()], {kBlock, 1}, {source});
    KVCACHE_CHECK(status.ok(), status.ToString());
  }

  // The block that was put the longest ago but 64, so that it is in no processor's cache.
  void GetNext() {
    const MutableBytes destination = warm_.bytes();
    const BlockKey& key =
        keys_[(put_ + keys_.size() - kBlocks + 64 + got_++ % (kBlocks - 64)) % keys_.size()];
    const ReadRequest request = {.key = key, .destination = {&destination, 1}};
    const absl::Status status = cache_->ReadInto({&request, 1}).Wait();
    KVCACHE_CHECK(status.ok(), status.ToString());
  }

  // Reserve, fill as an engine does, commit.
  void WriteInPlaceNext() {
    absl::StatusOr<WriteLease> lease = cache_->Reserve(keys_[put_++ % keys_.size()], {kBlock, 1});
    KVCACHE_CHECK(lease.ok(), lease.status().ToString());
    std::memset(lease->data(), 1, kBlock);
    KVCACHE_CHECK(lease->Commit().ok(), "aborted");
  }

 private:
  const std::vector<BlockKey> keys_;
  Buffer hot_;
  Buffer warm_;
  std::unique_ptr<Cache> cache_;
  size_t put_ = 0;
  size_t got_ = 0;
};

// The same copies without a cache.
class BareMemory {
 public:
  // Half a page apart from the buffer: at the same place of a page, reading would wait for writing.
  BareMemory() : memory_(kWorkingSet + 4096, std::byte{1}) {
    const auto here = reinterpret_cast<uintptr_t>(memory_.data());
    const auto there = reinterpret_cast<uintptr_t>(warm()) + 2048;
    first_ = memory_.data() + (there - here) % 4096;
  }
  std::byte* Next() {
    next_ = (next_ + kBlock) % kWorkingSet;
    return first_ + next_;
  }
  std::byte* warm() { return warm_.bytes().data(); }

 private:
  Buffer warm_{0};
  std::vector<std::byte> memory_;
  std::byte* first_;
  size_t next_ = 0;
};

double GbPerSecond(const std::function<void()>& copy) {
  return 1e-9 * kTurn * kBlock / Seconds([&] {
           for (size_t i = 0; i < kTurn; ++i) copy();
         });
}

void MeasurePutsAndGets(Suite& suite) {
  CopyFixture plain(/*checksums=*/false);
  CopyFixture checked(/*checksums=*/true);
  BareMemory bare;
  CopyFixture checked_at_16(/*checksums=*/true, /*offset=*/16);
  CopyFixture plain_at_16(/*checksums=*/false, /*offset=*/16);
  const auto put_plain = [&] { return GbPerSecond([&] { plain.PutNext(); }); };
  const auto get_plain = [&] { return GbPerSecond([&] { plain.GetNext(); }); };
  suite.Ratio("copy: put of 1 MiB that evicts, no checksums", "GB/s", Goal::kAtLeast, 0.85,
              put_plain, "streaming stores",
              [&] { return GbPerSecond([&] { Stream(bare.Next(), bare.warm(), kBlock); }); });
  suite.Ratio("copy: get of 1 MiB into a warm buffer, no checksums", "GB/s", Goal::kAtLeast, 0.95,
              get_plain, "memcpy", [&] {
                return GbPerSecond([&] {
                  std::memcpy(bare.warm(), bare.Next(), kBlock);
                  benchmark::DoNotOptimize(*bare.warm());
                });
              });
  suite.Ratio(
      "copy: put of 1 MiB that evicts, checksums", "GB/s", Goal::kAtLeast, 0.85,
      [&] { return GbPerSecond([&] { checked.PutNext(); }); }, "without", put_plain);
  suite.Ratio(
      "copy: get of 1 MiB into a warm buffer, checksums", "GB/s", Goal::kAtLeast, 0.85,
      [&] { return GbPerSecond([&] { checked.GetNext(); }); }, "without", get_plain);
  suite.Ratio(
      "copy: put from 16 bytes behind a line, checksums", "GB/s", Goal::kAtLeast, 0.85,
      [&] { return GbPerSecond([&] { checked_at_16.PutNext(); }); }, "without",
      [&] { return GbPerSecond([&] { plain_at_16.PutNext(); }); });
  suite.Ratio(
      "copy: get to 16 bytes behind a line, checksums", "GB/s", Goal::kAtLeast, 0.85,
      [&] { return GbPerSecond([&] { checked_at_16.GetNext(); }); }, "without",
      [&] { return GbPerSecond([&] { plain_at_16.GetNext(); }); });
}

// Puts into memory that nobody has used, some time after Create.
void MeasureFirstPuts(Suite& suite) {
  const std::vector<BlockKey> keys = RandomKeys(kBlocks);
  Buffer hot(0);
  BareMemory bare;
  suite.Ratio(
      "copy: first puts of 1 MiB, memory faulted in in the background", "GB/s", Goal::kAtLeast, 0.5,
      [&] {
        auto backend = *CreateCpuRamBackend({.capacity_bytes = kWorkingSet});
        const StorageBackend& memory = *backend;
        auto cache = *Cache::Create({.checksums = false}, std::move(backend), CreateLruPolicy());
        for (int i = 0; i < 3000; ++i) {  // for at most 30 s
          if (memory.stats().Value("faulted_bytes").value() >= static_cast<double>(kWorkingSet))
            break;
          std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        const double seconds = Seconds([&] {
          for (const BlockKey& key : keys) {
            const ConstBytes source = hot.bytes();
            KVCACHE_CHECK(cache->Put(key, {kBlock, 1}, {source}).ok(), "no room");
          }
        });
        return 1e-9 * kWorkingSet / seconds;
      },
      "streaming stores",
      [&] { return GbPerSecond([&] { Stream(bare.Next(), bare.warm(), kBlock); }); });
}

// What Reserve and Commit take besides filling and hashing, in memory that is in the processor's
// cache: there the difference is not lost among the misses.
void MeasureWritesInPlace(Suite& suite) {
  constexpr size_t kSmall = 4096;
  constexpr size_t kFew = 32;
  constexpr size_t kTimes = 50'000;
  const std::vector<BlockKey> keys = RandomKeys(2 * kFew);
  auto backend = CreateCpuRamBackend(
      {.capacity_bytes = kFew * kSmall, .fault_in = CpuRamOptions::FaultIn::kAtCreate});
  auto cache = *Cache::Create({.max_blocks = kFew}, *std::move(backend), CreateLruPolicy());
  std::vector<std::byte> memory(kFew * kSmall);
  size_t next = 0;
  const auto fill = [](std::byte* block) {
    for (size_t i = 0; i < kSmall; i += 64) block[i] = std::byte{2};
  };
  suite.Value("copy: write in place, bookkeeping beside the hashing", "ns", Goal::kAtMost, 400,
              [&] {
                const double bare = Seconds([&] {
                  for (size_t i = 0; i < kTimes; ++i) {
                    std::byte* const block = &memory[i % kFew * kSmall];
                    fill(block);
                    benchmark::DoNotOptimize(ChecksumOf({block, kSmall}));
                  }
                });
                const double all = Seconds([&] {
                  for (size_t i = 0; i < kTimes; ++i) {
                    absl::StatusOr<WriteLease> lease =
                        cache->Reserve(keys[next++ % keys.size()], {kSmall, 1});
                    fill(lease->data());
                    KVCACHE_CHECK(lease->Commit().ok(), "aborted");
                  }
                });
                return 1e9 * (all - bare) / kTimes;
              });
}

}  // namespace

void MeasureCopies(Suite& suite) {
  if (!suite.Wants("copy:")) return;
  MeasurePutsAndGets(suite);
  MeasureFirstPuts(suite);
  MeasureWritesInPlace(suite);
}

}  // namespace kvcache::bench
