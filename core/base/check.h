#ifndef KVCACHE_CORE_BASE_CHECK_H_
#define KVCACHE_CORE_BASE_CHECK_H_

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"

// Aborts, in every build, when `condition` is false: for bugs of the caller, never for bad input.
// The other arguments, at least one, are joined by absl::StrCat, and evaluated only on failure:
//   KVCACHE_CHECK(slot < max_slots_, "slot ", slot, " of ", max_slots_);
#define KVCACHE_CHECK(condition, ...)                                                              \
  (ABSL_PREDICT_TRUE(condition) ? static_cast<void>(0)                                             \
                                : ::kvcache::internal::CheckFailed(__FILE__, __LINE__, #condition, \
                                                                   absl::StrCat(__VA_ARGS__)))

namespace kvcache::internal {

[[noreturn]] ABSL_ATTRIBUTE_NOINLINE inline void CheckFailed(const char* file, int line,
                                                             const char* condition,
                                                             const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s: %s\n", file, line, condition, message.c_str());
  std::abort();
}

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_BASE_CHECK_H_
