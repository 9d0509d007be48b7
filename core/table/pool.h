// Pool: objects by number, in chunks that are allocated elsewhere. Internal to core.
#ifndef KVCACHE_CORE_TABLE_POOL_H_
#define KVCACHE_CORE_TABLE_POOL_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvcache/core/base/check.h"

namespace kvcache::internal {

// Objects that are taken and given back, the latest first, and never move. Nothing that is done
// under a lock allocates: whoever is going to take some asks Lacks(), makes a chunk without the
// lock, and adds it. The pool uses the member `kLink` of an object while it is not taken. O(1).
template <typename T, uint32_t T::*kLink, size_t kPerChunk>
class Pool {
 public:
  using Chunk = std::unique_ptr<T[]>;

  static constexpr uint32_t kNone = 0xffffffff;

  // Allocates 8 bytes for each chunk that may come.
  explicit Pool(size_t max_objects) : max_(max_objects) {
    chunks_.reserve((max_objects + kPerChunk - 1) / kPerChunk);
    if (complete()) cushion_ = kComplete;
  }

  T& operator[](uint32_t i) { return chunks_[i / kPerChunk][i % kPerChunk]; }
  const T& operator[](uint32_t i) const { return chunks_[i / kPerChunk][i % kPerChunk]; }

  // How many can be taken now, and whether there can be as many only after an Add().
  size_t spare() const { return static_cast<uint32_t>(cushion_); }
  bool Lacks(size_t objects) const { return cushion_ < objects; }
  static Chunk MakeChunk() { return std::make_unique<T[]>(kPerChunk); }
  // Does nothing when all chunks are there already.
  void Add(Chunk chunk) {
    if (complete()) return;
    const uint32_t before = reached();
    chunks_.push_back(std::move(chunk));
    cushion_ += reached() - before;
    if (complete()) cushion_ += kComplete;
  }

  // Numbers ever taken are below.
  uint32_t used() const { return used_; }

  // REQUIRES: spare() > 0.
  uint32_t Take() {
    T* object;
    return Take(&object);
  }
  uint32_t Take(T** object) {
    KVCACHE_CHECK(spare() > 0, "none to take among ", max_);
    --cushion_;
    const bool listed = first_spare_ != kNone;
    const uint32_t taken = listed ? first_spare_ : used_++;
    *object = &(*this)[taken];
    if (listed) first_spare_ = std::exchange((*object)->*kLink, kNone);
    return taken;
  }
  // REQUIRES: it was taken.
  void Give(uint32_t i) { Give(i, &(*this)[i]); }
  void Give(uint32_t i, T* object) {
    object->*kLink = std::exchange(first_spare_, i);
    ++cushion_;
  }

 private:
  static constexpr size_t kComplete = size_t{1} << 32;

  bool complete() const { return chunks_.size() == chunks_.capacity(); }
  uint32_t reached() const {
    return static_cast<uint32_t>(std::min(max_, chunks_.size() * kPerChunk));
  }

  const size_t max_;
  std::vector<Chunk> chunks_;  // its capacity is that of all of them
  uint32_t used_ = 0;
  uint32_t first_spare_ = kNone;
  size_t cushion_ = 0;  // spare(), and kComplete more when all chunks are there
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_TABLE_POOL_H_
