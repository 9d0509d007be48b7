#ifndef KVCACHE_BACKENDS_HOST_MEMORY_MEMORY_REGION_H_
#define KVCACHE_BACKENDS_HOST_MEMORY_MEMORY_REGION_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvcache {

// A range of memory, zeroed, which takes pages from the system as they are
// touched ("faulted in") and gives all of them back when it is destroyed. Begins on a boundary of
// 2 MiB. Not part of core dumps: they would be too large, and show what users wrote.
//
// Movable. Thread-compatible; FaultIn() may run beside anything that reads or writes the same
// bytes.
class MemoryRegion {
 public:
  enum class Kind {
    kPrivate,  // of this process
    // A file in memory (memfd), which other processes and devices can map: of fixed size, closed by
    // exec(), and not mapped in a child after fork(), which would write to the same bytes. The
    // system gives it huge pages only where transparent_hugepage/shmem_enabled allows it.
    kShared,
  };

  // Errors: kInvalidArgument for 0 bytes; kResourceExhausted when there is no room for the
  // addresses, or when the system promises no more memory than it has; those of memfd_create(2).
  static absl::StatusOr<MemoryRegion> Reserve(size_t bytes, Kind kind = Kind::kPrivate);

  MemoryRegion(MemoryRegion&& other) noexcept;
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;
  ~MemoryRegion();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  // Of the file whose first size() bytes the region is; -1 when it is private.
  int fd() const { return fd_; }

  // Asks for huge pages, or for none whatever the system's default, where [offset, offset + size)
  // is not faulted in yet. A wish: a system without huge pages ignores it.
  // REQUIRES: the range is inside the region, `offset` a multiple of 2 MiB.
  void AdviseHugePages(bool huge, size_t offset, size_t size) const;

  // Takes the pages of [offset, offset + size) from the system now. Changes no byte. Errors:
  // kResourceExhausted when the system has no more pages. Before Linux 5.14 it does the same as
  // Touch(). REQUIRES: the range is inside the region.
  absl::Status FaultIn(size_t offset, size_t size) const;

  // The same, on several threads.
  absl::Status FaultInOnThreads(size_t offset, size_t size) const;

  // FaultIn() without help of the system; too few pages kill the process.
  void Touch(size_t offset, size_t size) const;

 private:
  MemoryRegion(void* mapping, size_t mapping_size, std::byte* data, size_t size)
      : mapping_(mapping), mapping_size_(mapping_size), data_(data), size_(size) {}
  // Puts a file in the place of the private memory.
  absl::Status Share();

  void* mapping_;  // nullptr when moved from
  size_t mapping_size_;
  std::byte* data_;
  size_t size_;
  int fd_ = -1;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_HOST_MEMORY_MEMORY_REGION_H_
