#ifndef KVCACHE_BENCH_HARNESS_WORKLOAD_H_
#define KVCACHE_BENCH_HARNESS_WORKLOAD_H_

#include <cstddef>
#include <vector>

#include "kvcache/bench/peers/contender.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/examples/transformer/aligned_array.h"

namespace kvcache::bench {

// Which blocks are put and read, and their bytes: the same for every contender. There is one buffer
// to put from and one to read into, as an engine has them; both are in the processor's caches as
// far as they fit.
class Workload {
 public:
  // REQUIRES: payload_bytes is a multiple of 64; 3/8 of the capacity has room for a payload.
  explicit Workload(const ContenderOptions& options);

  const ContenderOptions& options() const { return options_; }

  // The blocks in the order of their puts: first those that go into a store with room, 3/8 of the
  // capacity; then as many as it takes to fill any store, unmeasured; then those that go into a
  // full store, a quarter of the capacity.
  size_t put_new() const { return put_new_; }
  size_t first_put_full() const { return first_put_full_; }
  size_t end_put_full() const { return blocks_.size(); }
  const Block& block(size_t i) const { return blocks_[i]; }

  // The new ones in random order, as often as it takes for a percentile.
  const std::vector<size_t>& reads() const { return reads_; }

  // The payload of a block, until the next call.
  ConstBytes Payload(const Block& block);

  MutableBytes destination() { return {destination_.data(), destination_.size()}; }

  // kDataLoss, naming the block, unless `bytes` are its payload.
  absl::Status Verify(const Block& block, ConstBytes bytes);

 private:
  const ContenderOptions options_;
  const size_t put_new_;
  const size_t first_put_full_;
  std::vector<Block> blocks_;
  std::vector<size_t> reads_;
  examples::AlignedArray<std::byte> source_;
  examples::AlignedArray<std::byte> destination_;
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_HARNESS_WORKLOAD_H_
