#include "kvcache/core/copy/copy_bytes.h"

#include "kvcache/core/copy/copy_routine.h"

namespace kvcache {

void CopyBytes(std::byte* to, ConstBytes from, NextRead next_read) {
  const internal::CopyRoutine& routine = internal::BestCopyRoutine();
  if (next_read == NextRead::kLater) {
    internal::CopyPastCache(routine, to, from.data(), from.size());
  } else {
    internal::CopyKeepingInCache(routine, to, from.data(), from.size());
  }
}

}  // namespace kvcache
