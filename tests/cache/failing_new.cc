#include "kvcache/tests/cache/failing_new.h"

#include <cstdlib>
#include <new>

namespace {

thread_local bool armed = false;
thread_local bool all_from = false;
thread_local size_t left = 0;  // until the one that fails, that included
thread_local bool failed = false;

bool Fails() {
  if (!armed) return false;
  if (left > 0) --left;
  const bool fails = left == 0 && (all_from || !failed);
  failed |= fails;
  return fails;
}

size_t AtLeastOne(size_t bytes) { return bytes == 0 ? 1 : bytes; }

void* OrThrow(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// The forms for arrays, and those that do not throw, call these. Not inlined: the compiler takes
// malloc and free for a mismatch of new and delete.
__attribute__((noinline)) void* operator new(size_t bytes) {
  return OrThrow(Fails() ? nullptr : std::malloc(AtLeastOne(bytes)));
}
__attribute__((noinline)) void* operator new(size_t bytes, std::align_val_t alignment) {
  const size_t align = static_cast<size_t>(alignment);
  const size_t whole = (AtLeastOne(bytes) + align - 1) / align * align;
  return OrThrow(Fails() ? nullptr : std::aligned_alloc(align, whole));
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
__attribute__((noinline)) void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace kvcache {

FailingNew::FailingNew(size_t number, Which which) {
  left = number;
  all_from = which == Which::kAllFrom;
  ::failed = false;
  armed = true;
}

FailingNew::~FailingNew() { armed = false; }

bool FailingNew::failed() const { return ::failed; }

}  // namespace kvcache
