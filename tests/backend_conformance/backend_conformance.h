// What every StorageBackend must do. To join, with a target that depends on this one and the
// backend:
//
//   namespace kvcache {
//   INSTANTIATE_TEST_SUITE_P(
//       CpuRam, BackendConformanceTest,
//       testing::Values(BackendUnderTest{"cpu_ram", [](size_t capacity_bytes) {
//         return CreateCpuRamBackend({.capacity_bytes = capacity_bytes});
//       }}));
//   }  // namespace kvcache
//
// A backend with stores_bytes = false is asked for the part that has nothing to do with bytes.
// Extents may be aligned to up to 16 KiB. suite_test.cc has backends that the suite must refuse.
#ifndef KVCACHE_TESTS_BACKEND_CONFORMANCE_BACKEND_CONFORMANCE_H_
#define KVCACHE_TESTS_BACKEND_CONFORMANCE_BACKEND_CONFORMANCE_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

struct BackendUnderTest {
  std::string name;
  // kUnavailable: this machine has no such medium, and the tests are skipped, or fail with
  // KVCACHE_REQUIRE_GPU=1. Copies between the backend and host memory must end without help: tests
  // wait for them.
  std::function<absl::StatusOr<std::unique_ptr<StorageBackend>>(size_t capacity_bytes)> create;

  // Makes the medium of the backend that was created last fail for good; the backend may notice it
  // at the next copy. Null: it cannot fail.
  std::function<void()> fail = nullptr;

  friend std::ostream& operator<<(std::ostream& out, const BackendUnderTest& backend) {
    return out << backend.name;
  }
};

class BackendConformanceTest : public testing::TestWithParam<BackendUnderTest> {
 protected:
  static constexpr size_t kCapacity = size_t{1} << 20;

  // A new backend of kCapacity bytes.
  void SetUp() override;
  // Frees what Allocate() gave and Free() did not take back.
  void TearDown() override;

  StorageBackend& backend() { return *backend_; }
  const BackendTraits& traits() { return backend_->traits(); }

  // Aborts when there is no room.
  Extent Allocate(size_t bytes);
  void Free(const Extent& extent);
  // Destroys the backend; nothing but the test's own may be asked afterwards.
  void Destroy();

  // With host memory on the other side. Wait for the end.
  absl::Status Write(const Extent& extent, const std::string& bytes, size_t offset = 0);
  // The whole extent.
  std::string Contents(const Extent& extent);
  // What a write and a read end with that name host memory as that of `space`, behind `stream`.
  absl::StatusCode RefusalOf(MemorySpace space, Stream stream);

 private:
  std::unique_ptr<StorageBackend> backend_;
  std::vector<Extent> extents_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_BACKEND_CONFORMANCE_BACKEND_CONFORMANCE_H_
