// Whether this process has been forked since some moment. Internal to core.
#ifndef KVCACHE_CORE_BASE_FORK_H_
#define KVCACHE_CORE_BASE_FORK_H_

#include <atomic>
#include <cstdint>

namespace kvcache::internal {

extern std::atomic<uint32_t> forks;

// Counts from the first call of WatchForks() on: in a child of fork() it is another number than it
// was in the parent. One relaxed load.
inline uint32_t ForkGeneration() { return forks.load(std::memory_order_relaxed); }

// Must be called before the fork. Returns ForkGeneration(). Throws std::bad_alloc. Not seen are
// vfork(), whose child may do nothing anyway, and raw system calls of clone.
uint32_t WatchForks();

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_BASE_FORK_H_
