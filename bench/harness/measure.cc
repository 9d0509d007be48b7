#include "kvcache/bench/harness/measure.h"

#include <chrono>
#include <cstddef>

#include "absl/strings/str_cat.h"

namespace kvcache::bench {
namespace {

using SteadyClock = std::chrono::steady_clock;

class Run {
 public:
  Run(Contender& contender, Workload& workload, absl::FunctionRef<bool()> go_on)
      : contender_(contender), workload_(workload), go_on_(go_on) {}

  // Puts blocks [first, end); their times go into `times` unless it is null.
  absl::Status Put(size_t first, size_t end, std::vector<absl::Duration>* times) {
    for (size_t i = first; i < end; ++i) {
      const Block& block = workload_.block(i);
      const ConstBytes payload = workload_.Payload(block);
      const absl::Status put = Timed(times, [&] { return contender_.Put(block, payload); });
      if (!put.ok()) return put;
    }
    return absl::OkStatus();
  }

  absl::Status Verify() {
    for (size_t i = 0; i < workload_.put_new(); ++i) {
      const Block& block = workload_.block(i);
      const absl::StatusOr<ConstBytes> bytes = contender_.Get(block, workload_.destination());
      if (absl::Status s = Found(block, bytes.status()); !s.ok()) return s;
      if (absl::Status s = workload_.Verify(block, *bytes); !s.ok()) return s;
      if (!contender_.traits().zero_copy) continue;
      absl::Status verified;
      const absl::Status shown = contender_.GetZeroCopy(
          block, [&](ConstBytes shown) { verified = workload_.Verify(block, shown); });
      if (absl::Status s = Found(block, shown); !s.ok()) return s;
      if (!verified.ok()) return verified;
    }
    return absl::OkStatus();
  }

  absl::Status Get(std::vector<absl::Duration>* times) {
    for (size_t i : workload_.reads()) {
      const Block& block = workload_.block(i);
      const absl::Status got =
          Timed(times, [&] { return contender_.Get(block, workload_.destination()).status(); });
      if (absl::Status s = Found(block, got); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  absl::Status GetZeroCopy(std::vector<absl::Duration>* times) {
    size_t shown = 0;
    for (size_t i : workload_.reads()) {
      const Block& block = workload_.block(i);
      const absl::Status got = Timed(times, [&] {
        return contender_.GetZeroCopy(block, [&](ConstBytes bytes) { shown += bytes.size(); });
      });
      if (absl::Status s = Found(block, got); !s.ok()) return s;
    }
    if (shown == workload_.reads().size() * workload_.options().payload_bytes) {
      return absl::OkStatus();
    }
    return absl::DataLossError("blocks were shown with other sizes");
  }

 private:
  template <typename Call>
  absl::Status Timed(std::vector<absl::Duration>* times, Call call) {
    if (!go_on_()) return absl::CancelledError("interrupted");
    const SteadyClock::time_point start = SteadyClock::now();
    absl::Status status = call();
    const SteadyClock::time_point end = SteadyClock::now();
    if (times != nullptr) times->push_back(absl::FromChrono(end - start));
    return status;
  }

  // A contender may lose nothing here: all blocks fit.
  static absl::Status Found(const Block& block, const absl::Status& status) {
    if (!absl::IsNotFound(status)) return status;
    return absl::DataLossError(absl::StrCat("block ", block.index, " is lost"));
  }

  Contender& contender_;
  Workload& workload_;
  const absl::FunctionRef<bool()> go_on_;
};

}  // namespace

absl::string_view Name(Operation operation) {
  switch (operation) {
    case Operation::kPutNew:
      return "put_new";
    case Operation::kPutFull:
      return "put_full";
    case Operation::kGet:
      return "get";
    case Operation::kGetZeroCopy:
      return "get_zero_copy";
  }
  return "";
}

absl::StatusOr<Samples> MeasureRun(Contender& contender, Workload& workload,
                                   absl::FunctionRef<bool()> go_on) {
  Samples samples;
  Run run(contender, workload, go_on);
  absl::Status status = run.Put(0, workload.put_new(), &samples.of(Operation::kPutNew));
  if (status.ok()) status = contender.Settle();
  if (status.ok()) status = run.Verify();
  if (status.ok()) status = run.Get(&samples.of(Operation::kGet));
  if (status.ok() && contender.traits().zero_copy) {
    status = run.GetZeroCopy(&samples.of(Operation::kGetZeroCopy));
  }
  if (status.ok()) status = run.Put(workload.put_new(), workload.first_put_full(), nullptr);
  if (status.ok()) {
    status = run.Put(workload.first_put_full(), workload.end_put_full(),
                     &samples.of(Operation::kPutFull));
  }
  if (!status.ok()) return status;
  return samples;
}

}  // namespace kvcache::bench
