#ifndef KVCACHE_BENCH_TRACE_REPLAY_PROGRESS_H_
#define KVCACHE_BENCH_TRACE_REPLAY_PROGRESS_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace kvcache::bench {

// "[######              ] 12 of 40: arc, 5000 blocks" on stderr, in one line that goes when this
// does; nothing unless stderr is a terminal.
class ProgressBar {
 public:
  ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();

  void Show(size_t done, size_t all, absl::string_view next);

 private:
  const bool visible_;
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_PROGRESS_H_
