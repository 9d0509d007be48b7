// For tests of many seeded scenarios.
#ifndef KVCACHE_TESTS_GPU_SEEDS_H_
#define KVCACHE_TESTS_GPU_SEEDS_H_

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "gtest/gtest.h"
#include "kvcache/tests/cache/random.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace kvcache {

// The seed under way, also told when the process ends under it: by a check, a sanitizer, or the
// timeout of a test that hangs.
class RunningSeed {
 public:
  static void Set(uint64_t seed) {
    seed_ = seed;
    static const bool installed = Install();
    static_cast<void>(installed);
  }

 private:
  static bool Install() {
    for (int signal : {SIGABRT, SIGTERM}) std::signal(signal, TellAndEnd);
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    __sanitizer_set_death_callback(Tell);
#else
    std::signal(SIGSEGV, TellAndEnd);
#endif
    return true;
  }
  static void Tell() {
    char text[64];
    const int size = std::snprintf(text, sizeof(text), "\nKVCACHE_SEED=%llu\n",
                                   static_cast<unsigned long long>(seed_.load()));
    if (write(STDERR_FILENO, text, size) != size) return;
  }
  static void TellAndEnd(int signal) {
    Tell();
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }

  static inline std::atomic<uint64_t> seed_ = 0;
};

// Calls run(seed) for each seed from 1 on, until a test fails; for KVCACHE_SEED alone if that is
// set. Fewer in the builds with sanitizers, which are slow. Returns how many there were, 0 for one
// alone or a failure: then there is nothing to say about all of them.
template <typename Run>
uint64_t ForEachSeed(uint64_t seeds, const Run& run) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  seeds /= 10;
#endif
  const std::optional<uint64_t> only = SeedFromEnvironment();
  const uint64_t first = only.value_or(1);
  const uint64_t end = only.has_value() ? first + 1 : first + seeds;
  for (uint64_t seed = first; seed < end; ++seed) {
    RunningSeed::Set(seed);
    run(seed);
    if (!testing::Test::HasFailure()) continue;
    ADD_FAILURE() << "KVCACHE_SEED=" << seed;
    return 0;
  }
  return only.has_value() ? 0 : seeds;
}

}  // namespace kvcache

#endif  // KVCACHE_TESTS_GPU_SEEDS_H_
