#include "kvcache/backends/cpu_ram/memory_region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvcache {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t PageSize() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

// 0 or an error of madvise().
int Populate(std::byte* data, size_t size) {
#ifdef MADV_POPULATE_WRITE
  int result;
  do {
    result = madvise(data, size, MADV_POPULATE_WRITE);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  return result == 0 ? 0 : errno;
#else
  return EINVAL;
#endif
}

}  // namespace

absl::StatusOr<MemoryRegion> MemoryRegion::Reserve(size_t bytes) {
  if (bytes == 0) return absl::InvalidArgumentError("a memory region of 0 bytes");
  if (bytes > std::numeric_limits<size_t>::max() / 2) {
    return absl::ResourceExhaustedError(absl::StrCat("no addresses for bytes = ", bytes));
  }
  const size_t mapping_size = bytes + kHugePage;
  void* const mapping = mmap(nullptr, mapping_size, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("mmap of bytes = ", mapping_size, ": ", std::strerror(errno)));
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(mapping);
  const size_t skipped = (kHugePage - address % kHugePage) % kHugePage;
  std::byte* const data = static_cast<std::byte*>(mapping) + skipped;
  // Both are wishes. Huge pages end with the region, so that it never takes more than its size.
  madvise(data, bytes, MADV_HUGEPAGE);
  madvise(data, bytes, MADV_DONTDUMP);
  return MemoryRegion(mapping, mapping_size, data, bytes);
}

MemoryRegion::MemoryRegion(MemoryRegion&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_size_(other.mapping_size_),
      data_(other.data_),
      size_(other.size_) {}

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MemoryRegion::~MemoryRegion() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
}

absl::Status MemoryRegion::FaultIn() {
  // Chunks large enough that a thread pays, small enough that all threads end together.
  constexpr size_t kChunk = size_t{64} << 20;
  constexpr size_t kMaxThreads = 16;
  const size_t chunks = (size_ + kChunk - 1) / kChunk;
  std::atomic<size_t> next = 0;
  std::atomic<int> error = 0;
  const auto populate = [&] {
    for (size_t chunk = next++; chunk < chunks && error == 0; chunk = next++) {
      const size_t offset = chunk * kChunk;
      if (const int e = Populate(data_ + offset, std::min(kChunk, size_ - offset)); e != 0) {
        error = e;
      }
    }
  };
  const size_t processors = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  try {
    while (threads.size() + 1 < std::min({chunks, processors, kMaxThreads})) {
      threads.emplace_back(populate);
    }
  } catch (const std::system_error&) {
    // The process may have no more threads; those that there are do it all.
  }
  populate();
  for (std::thread& thread : threads) thread.join();
  if (error == EINVAL || error == ENOSYS) {
    TouchEachPage();
  } else if (error != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("faulting in bytes = ", size_, ": ", std::strerror(error)));
  }
  return absl::OkStatus();
}

void MemoryRegion::TouchEachPage() {
  const size_t page = PageSize();
  for (size_t offset = 0; offset < size_; offset += page) {
    volatile std::byte& byte = data_[offset];
    byte = std::byte{byte};
  }
}

}  // namespace kvcache
