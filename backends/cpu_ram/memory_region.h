#ifndef KVCACHE_BACKENDS_CPU_RAM_MEMORY_REGION_H_
#define KVCACHE_BACKENDS_CPU_RAM_MEMORY_REGION_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvcache {

// A range of this process's private memory, zeroed, which takes pages from the system as they are
// touched and gives all of them back when it is destroyed. Begins on a boundary of 2 MiB and uses
// huge pages where the system has them. Not part of core dumps: they would be too large, and show
// what users wrote.
//
// Movable. Thread-compatible.
class MemoryRegion {
 public:
  // Errors: kInvalidArgument for 0 bytes; kResourceExhausted when there is no room for the
  // addresses, or when the system promises no more memory than it has.
  static absl::StatusOr<MemoryRegion> Reserve(size_t bytes);

  MemoryRegion(MemoryRegion&& other) noexcept;
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;
  ~MemoryRegion();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Takes all pages from the system now, on several threads. Changes no byte. Errors:
  // kResourceExhausted when the system has no more pages.
  absl::Status FaultIn();

  // The same for kernels before 5.14, on this thread; too few pages kill the process.
  void TouchEachPage();

 private:
  MemoryRegion(void* mapping, size_t mapping_size, std::byte* data, size_t size)
      : mapping_(mapping), mapping_size_(mapping_size), data_(data), size_(size) {}

  void* mapping_;  // nullptr when moved from
  size_t mapping_size_;
  std::byte* data_;
  size_t size_;
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CPU_RAM_MEMORY_REGION_H_
