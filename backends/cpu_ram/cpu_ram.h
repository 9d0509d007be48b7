// Blocks in this process's own memory.
#ifndef KVCACHE_BACKENDS_CPU_RAM_CPU_RAM_H_
#define KVCACHE_BACKENDS_CPU_RAM_CPU_RAM_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

struct CpuRamOptions {
  // For all extents together; what does not fill a last unit of 64 bytes, the alignment, is not
  // used.
  size_t capacity_bytes = 0;

  // When pages are taken from the system. Either way a page that was taken stays, blocks are put
  // into memory that was taken before memory that was not, and the statistics count the bytes of
  // blocks that came before their pages (page_fault_bytes): their first write is several times
  // slower.
  enum class FaultIn {
    // As blocks first use them. Creation is immediate, and what is never filled is never taken.
    kOnUse,
    // All of them in Create: for servers, which rather start later than serve their first requests
    // slowly, or find out under load that the memory is not there.
    kAtCreate,
    // All of them, from the first on, by threads of low priority while the cache is in use.
    // Creation is immediate. Stops when memory runs short, which the statistics then say
    // (fault_in_error);
    // the rest is taken as blocks use it.
    kBackground,
  };
  // Default: as fast as kAtCreate after some seconds (1 to 3 GB/s for each thread), without the
  // wait.
  FaultIn fault_in = FaultIn::kBackground;

  // Whether to ask the system for pages of 2 MiB.
  enum class HugePages {
    kNever,
    kAdvise,
    // From 1 GiB on, a trial in Create decides; it takes up to 64 MiB for 0.02 to 0.2 s, and its
    // figures are in the statistics. Smaller regions are faulted in soon whatever their pages, so
    // kAdvise, for faster copies.
    kAuto,
  };
  // Default: copies are faster with huge pages, but some systems give them slowly.
  HugePages huge_pages = HugePages::kAuto;

  enum class Sharing {
    kPrivate,
    // In a memfd: exported_memory() gives it to other processes and devices. Whoever has the
    // descriptor can read, and write, what all users have stored.
    kExported,
  };
  // Default: most systems give huge pages to private memory only.
  Sharing sharing = Sharing::kPrivate;
};

// A backend named "cpu_ram": addressable, in memory of kind kHost, extents aligned to 64 bytes. Its
// copies have ended when Write or Read returns, and allocate nothing when all ops succeed. It
// reaches kHost and kPinnedHost memory; kDevice memory is refused with kInvalidArgument, op by op,
// and so is every op of a call with a stream, since a copy by this processor cannot wait for work
// on a device. Its statistics: faulted_bytes, page_fault_bytes, how fault_in and huge_pages were
// set or decided, and the trial's figures.
//
// Errors: kInvalidArgument for a capacity below 64 bytes; kResourceExhausted, before any memory is
// touched, for one above what the system or the process's control group has left (the message names
// which); kResourceExhausted when the system cannot give what it promised; with kExported those of
// memfd_create(2).
absl::StatusOr<std::unique_ptr<StorageBackend>> CreateCpuRamBackend(const CpuRamOptions& options);

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CPU_RAM_CPU_RAM_H_
