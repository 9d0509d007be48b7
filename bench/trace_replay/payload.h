#ifndef KVCACHE_BENCH_TRACE_REPLAY_PAYLOAD_H_
#define KVCACHE_BENCH_TRACE_REPLAY_PAYLOAD_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/cache/lease.h"

namespace kvcache::bench {

// What moving real bytes took.
struct PayloadResult {
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  double read_gb_per_s = 0;   // 1e9 bytes; lookups and leases included
  double write_gb_per_s = 0;  // reservations, evictions and commits included
  // Of the hits of a request together, and of the put of a block; microseconds.
  double load_p50_us = 0;
  double load_p99_us = 0;
  double put_p50_us = 0;
  double put_p99_us = 0;
};

// The bytes of a replay: writes those of a put, copies out and checks those of hits, and keeps the
// times. Not thread-safe.
class Payload {
 public:
  // REQUIRES: block_bytes is a positive multiple of 8.
  explicit Payload(size_t block_bytes);

  using Clock = std::chrono::steady_clock;

  // Fills the block with this number. `start` is when its reservation began, and Wrote() tells when
  // its commit has ended.
  void Write(WriteLease& block, uint32_t number);
  void Wrote(Clock::time_point start);

  // Copies out leased blocks, whose numbers are `numbers`; leases that hold nothing are left out.
  // kDataLoss unless they are what was written. `start` is when their lookup began.
  absl::Status Read(absl::Span<const ReadLease> blocks, absl::Span<const uint32_t> numbers,
                    Clock::time_point start);

  PayloadResult result();

 private:
  struct Times {
    std::vector<double> seconds;
    uint64_t bytes = 0;

    void Add(Clock::time_point start, size_t bytes_moved);
    double GbPerS() const;
    double MicrosecondsAt(double quantile);
  };

  const size_t block_bytes_;
  std::vector<uint64_t> block_;  // what is written next
  std::vector<std::byte> copy_;  // what was read last
  Times reads_;
  Times writes_;
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_PAYLOAD_H_
