#include "kvcache/tests/cache/lock_probe.h"

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <cstdint>

namespace kvcache {
namespace {

struct Watched {
  bool on = false;
  pthread_mutex_t* mutex = nullptr;
  int64_t since = 0;
  int64_t longest = 0;
  int64_t all = 0;
  size_t holds = 0;
};
thread_local Watched watched;

int64_t ProcessorTime() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

[[maybe_unused]] void Locked(pthread_mutex_t* mutex) {
  if (!watched.on) return;
  if (watched.mutex == nullptr) watched.mutex = mutex;
  if (mutex != watched.mutex) return;
  ++watched.holds;
  watched.since = ProcessorTime();
}

[[maybe_unused]] void Unlocks(pthread_mutex_t* mutex) {
  if (!watched.on || mutex != watched.mutex) return;
  const int64_t held = ProcessorTime() - watched.since;
  watched.longest = std::max(watched.longest, held);
  watched.all += held;
}

}  // namespace

LockProbe::LockProbe() { watched = {.on = true}; }
LockProbe::~LockProbe() { watched = {}; }
absl::Duration LockProbe::longest_hold() const { return absl::Nanoseconds(watched.longest); }
absl::Duration LockProbe::all_holds() const { return absl::Nanoseconds(watched.all); }
size_t LockProbe::holds() const { return watched.holds; }

}  // namespace kvcache

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)

namespace {

template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static const auto next = Next<decltype(&pthread_mutex_lock)>("pthread_mutex_lock");
  const int result = next(mutex);
  if (result == 0) kvcache::Locked(mutex);
  return result;
}

int pthread_mutex_trylock(pthread_mutex_t* mutex) {
  static const auto next = Next<decltype(&pthread_mutex_trylock)>("pthread_mutex_trylock");
  const int result = next(mutex);
  if (result == 0) kvcache::Locked(mutex);
  return result;
}

int pthread_mutex_unlock(pthread_mutex_t* mutex) {
  static const auto next = Next<decltype(&pthread_mutex_unlock)>("pthread_mutex_unlock");
  kvcache::Unlocks(mutex);
  return next(mutex);
}

}  // extern "C"

#endif
