// Annotated wrappers over std::mutex and std::condition_variable.
//
// They exist because the thread sanitizer understands std::mutex in every build of the standard
// library, and because its uncontended lock is a few nanoseconds. clang's -Wthread-safety checks
// the annotations.
#ifndef KVCACHE_CORE_BASE_MUTEX_H_
#define KVCACHE_CORE_BASE_MUTEX_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "absl/base/thread_annotations.h"

namespace kvcache {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // Spins for up to a tenth of a millisecond before it lets the system put the thread to sleep.
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    if (!mu_.try_lock()) LockContended();
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }

  // Between two holds of work that takes many: lets those in first that wait for the lock, for up
  // to a millisecond. Without it such a thread takes the lock again before anybody who sleeps has
  // woken up, and they wait for all of its work. REQUIRES: this thread does not hold it. A relaxed
  // load when nobody waits.
  void GiveWay() ABSL_LOCKS_EXCLUDED(this) {
    if (waiting_.load(std::memory_order_relaxed) > 0) LetOneIn();
  }

 private:
  friend class CondVar;

  // What is done under a lock takes from tens of nanoseconds to some microseconds, and sleeping
  // longer. The tries are some microseconds apart: so whoever has the lock gets some of its work
  // done before the memory that it guards moves to another processor.
  void LockContended() {
    waiting_.fetch_add(1, std::memory_order_relaxed);
    if (!Spin()) mu_.lock();
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    let_in_.fetch_add(1, std::memory_order_relaxed);
  }
  bool Spin() {
    for (int tries = 0; tries < 10; ++tries) {
      for (int i = 0; i < 256; ++i) Pause();
      if (mu_.try_lock()) return true;
    }
    return false;
  }
  void LetOneIn() {
    const uint32_t before = let_in_.load(std::memory_order_relaxed);
    for (int tries = 0; tries < 64; ++tries) {
      if (let_in_.load(std::memory_order_relaxed) != before) return;
      for (int i = 0; i < 256; ++i) Pause();
      std::this_thread::yield();
    }
  }

  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::mutex mu_;
  std::atomic<uint32_t> waiting_ = 0;
  std::atomic<uint32_t> let_in_ = 0;  // of those that had to wait
};

// For the constructor of a MutexLock that takes over a lock that is held already.
struct AdoptLock {};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_.Lock(); }
  MutexLock(Mutex& mu, AdoptLock) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) : mu_(mu) {}
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

class CondVar {
 public:
  // Unlocks `mu`, waits, locks again. Wakes up spuriously: call it in a loop over the condition.
  void Wait(Mutex& mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // The same, but no longer than until `time`.
  void WaitUntil(Mutex& mu, std::chrono::steady_clock::time_point time)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu.mu_, std::adopt_lock);
    cv_.wait_until(lock, time);
    lock.release();
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_BASE_MUTEX_H_
