#ifndef KVCACHE_BACKENDS_CPU_RAM_BACKGROUND_FAULT_IN_H_
#define KVCACHE_BACKENDS_CPU_RAM_BACKGROUND_FAULT_IN_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvcache/backends/cpu_ram/region_allocator.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {

// Faults in all of a region on threads of its own, one for every two processors and at most
// kMaxThreads, in steps of kStep. They are polite: their priority is low (on Linux, niceness 10),
// and a step holds the kernel's lock on the address space only for a millisecond or so. Not lower
// than that: a thread that never gets a processor would keep that lock from all others.
//
// A region of no more than kStep is faulted in by the constructor.
class BackgroundFaultIn {
 public:
  static constexpr size_t kStep = size_t{2} << 20;
  static constexpr size_t kMaxThreads = 4;

  using FaultIn = std::function<absl::Status(size_t offset, size_t size)>;

  // `fault_in` is called from several threads at a time, without locks. `allocator` outlives this.
  BackgroundFaultIn(RegionAllocator* allocator, FaultIn fault_in);
  // Stops: waits for the steps under way, starts no others.
  ~BackgroundFaultIn();
  BackgroundFaultIn(const BackgroundFaultIn&) = delete;
  BackgroundFaultIn& operator=(const BackgroundFaultIn&) = delete;

  // Blocks until everything is faulted in or a step has failed.
  void Wait() const;

  // The first failure of a step, after which no more are started.
  absl::Status status() const;

 private:
  void RunThread();
  void Run();
  void Fail(absl::Status status);

  RegionAllocator& allocator_;
  const FaultIn fault_in_;
  std::atomic<bool> stop_ = false;

  mutable Mutex mu_;
  mutable CondVar changed_;
  size_t running_ ABSL_GUARDED_BY(mu_) = 0;  // threads
  absl::Status status_ ABSL_GUARDED_BY(mu_);

  std::vector<std::thread> threads_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CPU_RAM_BACKGROUND_FAULT_IN_H_
