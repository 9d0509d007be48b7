#include "kvcache/bench/trace_replay/payload.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/copy/copy_bytes.h"

namespace kvcache::bench {

Payload::Payload(size_t block_bytes)
    : block_bytes_(block_bytes), block_(block_bytes / sizeof(uint64_t)), copy_(block_bytes) {
  KVCACHE_CHECK(block_bytes > 0 && block_bytes % sizeof(uint64_t) == 0, block_bytes, " bytes");
  std::iota(block_.begin(), block_.end(), 0);
}

// The first and the last word name the block; a check of all words would be most of the time.
void Payload::Write(WriteLease& block, uint32_t number) {
  block_.front() = block_.back() = number;
  CopyBytes(block.data(), {reinterpret_cast<const std::byte*>(block_.data()), block_bytes_},
            NextRead::kLater);
}

void Payload::Wrote(Clock::time_point start) { writes_.Add(start, block_bytes_); }

absl::Status Payload::Read(absl::Span<const ReadLease> blocks, absl::Span<const uint32_t> numbers,
                           Clock::time_point start) {
  size_t copied = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (!blocks[i].holds()) continue;
    CopyBytes(copy_.data(), {blocks[i].data(), block_bytes_}, NextRead::kSoon);
    ++copied;
    uint64_t first, last;
    std::memcpy(&first, copy_.data(), sizeof(first));
    std::memcpy(&last, &copy_[block_bytes_ - sizeof(last)], sizeof(last));
    if (first != numbers[i] || last != numbers[i]) {
      return absl::DataLossError(absl::StrCat("block ", numbers[i], " came back with words ", first,
                                              " and ", last, " at its ends"));
    }
  }
  if (copied > 0) reads_.Add(start, copied * block_bytes_);
  return absl::OkStatus();
}

PayloadResult Payload::result() {
  return {.bytes_read = reads_.bytes,
          .bytes_written = writes_.bytes,
          .read_gb_per_s = reads_.GbPerS(),
          .write_gb_per_s = writes_.GbPerS(),
          .load_p50_us = reads_.MicrosecondsAt(0.5),
          .load_p99_us = reads_.MicrosecondsAt(0.99),
          .put_p50_us = writes_.MicrosecondsAt(0.5),
          .put_p99_us = writes_.MicrosecondsAt(0.99)};
}

void Payload::Times::Add(Clock::time_point start, size_t bytes_moved) {
  seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  bytes += bytes_moved;
}

double Payload::Times::GbPerS() const {
  const double all = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  return all > 0 ? static_cast<double>(bytes) / all * 1e-9 : 0;
}

double Payload::Times::MicrosecondsAt(double quantile) {
  if (seconds.empty()) return 0;
  const auto at =
      seconds.begin() + static_cast<ptrdiff_t>(quantile * static_cast<double>(seconds.size() - 1));
  std::nth_element(seconds.begin(), at, seconds.end());
  return *at * 1e6;
}

}  // namespace kvcache::bench
