// For tests: the memory that a FakeGpuRuntime knows of.
#ifndef KVCACHE_TESTS_FAKE_GPU_FAKE_GPU_MEMORY_H_
#define KVCACHE_TESTS_FAKE_GPU_FAKE_GPU_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

// What was allocated on devices and what was registered of this process, by address. Bounds are
// those of one call: what two calls gave may be side by side, and is not one piece of memory.
//
// Not thread-safe.
class FakeGpuMemory {
 public:
  static constexpr int kHost = -1;

  struct Allocation {
    size_t bytes;
    int device;  // or kHost
    std::shared_ptr<std::byte[]> slab;
  };

  FakeGpuMemory(int devices, size_t device_bytes);

  size_t free_bytes(int device) const { return devices_[device].free_bytes; }
  size_t registered_bytes() const;
  // What was never given back; empty: nothing.
  std::string left() const;

  // Full of `fill`. With `adjacent`, behind the last one of the device if there is room, which then
  // ends where this begins unless its size is odd. REQUIRES: bytes > 0, and as many free.
  std::byte* Allocate(int device, size_t bytes, std::byte fill, bool adjacent);
  // False when any of it is known already.
  bool Register(MutableBytes memory);
  // What begins at `at`, or null.
  const Allocation* Beginning(const std::byte* at) const;
  // REQUIRES: Beginning(at) != nullptr.
  void Remove(const std::byte* at);

  // What has all of these bytes, or null.
  const Allocation* Find(const std::byte* at, size_t bytes) const;
  // Whether all of these bytes are known, of one device or of the host, but not to one call.
  bool GoesOverAnEnd(const std::byte* at, size_t bytes) const;

 private:
  struct Device {
    size_t free_bytes;
    // Where the next allocation may be.
    std::shared_ptr<std::byte[]> slab = nullptr;
    std::byte* next = nullptr;
    size_t left = 0;
  };

  std::vector<Device> devices_;
  std::map<uintptr_t, Allocation> allocations_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_FAKE_GPU_FAKE_GPU_MEMORY_H_
