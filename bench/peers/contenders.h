// What is compared.
#ifndef KVCACHE_BENCH_PEERS_CONTENDERS_H_
#define KVCACHE_BENCH_PEERS_CONTENDERS_H_

#include <memory>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/bench/peers/contender.h"
#include "kvcache/core/cache/cache_types.h"

namespace kvcache::bench {

struct ContenderInfo {
  std::string name;
  // What it is and where its puts go, in a line.
  std::string description;
  // kUnimplemented, whose message says what is missing, where it cannot run: it is then skipped.
  // Other errors are faults.
  absl::StatusOr<std::unique_ptr<Contender>> (*create)(const ContenderOptions& options);

  friend std::ostream& operator<<(std::ostream& out, const ContenderInfo& info) {
    return out << info.name;
  }
};

// In the order of the report.
absl::Span<const ContenderInfo> AllContenders();

// One file each.
absl::StatusOr<std::unique_ptr<Contender>> CreateMemcpy(const ContenderOptions& options);
absl::StatusOr<std::unique_ptr<Contender>> CreateStreamingStores(const ContenderOptions& options);
absl::StatusOr<std::unique_ptr<Contender>> CreateUnorderedMap(const ContenderOptions& options);
absl::StatusOr<std::unique_ptr<Contender>> CreateRedis(const ContenderOptions& options);
absl::StatusOr<std::unique_ptr<Contender>> CreateMemcached(const ContenderOptions& options);
absl::StatusOr<std::unique_ptr<Contender>> CreateRocksDb(const ContenderOptions& options);
// Its capacity and number of blocks are those of `options`, the rest is of `cache`.
absl::StatusOr<std::unique_ptr<Contender>> CreateKvcache(const ContenderOptions& options,
                                                         CacheOptions cache);

// Memory without an index, written and read by `copy`: what a store around the same copy cannot
// beat.
using CopyFunction = void (*)(std::byte* to, const std::byte* from, size_t bytes);
absl::StatusOr<std::unique_ptr<Contender>> CreateCopyLimit(const ContenderOptions& options,
                                                           CopyFunction copy);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_PEERS_CONTENDERS_H_
