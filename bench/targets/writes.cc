// Writes without their copies, and the memory that a block costs.
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"

namespace kvcache::bench {
namespace {

constexpr size_t kBatch = 64;

// Pages of this process that are in memory.
size_t ResidentBytes() {
  size_t total = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  KVCACHE_CHECK(file != nullptr && std::fscanf(file, "%zu %zu", &total, &resident) == 2,
                "cannot read /proc/self/statm");
  std::fclose(file);
  return resident * sysconf(_SC_PAGESIZE);
}

// What a full cache takes for each block, all structures and the allocator's own share included. In
// a process of its own, which has nothing freed to use again.
double BytesPerBlock(absl::Span<const BlockKey> keys, uint32_t parts) {
  int ends[2];
  KVCACHE_CHECK(pipe(ends) == 0, "no pipe");
  const pid_t child = fork();
  KVCACHE_CHECK(child >= 0, "no process");
  double bytes = 0;
  if (child == 0) {
    malloc_trim(0);
    const size_t before = ResidentBytes();
    const std::unique_ptr<Cache> cache = FullCache(keys, parts);
    bytes = static_cast<double>(ResidentBytes() - before) / static_cast<double>(keys.size());
    _exit(write(ends[1], &bytes, sizeof(bytes)) == sizeof(bytes) ? 0 : 1);
  }
  KVCACHE_CHECK(read(ends[0], &bytes, sizeof(bytes)) == sizeof(bytes), "the process has failed");
  close(ends[0]);
  close(ends[1]);
  waitpid(child, nullptr, 0);
  return bytes;
}

std::string Count(size_t count) {
  return count >= 1'000'000 ? absl::StrCat(count / 1'000'000, " M")
                            : absl::StrCat(count / 1000, " k");
}

void MeasureEviction(Suite& suite, size_t count) {
  const std::string name = absl::StrCat("put: evict + insert, ", Count(count), " entries");
  const std::string memory = absl::StrCat("memory: per resident block, ", Count(count), " blocks");
  if (!suite.Wants(name) && !suite.Wants(memory)) return;
  const size_t steps = std::min<size_t>(count / 2, 100'000);
  // The cache evicts the oldest: so the map erases what was inserted the longest ago.
  const std::vector<BlockKey> keys = RandomKeys(count + count / 2);
  if (count >= 1'000'000 && suite.Wants(memory)) {
    for (uint32_t parts : {1, 32}) {
      const double bytes = BytesPerBlock(absl::MakeSpan(keys).first(count), parts);
      suite.Value(absl::StrCat(memory, " of ", parts, parts == 1 ? " part" : " parts"), "bytes",
                  Goal::kAtMost, 160 + 8.0 * parts, [bytes] { return bytes; });
    }
  }
  if (!suite.Wants(name)) return;
  const std::unique_ptr<Cache> cache = FullCache(absl::MakeSpan(keys).first(count));
  absl::flat_hash_map<BlockKey, size_t> map;
  map.reserve(count);
  for (size_t i = 0; i < count; ++i) map[keys[i]] = i;

  size_t cache_next = count;
  const auto evict = [&] {
    return 1e9 / static_cast<double>(steps) * Seconds([&] {
             for (size_t i = 0; i < steps; ++i) {
               cache->Reserve(keys[cache_next], {64, 1})->Commit().IgnoreError();
               if (++cache_next == keys.size()) cache_next = 0;
             }
           });
  };
  // Chains of kBatch blocks in the place of single ones.
  std::vector<absl::StatusOr<WriteLease>> reserved(kBatch);
  std::vector<WriteLease> leases(kBatch);
  std::vector<absl::Status> results(kBatch);
  const auto evict_many = [&] {
    return 1e9 / static_cast<double>(steps / kBatch * kBatch) * Seconds([&] {
             for (size_t i = 0; i + kBatch <= steps; i += kBatch) {
               if (cache_next + kBatch > keys.size()) cache_next = 0;
               cache->ReserveMany({.keys = absl::MakeSpan(keys).subspan(cache_next, kBatch)},
                                  {BlockSize{64, 1}}, {}, absl::MakeSpan(reserved));
               for (size_t j = 0; j < kBatch; ++j) leases[j] = *std::move(reserved[j]);
               cache->CommitMany(absl::MakeSpan(leases), absl::MakeSpan(results));
               cache_next += kBatch;
             }
           });
  };
  size_t map_next = count;
  const auto replace = [&] {
    return 1e9 / static_cast<double>(steps) * Seconds([&] {
             for (size_t i = 0; i < steps; ++i) {
               benchmark::DoNotOptimize(map.find(keys[map_next]) == map.end());
               map.erase(keys[(map_next + keys.size() - count) % keys.size()]);
               map[keys[map_next]] = map_next;
               if (++map_next == keys.size()) map_next = 0;
             }
           });
  };
  suite.Ratio(name, "ns", Goal::kAtMost, 2.0, evict, "find + erase + insert", replace);
  suite.Ratio(absl::StrCat(name, ", in batches of ", kBatch), "ns", Goal::kAtMost, 1.5, evict_many,
              "find + erase + insert", replace);
}

}  // namespace

void MeasureWrites(Suite& suite) {
  for (size_t count : {10'000, 100'000, 1'000'000, 10'000'000}) MeasureEviction(suite, count);
}

}  // namespace kvcache::bench
