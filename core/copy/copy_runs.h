// RunCopier: copies many runs of bytes that are apart from each other.
#ifndef KVCACHE_CORE_COPY_COPY_RUNS_H_
#define KVCACHE_CORE_COPY_COPY_RUNS_H_

#include <cstddef>

#include "kvcache/core/copy/copy_kernels.h"
#include "kvcache/core/copy/copy_routine.h"

namespace kvcache {

// Like CopyBytes(..., NextRead::kLater) for each run, and faster for runs of 64 bytes to 64 KiB
// from cold memory: the processor cannot guess where the next one is, so it is fetched while
// earlier ones are copied.
//
//   RunCopier copier;
//   for (const Row& row : rows) copier.Add(row.to, row.from, row.bytes);
//   copier.Finish();
//
// Fastest when destinations are aligned to 64 bytes. Thread-compatible; allocates nothing.
class RunCopier {
 public:
  // `routine` is for tests.
  explicit RunCopier(const internal::CopyRoutine& routine = internal::BestCopyRoutine())
      : kernels_(*routine.kernels) {}
  ~RunCopier() { Finish(); }
  RunCopier(const RunCopier&) = delete;
  RunCopier& operator=(const RunCopier&) = delete;

  // Both sides must stay valid, and the source unchanged, until Finish().
  // REQUIRES: the source overlaps no destination.
  void Add(std::byte* to, const std::byte* from, size_t bytes) {
    if (waiting_bytes_ >= kAheadBytes || end_ - first_ == kMostRuns) CopyFirst(from, bytes);
    runs_[end_++ % kMostRuns] = {to, from, bytes};
    waiting_bytes_ += bytes;
  }

  // Copies what waits. From here on the bytes are published like those of memcpy.
  void Finish();

 private:
  // So much is under way from memory. Measured with runs of 256 bytes, 2 KiB and 32 KiB on Zen 5:
  // 2 to 8 KiB are as good, 1 KiB costs a tenth.
  static constexpr size_t kAheadBytes = 4096;
  static constexpr size_t kMostRuns = 64;

  struct Run {
    std::byte* to;
    const std::byte* from;
    size_t bytes;
  };

  // Copies the run that has waited longest, and fetches `bytes` at `ahead`.
  void CopyFirst(const std::byte* ahead, size_t bytes);

  const internal::CopyKernels& kernels_;
  Run runs_[kMostRuns];  // a ring
  size_t first_ = 0;
  size_t end_ = 0;
  size_t waiting_bytes_ = 0;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_COPY_COPY_RUNS_H_
