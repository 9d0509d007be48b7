#include "kvcache/tests/policy_conformance/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<size_t> allocations{0};

void* Counted(void* memory) {
  ++allocations;
  if (memory == nullptr) std::abort();
  return memory;
}

size_t AtLeastOne(size_t bytes) { return bytes == 0 ? 1 : bytes; }

}  // namespace

// The forms for arrays, and those that do not throw, call these.
void* operator new(size_t bytes) { return Counted(std::malloc(AtLeastOne(bytes))); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  const size_t align = static_cast<size_t>(alignment);
  return Counted(std::aligned_alloc(align, (AtLeastOne(bytes) + align - 1) / align * align));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace kvcache {

size_t AllocationCount() { return allocations; }

}  // namespace kvcache
