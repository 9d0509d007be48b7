// For tests: keys by number, and bytes that tell which part of which block they are.
#ifndef KVCACHE_TESTS_CACHE_CONTENT_H_
#define KVCACHE_TESTS_CACHE_CONTENT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"

namespace kvcache {

inline BlockKey NumberedKey(uint32_t number) {
  BlockKey key;
  const uint64_t spread = (number + 1) * uint64_t{0x9e3779b97f4a7c15};
  std::memcpy(key.bytes.data(), &spread, sizeof(spread));
  std::memcpy(key.bytes.data() + 8, &number, sizeof(number));
  return key;
}

// Periods that differ between parts, so that no part is a shifted piece of another one.
inline std::byte ContentAt(const BlockKey& key, uint32_t part, size_t at) {
  return static_cast<std::byte>(key.bytes[0] + 31 * key.bytes[8] + (2 * part + 3) * at + 97 * part);
}

inline void FillPart(const BlockKey& key, uint32_t part, MutableBytes bytes) {
  for (size_t at = 0; at < bytes.size(); ++at) bytes[at] = ContentAt(key, part, at);
}

inline bool IsPart(const BlockKey& key, uint32_t part, ConstBytes bytes) {
  bool same = true;
  for (size_t at = 0; at < bytes.size(); ++at) same &= bytes[at] == ContentAt(key, part, at);
  return same;
}

// `bytes` is all of a block of `parts` parts.
inline void FillBlock(const BlockKey& key, uint32_t parts, MutableBytes bytes) {
  const size_t each = bytes.size() / parts;
  for (uint32_t part = 0; part < parts; ++part) {
    FillPart(key, part, bytes.subspan(part * each, each));
  }
}

inline bool IsBlock(const BlockKey& key, uint32_t parts, ConstBytes bytes) {
  const size_t each = bytes.size() / parts;
  bool same = true;
  for (uint32_t part = 0; part < parts; ++part) {
    same &= IsPart(key, part, bytes.subspan(part * each, each));
  }
  return same;
}

}  // namespace kvcache

#endif  // KVCACHE_TESTS_CACHE_CONTENT_H_
