// Which of the compiled copy kernels a machine runs. Internal to copy_bytes.h and checksum.h.
#ifndef KVCACHE_CORE_COPY_COPY_ROUTINE_H_
#define KVCACHE_CORE_COPY_COPY_ROUTINE_H_

#include <cstddef>
#include <vector>

#include "kvcache/core/copy/copy_kernels.h"

namespace kvcache::internal {

struct CopyRoutine {
  const CopyKernels* kernels;
  bool rep_movsb;  // for destinations that stay in the caches; otherwise memcpy
};

// The fastest one for this machine. Safe for concurrent use.
const CopyRoutine& BestCopyRoutine();

// All that this machine can run, for tests.
std::vector<CopyRoutine> SupportedCopyRoutines();

// The two directions of CopyBytes (copy_bytes.h), by a given routine.
using CopyFunction = void (*)(const CopyRoutine& routine, std::byte* to, const std::byte* from,
                              size_t bytes);
void CopyKeepingInCache(const CopyRoutine& routine, std::byte* to, const std::byte* from,
                        size_t bytes);
void CopyPastCache(const CopyRoutine& routine, std::byte* to, const std::byte* from, size_t bytes);

// From this many bytes on streaming stores are faster than memcpy, although they end with a fence.
// Zen 5, hot source to cold destination, relative to memcpy: 2 KiB 0.67, 4 KiB 0.83, 8 KiB 1.0,
// 64 KiB 1.15, 1 MiB 1.35.
inline constexpr size_t kStreamFromBytes = 8192;

// Tells the sanitizers of a copy by code that they do not see into.
void AnnotateCopy(std::byte* to, const std::byte* from, size_t bytes);

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_COPY_COPY_ROUTINE_H_
