#ifndef KVCACHE_BENCH_HARNESS_MEASURE_H_
#define KVCACHE_BENCH_HARNESS_MEASURE_H_

#include <array>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvcache/bench/harness/workload.h"
#include "kvcache/bench/peers/contender.h"

namespace kvcache::bench {

enum class Operation { kPutNew, kPutFull, kGet, kGetZeroCopy };
inline constexpr std::array kOperations = {Operation::kPutNew, Operation::kPutFull, Operation::kGet,
                                           Operation::kGetZeroCopy};

// "put_new", "put_full", "get", "get_zero_copy".
absl::string_view Name(Operation operation);

// The time of each call, of one contender in one run.
class Samples {
 public:
  std::vector<absl::Duration>& of(Operation operation) {
    return times_[static_cast<size_t>(operation)];
  }
  // Empty when the contender has no such operation.
  const std::vector<absl::Duration>& of(Operation operation) const {
    return times_[static_cast<size_t>(operation)];
  }

 private:
  std::array<std::vector<absl::Duration>, kOperations.size()> times_;
};

// One run: puts into a new store, checks every byte of what was put, reads it, fills the store, and
// puts more. Only the calls themselves are timed; filling and checking are not. Errors: the
// contender's; kDataLoss for wrong bytes; kCancelled when `go_on`, asked between calls, says no.
// REQUIRES: `contender` is empty and made for the options of `workload`.
absl::StatusOr<Samples> MeasureRun(Contender& contender, Workload& workload,
                                   absl::FunctionRef<bool()> go_on);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_HARNESS_MEASURE_H_
