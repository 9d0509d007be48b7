// Blocks that are counted but not stored.
#ifndef KVCACHE_BACKENDS_ACCOUNTING_ACCOUNTING_H_
#define KVCACHE_BACKENDS_ACCOUNTING_ACCOUNTING_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

struct AccountingOptions {
  // For all extents together; what does not fill a last unit of `alignment` is not used.
  size_t capacity_bytes = 0;
  // Sizes are rounded up to this power of two. Default: that of cpu_ram, so that a replay evicts
  // when a cache in RAM would; 1 counts bytes exactly.
  size_t alignment = 64;
};

// A backend named "accounting", for replays and simulations of caches larger than this machine: one
// counter, whatever the number of extents. An extent is only a size: its offset is always 0, and it
// never fails for fragmentation. Not addressable, stores no bytes: a valid Write succeeds, whatever
// its memory space and stream, and reads nothing from its source; a valid Read ends with
// kFailedPrecondition. Copies have ended when the call returns.
//
// Errors: kInvalidArgument when the alignment is not a power of two or the capacity is smaller.
absl::StatusOr<std::unique_ptr<StorageBackend>> CreateAccountingBackend(
    const AccountingOptions& options);

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_ACCOUNTING_ACCOUNTING_H_
