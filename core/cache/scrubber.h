// Scrubber: compares the blocks of a cache with their checksums, again and again. Internal to core.
#ifndef KVCACHE_CORE_CACHE_SCRUBBER_H_
#define KVCACHE_CORE_CACHE_SCRUBBER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/lease.h"
#include "kvcache/core/policy/slot.h"

namespace kvcache {

class Cache;

namespace internal {

// Goes through the slots of a cache, one block at a time, which it pins and drops if its bytes have
// changed. Thread-safe.
class Scrubber {
 public:
  explicit Scrubber(Cache& cache) : cache_(cache) {}
  ~Scrubber() { Stop(); }
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

  // From now on a thread reads so many bytes each second; 0: none does. Throws std::system_error
  // when there is no thread for it. At most once.
  void Start(size_t bytes_per_second);
  // Ends that thread, and every Scrub() early.
  void Stop();

  // See Cache::Scrub().
  size_t Scrub(size_t bytes);

  uint64_t scrubbed_bytes() const { return scrubbed_bytes_; }

 private:
  // A lease on the next block to compare; holds nothing behind the last one, or after Stop().
  ReadLease PinNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Compares one block; returns its bytes. Goes back to the first one behind the last.
  size_t ScrubOne(bool* wrapped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ScrubInBackground(size_t bytes_per_second);

  Cache& cache_;
  Mutex mu_;  // before stop_mu_ and the cache's
  Slot next_ ABSL_GUARDED_BY(mu_) = 0;
  std::atomic<uint64_t> scrubbed_bytes_ = 0;
  Mutex stop_mu_;
  CondVar stop_;
  bool stopping_ ABSL_GUARDED_BY(stop_mu_) = false;
  std::thread thread_;
};

}  // namespace internal
}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_SCRUBBER_H_
