// CheckSizes: whether the memory that a caller names is as large as what is copied. Internal to
// core/cache.
#ifndef KVCACHE_CORE_CACHE_CHECK_SIZES_H_
#define KVCACHE_CORE_CACHE_CHECK_SIZES_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvcache/core/base/no_memory.h"

namespace kvcache::internal {

// kInvalidArgument, naming `name` and the values, unless the sizes of `pieces` add up to `expected`
// and none is null.
template <typename Pieces>
absl::Status CheckSizes(absl::string_view name, const Pieces& pieces, size_t expected) {
  size_t bytes = 0;
  bool overflow = false;
  for (const auto& piece : pieces) {
    if (piece.data() == nullptr && !piece.empty()) {
      return Error(absl::StatusCode::kInvalidArgument, name, ": null data with a size of ",
                   piece.size(), " bytes");
    }
    overflow |= __builtin_add_overflow(bytes, piece.size(), &bytes);
  }
  if (!overflow && bytes == expected) return absl::OkStatus();
  return Error(absl::StatusCode::kInvalidArgument, name, ": ",
               overflow ? "too many" : absl::StrCat(bytes), " bytes, expected ", expected);
}

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_CACHE_CHECK_SIZES_H_
