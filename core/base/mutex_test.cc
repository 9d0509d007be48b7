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
  constexpr size_t kHolds = 1000;
  constexpr size_t kWaits = 20;
  Mutex mu;
  std::atomic<size_t> holds = 0;
  std::atomic<bool> working = false;
  std::thread worker([&] {
    for (; holds < kHolds; ++holds) {
      mu.GiveWay();
      MutexLock lock(mu);
      working = true;
      HoldForAWhile();
    }
  });
  while (!working) std::this_thread::yield();
  size_t waits = 0;
  for (; waits < kWaits && holds < kHolds; ++waits) {
    MutexLock lock(mu);
  }
  const size_t waited = holds;
  worker.join();
  EXPECT_EQ(waits, kWaits);
  EXPECT_LT(waited, kHolds / 2) << "holds that " << kWaits << " waits have taken";
}

}  // namespace
}  // namespace kvcache
