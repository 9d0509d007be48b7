#include "kvcache/backends/cpu_ram/background_fault_in.h"

#include <sys/resource.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

#include "kvcache/core/base/no_memory.h"

namespace kvcache {

BackgroundFaultIn::BackgroundFaultIn(RegionAllocator* allocator, FaultIn fault_in)
    : allocator_(*allocator), fault_in_(std::move(fault_in)) {
  const size_t steps = (allocator_.capacity() + kStep - 1) / kStep;
  if (steps == 1) {
    Run();
    return;
  }
  const size_t processors = std::thread::hardware_concurrency();
  const size_t threads = std::min(steps, std::clamp<size_t>(processors / 2, 1, kMaxThreads));
  try {
    threads_.reserve(threads);
    while (threads_.size() < threads) {
      MutexLock lock(mu_);
      threads_.emplace_back(&BackgroundFaultIn::RunThread, this);
      ++running_;
    }
  } catch (const std::exception& error) {  // no memory, or no thread
    // Those that there are do it all.
    if (threads_.empty()) {
      Fail(internal::Error(absl::StatusCode::kResourceExhausted, error.what()));
    }
  }
}

BackgroundFaultIn::~BackgroundFaultIn() {
  stop_ = true;
  for (std::thread& thread : threads_) thread.join();
}

void BackgroundFaultIn::Wait() const {
  MutexLock lock(mu_);
  while (running_ > 0) changed_.Wait(mu_);
}

absl::Status BackgroundFaultIn::status() const {
  MutexLock lock(mu_);
  return status_;
}

void BackgroundFaultIn::RunThread() {
#ifdef __linux__
  setpriority(PRIO_PROCESS, 0, 10);  // on Linux, of this thread alone
#endif
  Run();
  MutexLock lock(mu_);
  --running_;
  changed_.NotifyAll();
}

void BackgroundFaultIn::Run() {
  absl::Status status = internal::WithoutThrowing([this]() -> absl::Status {
    while (!stop_) {
      const std::optional<RegionAllocator::Range> range = allocator_.ClaimUnfaulted(kStep);
      if (!range) break;
      if (absl::Status status = fault_in_(range->offset, range->size); !status.ok()) return status;
      allocator_.MarkFaulted(*range);
    }
    return absl::OkStatus();
  });
  if (!status.ok()) Fail(std::move(status));
}

void BackgroundFaultIn::Fail(absl::Status status) {
  stop_ = true;
  MutexLock lock(mu_);
  status_.Update(std::move(status));
}

}  // namespace kvcache
