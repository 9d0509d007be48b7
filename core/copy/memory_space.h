// Where bytes live, and in which order work on them happens.
#ifndef KVCACHE_CORE_COPY_MEMORY_SPACE_H_
#define KVCACHE_CORE_COPY_MEMORY_SPACE_H_

#include <cstddef>

#include "absl/types/span.h"

namespace kvcache {

using ConstBytes = absl::Span<const std::byte>;
using MutableBytes = absl::Span<std::byte>;

enum class MemoryKind { kHost, kPinnedHost, kDevice };

// A kind of memory and, for kDevice, which device.
struct MemorySpace {
  MemoryKind kind = MemoryKind::kHost;
  int device = 0;

  friend bool operator==(const MemorySpace&, const MemorySpace&) = default;
};

// A queue of work of an engine (a CUDA stream, say). Copies given to a stream start after the work
// that is already on it. `handle` belongs to the caller and outlives every transfer that uses it.
struct Stream {
  MemorySpace space;
  void* handle = nullptr;

  // No queue: the order of the calling thread.
  static Stream None() { return {}; }
  bool is_none() const { return handle == nullptr; }
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_COPY_MEMORY_SPACE_H_
