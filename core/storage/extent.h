#ifndef KVCACHE_CORE_STORAGE_EXTENT_H_
#define KVCACHE_CORE_STORAGE_EXTENT_H_

#include <cstddef>
#include <cstdint>

namespace kvcache {

// Where a block's bytes are in a backend: [offset, offset + size), in bytes from its start.
struct Extent {
  size_t offset = 0;
  size_t size = 0;
  // Belongs to the allocator that made the extent; means nothing to anybody else.
  uint32_t node = 0;

  friend bool operator==(const Extent&, const Extent&) = default;
};

// One of the extents that lie side by side, used or free.
struct Neighbour {
  Extent extent;
  bool used = false;
  uint32_t owner = 0;  // of a used one: see Allocate()
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_EXTENT_H_
