#ifndef KVCACHE_BACKENDS_GPU_LINK_THREADS_H_
#define KVCACHE_BACKENDS_GPU_LINK_THREADS_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvcache/backends/gpu/event_pool.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {

// The threads of a DeviceLink. Workers compute checksums and run callbacks, and wait for no device;
// for each stream on which something is awaited there is a thread that only waits. So a stream that
// has stalled holds up nothing but what is behind it. Thread-safe.
class LinkThreads {
 public:
  struct Options {
    uint32_t workers = 1;
    // Each thread calls it first.
    std::function<void()> begin;
    // Blocks until the event has fired.
    std::function<absl::Status(const PooledEvent&)> wait;
    // How long a thread that waits stays without work: making one takes longer than enqueueing a
    // copy.
    std::chrono::nanoseconds linger = std::chrono::seconds(1);
  };

  explicit LinkThreads(Options options) : options_(std::move(options)) {}
  ~LinkThreads() { End(); }
  LinkThreads(const LinkThreads&) = delete;
  LinkThreads& operator=(const LinkThreads&) = delete;

  // Ends everything that was asked for, and what that asks for; nothing runs when it returns.
  void End();

  // Starts the workers. kResourceExhausted when the system has no more threads.
  absl::Status Start();

  void Run(std::function<void()> work);
  // Runs `work`, on a worker, once the event has fired, which was recorded on `stream`. Calls for
  // one stream are in the order of the records.
  void RunAfter(GpuStream stream, EventRef event,
                std::function<void(const absl::Status& fired)> work);

 private:
  struct Awaited {
    EventRef event;
    std::function<void(const absl::Status& fired)> work;
  };
  // Ends when it has lingered; the next call makes another.
  struct Waiter {
    std::deque<Awaited> queue;
    CondVar wake;
    std::thread thread;
  };

  void Work();
  void Wait(GpuStream stream);

  const Options options_;
  Mutex mu_;
  CondVar work_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  std::map<GpuStream, Waiter> waiters_ ABSL_GUARDED_BY(mu_);
  uint32_t running_ ABSL_GUARDED_BY(mu_) = 0;  // of the work, by workers
  CondVar ended_some_;
  std::vector<std::thread> ended_ ABSL_GUARDED_BY(mu_);  // to be joined
  enum class Stop { kNot, kWaiters, kAll };
  Stop stop_ ABSL_GUARDED_BY(mu_) = Stop::kNot;
  std::vector<std::thread> workers_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_LINK_THREADS_H_
