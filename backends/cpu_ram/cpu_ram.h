// Blocks in this process's own memory.
#ifndef KVCACHE_BACKENDS_CPU_RAM_CPU_RAM_H_
#define KVCACHE_BACKENDS_CPU_RAM_CPU_RAM_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/core/storage_backend.h"

namespace kvcache {

struct CpuRamOptions {
  // For all extents together; what does not fill a last unit of 64 bytes, the alignment, is not
  // used.
  size_t capacity_bytes = 0;

  // When pages are taken from the system.
  enum class FaultIn {
    // As blocks first use them; a page that was used once stays. Creation is immediate, and what
    // is never filled is never taken. The first write of a page is several times slower.
    kOnUse,
    // All of them in Create: for servers, which rather start later than serve their first requests
    // slowly, or find out under load that the memory is not there.
    kAtCreate,
  };
  // Default: a small or short-lived cache should not cost the memory and the time of a large one.
  FaultIn fault_in = FaultIn::kOnUse;
};

// A backend named "cpu_ram": addressable, in memory of kind kHost, extents aligned to 64 bytes. Its
// copies have ended when Write or Read returns, and allocate nothing when all ops succeed. It
// reaches kHost and kPinnedHost memory; kDevice memory is refused with kInvalidArgument, op by op,
// and so is every op of a call with a stream, since a copy by this processor cannot wait for work
// on a device.
//
// Errors: kInvalidArgument for a capacity below 64 bytes; kResourceExhausted, before any memory is
// touched, for one above what the system or the process's control group has left (the message names
// which); kResourceExhausted when the system cannot give what it promised.
absl::StatusOr<std::unique_ptr<StorageBackend>> CreateCpuRamBackend(const CpuRamOptions& options);

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CPU_RAM_CPU_RAM_H_
