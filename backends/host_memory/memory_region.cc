#include "kvcache/backends/host_memory/memory_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
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

absl::StatusOr<MemoryRegion> MemoryRegion::Reserve(size_t bytes, Kind kind) {
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
  MemoryRegion region(mapping, mapping_size, data, bytes);
  if (kind == Kind::kShared) {
    if (absl::Status status = region.Share(); !status.ok()) return status;
  }
  madvise(data, bytes, MADV_DONTDUMP);  // a wish
  return region;
}

absl::Status MemoryRegion::Share() {
  fd_ = memfd_create("kvcache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  // Nobody who maps it can take pages away from under it, or put more memory behind it.
  if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(size_)) != 0 ||
      fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0 ||
      mmap(data_, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd_, 0) ==
          MAP_FAILED ||
      madvise(data_, size_, MADV_DONTFORK) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("a memfd of bytes = ", size_));
  }
  return absl::OkStatus();
}

MemoryRegion::MemoryRegion(MemoryRegion&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_size_(other.mapping_size_),
      data_(other.data_),
      size_(other.size_),
      fd_(std::exchange(other.fd_, -1)) {}

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(fd_, other.fd_);
  return *this;
}

MemoryRegion::~MemoryRegion() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
  if (fd_ >= 0) close(fd_);
}

void MemoryRegion::AdviseHugePages(bool huge, size_t offset, size_t size) const {
  // Huge pages end with the region, so that it never takes more than its size.
  madvise(data_ + offset, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

absl::Status MemoryRegion::FaultIn(size_t offset, size_t size) const {
  const size_t in_page = offset % PageSize();
  const int error = Populate(data_ + offset - in_page, size + in_page);
  if (error == EINVAL || error == ENOSYS) {
    Touch(offset, size);
  } else if (error != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("faulting in bytes = ", size, " at offset ",
                                                     offset, ": ", std::strerror(error)));
  }
  return absl::OkStatus();
}

absl::Status MemoryRegion::FaultInOnThreads(size_t offset, size_t size) const {
  // Chunks large enough that a thread pays, small enough that all threads end together.
  constexpr size_t kChunk = size_t{64} << 20;
  constexpr size_t kMaxThreads = 16;
  const size_t chunks = (size + kChunk - 1) / kChunk;
  const size_t processors = std::max(1u, std::thread::hardware_concurrency());
  std::vector<absl::Status> results(std::min({chunks, processors, kMaxThreads}));
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  const auto fault_in = [&](absl::Status* result) {
    for (size_t chunk = next++; chunk < chunks && !failed; chunk = next++) {
      const size_t begin = chunk * kChunk;
      *result = FaultIn(offset + begin, std::min(kChunk, size - begin));
      if (!result->ok()) failed = true;
    }
  };
  std::vector<std::thread> threads;
  try {
    threads.reserve(results.size());
    while (threads.size() + 1 < results.size()) {
      threads.emplace_back(fault_in, &results[threads.size()]);
    }
  } catch (const std::exception&) {
    // The process may have no more threads, or no memory; those that there are do it all.
  }
  fault_in(&results.back());
  for (std::thread& thread : threads) thread.join();
  for (absl::Status& result : results) {
    if (!result.ok()) return std::move(result);
  }
  return absl::OkStatus();
}

// Writes 0 where there is 0, atomically: the only way to write to a page that others may be writing
// and to change nothing. A page that holds something else is in memory already. An atomic `or` of 0
// would be a mere read to some compilers. Hidden from the sanitizers, as a system call would be.
__attribute__((no_sanitize_address, no_sanitize_thread)) void MemoryRegion::Touch(
    size_t offset, size_t size) const {
  const size_t page = PageSize();
  for (size_t at = offset - offset % page; at < offset + size; at += page) {
    unsigned char* const byte = reinterpret_cast<unsigned char*>(data_ + at);
    unsigned char expected = 0;
    __atomic_compare_exchange_n(byte, &expected, 0, /*weak=*/false, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
  }
}

}  // namespace kvcache
