#ifndef KVCACHE_TESTS_CACHE_RANDOM_H_
#define KVCACHE_TESTS_CACHE_RANDOM_H_

#include <cstdint>
#include <cstdlib>
#include <optional>

#include "absl/strings/numbers.h"

namespace kvcache {

// For tests: the same numbers for the same seed on every platform (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // From 0 to limit - 1.
  uint32_t Below(uint32_t limit) {
    uint64_t x = (state_ += 0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return static_cast<uint32_t>(((x ^ (x >> 31)) >> 32) * limit >> 32);
  }
  bool Chance(uint32_t percent) { return Below(100) < percent; }

 private:
  uint64_t state_;
};

// The only seed to run, from the environment variable KVCACHE_SEED; none: all of them.
inline std::optional<uint64_t> SeedFromEnvironment() {
  uint64_t seed;
  const char* text = std::getenv("KVCACHE_SEED");
  if (text == nullptr || !absl::SimpleAtoi(text, &seed)) return std::nullopt;
  return seed;
}

}  // namespace kvcache

#endif  // KVCACHE_TESTS_CACHE_RANDOM_H_
