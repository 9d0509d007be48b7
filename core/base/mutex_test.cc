#include "kvcache/core/base/mutex.h"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>

#include "gtest/gtest.h"

namespace kvcache {
namespace {

// Longer than a waiting thread spins: it sleeps when the lock is free for a moment.
void HoldForAWhile() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(300);
  while (std::chrono::steady_clock::now() < end) {
  }
}

TEST(MutexTest, WorkInManyHoldsLetsOthersIn) {
  constexpr size_t kWaits = 50;
  constexpr size_t kMostHolds = 6 * kWaits;
  Mutex mu;
  std::atomic<size_t> holds = 0;
  std::atomic<bool> done = false;
  std::thread worker([&] {
    for (; !done; ++holds) {
      mu.GiveWay();
      MutexLock lock(mu);
      HoldForAWhile();
    }
  });
  size_t while_waiting = 0;
  for (size_t waits = 0; waits < kWaits && while_waiting <= kMostHolds; ++waits) {
    const size_t before = holds;
    while (holds == before) std::this_thread::yield();
    const size_t begin = holds;
    MutexLock lock(mu);
    while_waiting += holds - begin;
  }
  done = true;
  worker.join();
  EXPECT_LE(while_waiting, kMostHolds) << "while another thread waited " << kWaits << " times";
}

}  // namespace
}  // namespace kvcache
