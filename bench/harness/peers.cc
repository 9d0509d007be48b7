// This store beside others and beside plain copies: bench/README.md says what is measured and how.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kvcache/bench/harness/bench_flags.h"
#include "kvcache/bench/harness/measure.h"
#include "kvcache/bench/harness/report.h"
#include "kvcache/bench/harness/summary.h"
#include "kvcache/bench/harness/workload.h"
#include "kvcache/bench/peers/contenders.h"
#include "kvcache/examples/demo/json.h"
#include "kvcache/examples/demo/terminal.h"

namespace kvcache::bench {
namespace {

// Until what the one before has left to the system's threads, and to its own, is done.
constexpr std::chrono::milliseconds kRest(100);

absl::Status Named(const ContenderInfo& system, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(system.name, ": ", status.message()));
}

// A fresh store for each run; only one at a time takes memory. Results are in the order of
// `flags.systems` and kOperations.
class Comparison {
 public:
  explicit Comparison(const BenchFlags& flags) : flags_(flags), systems_(flags.systems) {}

  absl::StatusOr<Report> Run() {
    report_.working_set_mb = flags_.working_set_mb;
    report_.rounds = flags_.rounds;
    report_.load_before = LoadAverage();
    examples::ProgressLine progress("run",
                                    flags_.payloads.size() * flags_.rounds * flags_.systems.size());
    size_t done = 0;
    std::mt19937_64 random(1);
    for (const size_t payload_bytes : flags_.payloads) {
      Workload workload(
          {.capacity_bytes = flags_.working_set_mb << 20, .payload_bytes = payload_bytes});
      std::map<std::pair<const ContenderInfo*, Operation>, std::vector<Figures>> runs;
      for (size_t round = 0; round < flags_.rounds; ++round) {
        // Each runs on the machine as another one left it: nobody always follows the same.
        std::vector<const ContenderInfo*> order = systems_;
        std::shuffle(order.begin(), order.end(), random);
        for (const ContenderInfo* system : order) {
          progress.Show(done++);
          const absl::StatusOr<Samples> samples = RunOnce(*system, workload);
          if (absl::IsUnimplemented(samples.status())) {
            Skip(*system, samples.status());
            continue;
          }
          if (!samples.ok()) return Named(*system, samples.status());
          for (const Operation operation : kOperations) {
            const std::vector<absl::Duration>& times = samples->of(operation);
            if (times.empty()) continue;
            runs[{system, operation}].push_back(Summarize(times, payload_bytes));
          }
        }
      }
      for (const ContenderInfo* system : systems_) {
        for (const Operation operation : kOperations) {
          const auto found = runs.find({system, operation});
          if (found == runs.end()) continue;
          report_.results.push_back(
              {system->name, operation, payload_bytes, Median(found->second)});
        }
      }
    }
    report_.load_after = LoadAverage();
    return std::move(report_);
  }

 private:
  static absl::StatusOr<Samples> RunOnce(const ContenderInfo& system, Workload& workload) {
    if (examples::Interrupted()) return absl::CancelledError("interrupted");
    malloc_trim(0);  // what the one before has freed is not this one's to reuse
    std::this_thread::sleep_for(kRest);
    const absl::StatusOr<std::unique_ptr<Contender>> contender = system.create(workload.options());
    if (!contender.ok()) return contender.status();
    return MeasureRun(**contender, workload, [] { return !examples::Interrupted(); });
  }

  void Skip(const ContenderInfo& system, const absl::Status& status) {
    report_.skipped.push_back({system.name, std::string(status.message())});
    systems_.erase(std::remove(systems_.begin(), systems_.end(), &system), systems_.end());
  }

  const BenchFlags& flags_;
  std::vector<const ContenderInfo*> systems_;  // without those that were skipped
  Report report_;
};

absl::Status Run(const BenchFlags& flags) {
  std::optional<examples::ResultFile> file;
  if (!flags.json.empty()) {
    absl::StatusOr<examples::ResultFile> opened = examples::ResultFile::Open(flags.json);
    if (!opened.ok()) return opened.status();
    file.emplace(*std::move(opened));
  }
  examples::CatchInterrupt();
  const absl::StatusOr<Report> report = Comparison(flags).Run();
  if (!report.ok()) return report.status();
  // First the file: stdout may be a pipe whose reader has seen enough.
  if (file.has_value()) {
    if (absl::Status s = file->Write(absl::StrCat(Json(*report), "\n")); !s.ok()) return s;
  }
  if (std::fputs(Table(*report).c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    return absl::UnavailableError("cannot write to the standard output");
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  const absl::StatusOr<BenchFlags> flags = ParseBenchFlags(argc, argv);
  const absl::Status status = flags.ok() ? Run(*flags) : flags.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  if (absl::IsCancelled(status)) return 130;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace
}  // namespace kvcache::bench

int main(int argc, char** argv) { return kvcache::bench::Main(argc, argv); }
