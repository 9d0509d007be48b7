// What a call returns that finds no memory.
#ifndef KVCACHE_CORE_BASE_NO_MEMORY_H_
#define KVCACHE_CORE_BASE_NO_MEMORY_H_

#include <new>

#include "absl/status/status.h"

namespace kvcache::internal {

// Without a message: that would take memory.
inline absl::Status NoMemory() { return absl::Status(absl::StatusCode::kResourceExhausted, ""); }

// What `f` returns, or NoMemory() when it throws std::bad_alloc. `f` must leave nothing half done.
template <typename F>
auto WithoutThrowing(const F& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return NoMemory();
  }
}

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_BASE_NO_MEMORY_H_
