// Suite: measurements that are compared with a reference of the same run, and with a target.
#ifndef KVCACHE_BENCH_TARGETS_SUITE_H_
#define KVCACHE_BENCH_TARGETS_SUITE_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvcache::bench {

// Time or rate of one round, in the unit of the row.
using Round = std::function<double()>;

enum class Goal { kAtMost, kAtLeast };

// Runs each measurement and its reference in turn, several times, and prints medians. A machine
// that is shared with others gets faster and slower; what was measured in turn keeps its ratio.
class Suite {
 public:
  struct Options {
    int rounds = 9;
    std::string only;  // rows whose name contains this
  };
  explicit Suite(Options options) : options_(std::move(options)) {}

  // Whether a row of a name that contains `name` will run: rows that need a large fixture ask
  // first.
  bool Wants(absl::string_view name) const;

  // measured / reference, which is to be at most, or at least, `target`.
  void Ratio(absl::string_view name, absl::string_view unit, Goal goal, double target,
             const Round& measured, absl::string_view reference_name, const Round& reference);

  // The value itself.
  void Value(absl::string_view name, absl::string_view unit, Goal goal, double target,
             const Round& measured);

  // Prints how many targets are met; returns all rows as JSON.
  std::string Report() const;

 private:
  struct Row {
    std::string name;
    std::string unit;
    Goal goal;
    double target;
    double measured;
    std::string reference_name;  // empty: none
    double reference;
    double judged;  // the ratio, or the value
    bool met() const { return goal == Goal::kAtMost ? judged <= target : judged >= target; }
  };
  void Add(Row row);

  Options options_;
  std::vector<Row> rows_;
};

double Median(std::vector<double> values);

// Seconds that `f` takes of this thread's processor time: what other programs take meanwhile does
// not count.
double Seconds(const std::function<void()>& f);

// One function for each file of this folder.
void MeasureLookups(Suite& suite);
void MeasureWrites(Suite& suite);
void MeasurePolicies(Suite& suite);
void MeasureAdvice(Suite& suite);
void MeasureThreads(Suite& suite);
void MeasureCopies(Suite& suite);
void MeasurePages(Suite& suite);
void MeasureAllocator(Suite& suite);
void MeasureWaits(Suite& suite);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TARGETS_SUITE_H_
