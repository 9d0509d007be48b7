// What a call returns that finds no memory. No exception leaves a call of this library.
#ifndef KVCACHE_CORE_BASE_NO_MEMORY_H_
#define KVCACHE_CORE_BASE_NO_MEMORY_H_

#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

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

// An error for where nothing may throw: under a lock, in a callback, in the middle of a change. Its
// message is empty when there is no memory for one.
template <typename... Pieces>
absl::Status Error(absl::StatusCode code, const Pieces&... pieces) {
  try {
    return absl::Status(code, absl::StrCat(pieces...));
  } catch (const std::bad_alloc&) {
    return absl::Status(code, "");
  }
}

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_BASE_NO_MEMORY_H_
