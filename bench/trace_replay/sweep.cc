#include "kvcache/bench/trace_replay/sweep.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/bench/trace_replay/optimum.h"

namespace kvcache::bench {
namespace {

constexpr absl::string_view kReference = "lru";
// A bisection from 1 to 2^32 blocks, to within 1 %, has no more steps.
constexpr size_t kMostSteps = 32;

class Sweeper {
 public:
  Sweeper(const Workload& workload, const SweepOptions& options, Progress progress)
      : workload_(workload),
        options_(options),
        progress_(progress),
        optimum_(workload.trace.blocks, workload.trace.unique_blocks),
        possible_(PossiblePrefixHits(workload.trace)) {
    all_ = (options.policies.size() + !Requested(kReference)) * options.capacities.size() +
           (options.find_needs ? options.policies.size() * kMostSteps : 0);
  }

  absl::StatusOr<Sweep> Run() {
    Sweep sweep;
    const size_t references = workload_.trace.blocks.size();
    sweep.possible_prefix_hit_ratio = ReplayResult::Ratio(possible_, references);
    std::vector<uint64_t> best;
    for (size_t capacity : options_.capacities) best.push_back(optimum_.Hits(capacity));
    for (uint64_t hits : best) sweep.optimum.push_back(ReplayResult::Ratio(hits, references));

    std::vector<ReplayResult> lru;
    if (absl::Status s = ReplayAll(std::string(kReference), &lru); !s.ok()) return s;
    for (const std::string& policy : options_.policies) {
      std::vector<ReplayResult> replays;
      if (policy == kReference) {
        replays = lru;
      } else if (absl::Status s = ReplayAll(policy, &replays); !s.ok()) {
        return s;
      }
      if (options_.find_needs) {
        absl::StatusOr<Need> need = FindNeed(policy, replays);
        if (!need.ok()) return need.status();
        sweep.needs.push_back(*std::move(need));
      }
      for (size_t i = 0; i < replays.size(); ++i) {
        SweepResult& result = sweep.results.emplace_back();
        if (best[i] > lru[i].plain_hits) {
          result.gap_closed = (static_cast<double>(replays[i].plain_hits) -
                               static_cast<double>(lru[i].plain_hits)) /
                              static_cast<double>(best[i] - lru[i].plain_hits);
        }
        result.replay = std::move(replays[i]);
      }
    }
    if (options_.find_needs) {
      const absl::StatusOr<size_t> blocks = Bisect(
          0, workload_.trace.unique_blocks,
          [this](size_t capacity) -> absl::StatusOr<uint64_t> { return optimum_.Hits(capacity); });
      sweep.needs.push_back({"optimum", *blocks});
    }
    return sweep;
  }

 private:
  using HitsAt = absl::FunctionRef<absl::StatusOr<uint64_t>(size_t capacity)>;

  bool Requested(absl::string_view policy) const {
    return std::find(options_.policies.begin(), options_.policies.end(), policy) !=
           options_.policies.end();
  }

  absl::StatusOr<ReplayResult> ReplayOne(const std::string& policy, size_t capacity) {
    progress_(done_++, all_, absl::StrCat(policy, ", ", capacity, " blocks"));
    ReplayOptions options = options_.replay;
    options.policy = policy;
    options.capacity_blocks = capacity;
    return Replay(workload_, options);
  }

  absl::Status ReplayAll(const std::string& policy, std::vector<ReplayResult>* results) {
    for (size_t capacity : options_.capacities) {
      absl::StatusOr<ReplayResult> result = ReplayOne(policy, capacity);
      if (!result.ok()) return result.status();
      results->push_back(*std::move(result));
    }
    return absl::OkStatus();
  }

  bool Suffices(uint64_t hits) const {
    return static_cast<double>(hits) >= kEnough * static_cast<double>(possible_);
  }

  absl::StatusOr<Need> FindNeed(const std::string& policy,
                                const std::vector<ReplayResult>& replays) {
    const size_t done_before = done_;
    size_t too_few = 0;
    size_t enough = workload_.trace.unique_blocks;
    for (const ReplayResult& result : replays) {
      if (Suffices(result.prefix_hits)) {
        enough = std::min(enough, result.capacity_blocks);
        break;
      }
      too_few = std::min(enough, result.capacity_blocks);
    }
    const absl::StatusOr<size_t> blocks =
        Bisect(too_few, enough, [&](size_t capacity) -> absl::StatusOr<uint64_t> {
          absl::StatusOr<ReplayResult> result = ReplayOne(policy, capacity);
          if (!result.ok()) return result.status();
          return result->prefix_hits;
        });
    done_ = std::max(done_, done_before + kMostSteps);
    if (!blocks.ok()) return blocks.status();
    return Need{policy, *blocks};
  }

  absl::StatusOr<size_t> Bisect(size_t too_few, size_t enough, HitsAt hits_at) const {
    while (enough - too_few > std::max<size_t>(enough / 100, 1)) {
      const size_t middle = too_few + (enough - too_few) / 2;
      const absl::StatusOr<uint64_t> hits = hits_at(middle);
      if (!hits.ok()) return hits.status();
      (Suffices(*hits) ? enough : too_few) = middle;
    }
    return enough;
  }

  const Workload& workload_;
  const SweepOptions& options_;
  const Progress progress_;
  const Optimum optimum_;
  const uint64_t possible_;
  size_t all_;
  size_t done_ = 0;
};

}  // namespace

absl::StatusOr<Sweep> RunSweep(const Workload& workload, const SweepOptions& options,
                               Progress progress) {
  return Sweeper(workload, options, progress).Run();
}

std::vector<size_t> DefaultCapacities(size_t unique_blocks) {
  std::vector<size_t> capacities;
  for (size_t ten = 1; ten <= unique_blocks; ten *= 10) {
    for (size_t capacity : {ten, 2 * ten, 5 * ten}) {
      if (capacity <= unique_blocks && capacity * 200 >= unique_blocks) {
        capacities.push_back(capacity);
      }
    }
  }
  if (capacities.empty()) capacities.push_back(1);
  return capacities;
}

}  // namespace kvcache::bench
