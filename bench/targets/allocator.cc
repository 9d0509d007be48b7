// The extent allocator beside an exact best fit, and what pieces of free memory cost a cache.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/fixtures.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/storage/extent_allocator.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

constexpr size_t kCapacity = size_t{4} << 30;
constexpr size_t kFill = kCapacity / 100 * 95;
constexpr size_t kSteps = 100'000;

// Takes the smallest free extent that fits, and merges at once: O(log n).
class BestFit {
 public:
  BestFit() { Add(0, kCapacity); }

  std::optional<Extent> Allocate(size_t bytes) {
    const auto found = by_size_.lower_bound({bytes, 0});
    if (found == by_size_.end()) return std::nullopt;
    const auto [size, offset] = *found;
    by_size_.erase(found);
    by_offset_.erase(offset);
    if (size > bytes) Add(offset + bytes, size - bytes);
    return Extent{offset, bytes};
  }

  void Free(Extent extent) {
    const auto after = by_offset_.lower_bound(extent.offset);
    if (after != by_offset_.begin()) {
      const auto [offset, size] = *std::prev(after);
      if (offset + size == extent.offset) {
        extent = {offset, size + extent.size};
        Remove(offset, size);
      }
    }
    if (after != by_offset_.end() && extent.offset + extent.size == after->first) {
      const auto [offset, size] = *after;
      extent.size += size;
      Remove(offset, size);
    }
    Add(extent.offset, extent.size);
  }

 private:
  void Add(size_t offset, size_t size) {
    by_offset_[offset] = size;
    by_size_.insert({size, offset});
  }
  void Remove(size_t offset, size_t size) {
    by_offset_.erase(offset);
    by_size_.erase({size, offset});
  }

  std::map<size_t, size_t> by_offset_;
  std::set<std::pair<size_t, size_t>> by_size_;
};

class Tested {
 public:
  std::optional<Extent> Allocate(size_t bytes) {
    absl::StatusOr<Extent> extent = allocator_.Allocate(bytes);
    return extent.ok() ? std::optional(*extent) : std::nullopt;
  }
  void Free(Extent extent) { allocator_.Free(extent); }

 private:
  ExtentAllocator allocator_ = *ExtentAllocator::Create({.capacity_bytes = kCapacity});
};

// Allocates, and frees at random whenever it would be fuller than kFill. Returns the failures, all
// of which would have fit into the total of what is free.
template <typename Allocator>
double Failures(Allocator allocator, absl::Span<const size_t> sizes, size_t* operations) {
  std::mt19937_64 random(3);
  std::vector<Extent> live;
  size_t used = 0;
  size_t failures = 0;
  for (size_t size : sizes) {
    while (used + size > kFill) {
      std::swap(live[random() % live.size()], live.back());
      allocator.Free(live.back());
      used -= live.back().size;
      live.pop_back();
      ++*operations;
    }
    ++*operations;
    const std::optional<Extent> extent = allocator.Allocate(size);
    if (!extent.has_value()) {
      ++failures;
      continue;
    }
    live.push_back(*extent);
    used += size;
  }
  return static_cast<double>(failures);
}

std::vector<size_t> LogUniformSizes(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> exponent(std::log(4096.0), std::log(8.0 * (1 << 20)));
  std::vector<size_t> sizes;
  for (size_t i = 0; i < kSteps; ++i) {
    sizes.push_back(static_cast<size_t>(std::exp(exponent(random))) / 64 * 64);
  }
  return sizes;
}

// What becomes of 20,000 requests for blocks of up to 512 KiB, each put where it is missed, into
// 64 MiB: nobody holds a lease.
struct MixedPuts {
  double refused = 0;
  double hits = 0;
  double in_use = 0;  // of the capacity, in the end
};

MixedPuts PutMixed(std::unique_ptr<StorageBackend> backend, bool log_uniform) {
  constexpr size_t kBlocks = 2000;
  constexpr double kLargest = 512 << 10;
  const double capacity = static_cast<double>(backend->traits().capacity_bytes);
  auto cache = *Cache::Create({.max_blocks = size_t{1} << 20, .checksums = false},
                              std::move(backend), CreateLruPolicy());
  const std::vector<BlockKey> keys = RandomKeys(kBlocks);
  std::mt19937 random(1);
  std::vector<size_t> sizes;
  for (size_t i = 0; i < kBlocks; ++i) {
    const double share = (1 + random() % 1000) / 1000.0;
    sizes.push_back(
        static_cast<size_t>(log_uniform ? kLargest * std::pow(1000, share - 1) : kLargest * share));
  }
  MixedPuts result;
  for (int request = 0; request < 20'000; ++request) {
    const size_t i =
        static_cast<size_t>(kBlocks * std::pow(static_cast<double>(random()) / 0x1p32, 2));
    if (cache->Get(NamespaceId::kDefault, keys[i]).ok()) {
      ++result.hits;
    } else if (absl::StatusOr<WriteLease> lease = cache->Reserve(keys[i], {sizes[i], 1});
               lease.ok()) {
      KVCACHE_CHECK(lease->Commit().ok(), "a commit failed");
    } else {
      ++result.refused;
    }
  }
  result.in_use = static_cast<double>(cache->stats().usage.bytes_in_use) / capacity;
  return result;
}

// Without places there are no pieces: what counts bytes only is the reference.
void MeasureMixedPuts(Suite& suite, bool log_uniform) {
  constexpr size_t kBytes = size_t{64} << 20;
  const std::string of = log_uniform ? " of log-uniform sizes" : " of uniform sizes";
  const auto put = [=] {
    return PutMixed(*CreateCpuRamBackend({.capacity_bytes = kBytes}), log_uniform);
  };
  suite.Value("fragments: refused puts" + of, "puts", Goal::kAtMost, 0,
              [&] { return put().refused; });
  suite.Value("fragments: in use" + of, "of the capacity", Goal::kAtLeast, 0.95,
              [&] { return put().in_use; });
  suite.Ratio(
      "fragments: hits" + of, "hits", Goal::kAtLeast, 0.95, [&] { return put().hits; },
      "memory that is never in pieces",
      [&] {
        return PutMixed(*CreateAccountingBackend({.capacity_bytes = kBytes}), log_uniform).hits;
      });
}

}  // namespace

void MeasureAllocator(Suite& suite) {
  for (const bool log_uniform : {false, true}) MeasureMixedPuts(suite, log_uniform);
  if (!suite.Wants("allocator:")) return;
  size_t operations = 0;
  uint64_t seed = 0;
  std::vector<size_t> sizes;
  suite.Ratio(
      "allocator: failures that fit in the free total, 4 KiB to 8 MiB", "failures", Goal::kAtMost,
      1.5, [&] { return Failures(Tested(), sizes, &operations); }, "exact best fit",
      [&] {
        sizes = LogUniformSizes(++seed);
        return Failures(BestFit(), sizes, &operations);
      });
  suite.Value("allocator: the same with equal sizes", "failures", Goal::kAtMost, 0, [&] {
    return Failures(Tested(), std::vector<size_t>(kSteps, size_t{1} << 20), &operations);
  });
  suite.Value("allocator: Allocate or Free", "ns", Goal::kAtMost, 100, [&] {
    operations = 0;
    const double seconds = Seconds([&] { Failures(Tested(), sizes, &operations); });
    return 1e9 * seconds / static_cast<double>(operations);
  });
}

}  // namespace kvcache::bench
