#include "kvcache/tests/fake_gpu/fake_gpu_memory.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) (static_cast<void>(at), static_cast<void>(bytes))
#endif

namespace kvcache {
namespace {

constexpr size_t kAlignment = 256;
// For those that come behind it.
constexpr size_t kMoreInSlab = size_t{16} << 10;

uintptr_t AddressOf(const void* at) { return reinterpret_cast<uintptr_t>(at); }

size_t ToAlignment(uintptr_t address) { return (kAlignment - address % kAlignment) % kAlignment; }

}  // namespace

FakeGpuMemory::FakeGpuMemory(int devices, size_t device_bytes)
    : devices_(devices, Device{device_bytes}) {}

size_t FakeGpuMemory::registered_bytes() const {
  size_t bytes = 0;
  for (const auto& [at, allocation] : allocations_) {
    if (allocation.device == kHost) bytes += allocation.bytes;
  }
  return bytes;
}

std::string FakeGpuMemory::left() const {
  std::string left;
  for (const auto& [at, allocation] : allocations_) {
    absl::StrAppend(&left, allocation.bytes, " bytes of ",
                    allocation.device == kHost ? "host" : "device", " memory; ");
  }
  return left;
}

std::byte* FakeGpuMemory::Allocate(int device, size_t bytes, std::byte fill, bool adjacent) {
  Device& on = devices_[device];
  if (!adjacent || bytes > on.left) {
    on.left = bytes + kMoreInSlab;
    on.slab.reset(new std::byte[on.left + kAlignment]);
    on.next = on.slab.get() + ToAlignment(AddressOf(on.slab.get()));
    ASAN_POISON_MEMORY_REGION(on.next, on.left);
  }
  std::byte* const at = on.next;
  const size_t taken = std::min(on.left, bytes + ToAlignment(bytes));
  on.next += taken;
  on.left -= taken;
  on.free_bytes -= bytes;
  ASAN_UNPOISON_MEMORY_REGION(at, bytes);
  std::memset(at, static_cast<int>(fill), bytes);
  allocations_[AddressOf(at)] = {bytes, device, on.slab};
  return at;
}

bool FakeGpuMemory::Register(MutableBytes memory) {
  const uintptr_t begin = AddressOf(memory.data());
  const auto after = allocations_.lower_bound(begin + memory.size());
  if (after != allocations_.begin()) {
    const auto last = std::prev(after);
    if (last->first + last->second.bytes > begin) return false;
  }
  allocations_[begin] = {memory.size(), kHost, nullptr};
  return true;
}

const FakeGpuMemory::Allocation* FakeGpuMemory::Beginning(const std::byte* at) const {
  const auto it = allocations_.find(AddressOf(at));
  return it == allocations_.end() ? nullptr : &it->second;
}

void FakeGpuMemory::Remove(const std::byte* at) {
  const auto it = allocations_.find(AddressOf(at));
  const Allocation& allocation = it->second;
  if (allocation.device != kHost) {
    devices_[allocation.device].free_bytes += allocation.bytes;
    ASAN_POISON_MEMORY_REGION(at, allocation.bytes);
  }
  allocations_.erase(it);
}

const FakeGpuMemory::Allocation* FakeGpuMemory::Find(const std::byte* at, size_t bytes) const {
  auto it = allocations_.upper_bound(AddressOf(at));
  if (it == allocations_.begin()) return nullptr;
  --it;
  return AddressOf(at) + bytes <= it->first + it->second.bytes ? &it->second : nullptr;
}

bool FakeGpuMemory::GoesOverAnEnd(const std::byte* at, size_t bytes) const {
  const uintptr_t end = AddressOf(at) + bytes;
  auto it = allocations_.upper_bound(AddressOf(at));
  if (it == allocations_.begin()) return false;
  --it;
  const int device = it->second.device;
  uintptr_t known = it->first + it->second.bytes;
  if (known <= AddressOf(at) || known >= end) return false;
  for (++it; known < end; ++it) {
    if (it == allocations_.end() || it->first != known || it->second.device != device) return false;
    known += it->second.bytes;
  }
  return true;
}

}  // namespace kvcache
