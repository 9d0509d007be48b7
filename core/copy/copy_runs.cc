#include "kvcache/core/copy/copy_runs.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvcache {
namespace {

constexpr size_t kLine = internal::kStripeBytes;
// Runs that do not begin at a line stream from this size on: both ends are stored as usual.
constexpr size_t kStreamUnalignedFromBytes = 1024;
// Of longer runs the processor fetches the rest by itself.
constexpr size_t kMostLinesAhead = (size_t{64} << 10) / kLine;

}  // namespace

void RunCopier::CopyFirst(const std::byte* ahead, size_t bytes) {
  const Run run = runs_[first_++ % kMostRuns];
  waiting_bytes_ -= run.bytes;
  if (run.bytes == 0) return;
  internal::AnnotateCopy(run.to, run.from, run.bytes);
  const size_t ahead_lines = std::min((bytes + kLine - 1) / kLine, kMostLinesAhead);
  const size_t to_line = -reinterpret_cast<uintptr_t>(run.to) % kLine;
  const bool streams =
      kernels_.stream_ahead != nullptr && (to_line == 0 || run.bytes >= kStreamUnalignedFromBytes);
  const size_t head = streams ? to_line : 0;
  const size_t lines = (run.bytes - head) / kLine;
  const size_t tail = head + lines * kLine;
  if (head > 0) std::memcpy(run.to, run.from, head);
  if (streams) {
    kernels_.stream_ahead(run.to + head, run.from + head, lines, ahead, ahead_lines);
  } else {
    kernels_.store_ahead(run.to, run.from, lines, ahead, ahead_lines);
  }
  if (tail == run.bytes) return;
  std::memcpy(run.to + tail, run.from + tail, run.bytes - tail);
  if (lines < ahead_lines) __builtin_prefetch(ahead + lines * kLine);
}

void RunCopier::Finish() {
  while (first_ < end_) CopyFirst(nullptr, 0);
#if defined(__x86_64__)
  if (kernels_.stream_ahead != nullptr) _mm_sfence();
#endif
}

}  // namespace kvcache
