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

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_EXTENT_H_
