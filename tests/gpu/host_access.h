// What a kernel's thread does, on this processor, with a count of its stores.
#ifndef KVCACHE_TESTS_GPU_HOST_ACCESS_H_
#define KVCACHE_TESTS_GPU_HOST_ACCESS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache {

// Counts the stores to each byte of a buffer.
class Stores {
 public:
  explicit Stores(std::vector<std::byte>* memory)
      : begin_(memory->data()), counts_(memory->size()) {
    active_ = this;
  }
  ~Stores() { active_ = nullptr; }
  static void Count(const std::byte* at, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) ++active_->counts_[at - active_->begin_ + i];
  }
  size_t Sum() const { return std::accumulate(counts_.begin(), counts_.end(), size_t{0}); }
  int Most() const { return *std::max_element(counts_.begin(), counts_.end()); }

 private:
  static inline Stores* active_ = nullptr;
  const std::byte* const begin_;
  std::vector<int> counts_;
};

// The Access of this processor: expects what a device would fault on, and counts the stores.
template <uint32_t kBytes>
struct HostAccess {
  struct Unit {
    std::byte bytes[kBytes];
  };
  Unit Load(const std::byte* from) const {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(from) % kBytes, 0u);
    Unit unit;
    std::memcpy(&unit, from, kBytes);
    return unit;
  }
  void Store(std::byte* to, const Unit& unit) const {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(to) % kBytes, 0u);
    std::memcpy(to, &unit, kBytes);
    Stores::Count(to, kBytes);
  }
};

inline std::vector<std::byte> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

}  // namespace kvcache

#endif  // KVCACHE_TESTS_GPU_HOST_ACCESS_H_
