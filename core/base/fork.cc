#include "kvcache/core/base/fork.h"

#include <pthread.h>

#include <new>

namespace kvcache::internal {

std::atomic<uint32_t> forks = 0;

uint32_t WatchForks() {
  static const int error =
      pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  if (error != 0) throw std::bad_alloc();
  return ForkGeneration();
}

}  // namespace kvcache::internal
