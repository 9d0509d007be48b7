// What every StorageBackend must do. To join, with a target that depends on this one and the backend:
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
#ifndef KVCACHE_TESTS_BACKEND_CONFORMANCE_BACKEND_CONFORMANCE_H_
#define KVCACHE_TESTS_BACKEND_CONFORMANCE_BACKEND_CONFORMANCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/extent.h"
#include "kvcache/core/storage_backend.h"

namespace kvcache {

struct BackendUnderTest {
  std::string name;
  // Copies between the backend and host memory must end without help: tests wait for them.
  std::function<absl::StatusOr<std::unique_ptr<StorageBackend>>(size_t capacity_bytes)> create;

  friend std::ostream& operator<<(std::ostream& out, const BackendUnderTest& backend) {
    return out << backend.name;
  }
};

class BackendConformanceTest : public testing::TestWithParam<BackendUnderTest> {
 protected:
  // With at least `units` units of its alignment, or 1 MiB if that is more.
  void SetUp() override;
  void TearDown() override;

  StorageBackend& backend() { return *backend_; }
  const BackendTraits& traits() { return backend_->traits(); }
  size_t unit() { return traits().alignment; }

  // An extent that TearDown frees; fails the test when there is no room.
  Extent Allocate(size_t bytes);
  void Free(const Extent& extent);

  absl::Status Write(const Extent& extent, size_t offset, const std::string& bytes);
  // The whole extent as the backend reads it.
  std::string Contents(const Extent& extent);

 private:
  std::unique_ptr<StorageBackend> backend_;
  std::vector<Extent> extents_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_BACKEND_CONFORMANCE_BACKEND_CONFORMANCE_H_
