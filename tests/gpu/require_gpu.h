// For tests of the GPUs of this machine.
#ifndef KVCACHE_TESTS_GPU_REQUIRE_GPU_H_
#define KVCACHE_TESTS_GPU_REQUIRE_GPU_H_

#include <cstdlib>

#include "absl/strings/string_view.h"

namespace kvcache {

// Whether a test that finds no GPU has to fail rather than be skipped: KVCACHE_REQUIRE_GPU=1.
inline bool GpuIsRequired() {
  const char* const value = std::getenv("KVCACHE_REQUIRE_GPU");
  return value != nullptr && absl::string_view(value) == "1";
}

}  // namespace kvcache

#endif  // KVCACHE_TESTS_GPU_REQUIRE_GPU_H_
