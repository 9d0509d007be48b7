#include "gtest/gtest.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(
    Fake, BackendConformanceTest,
    testing::Values(BackendUnderTest{
        "fake", [](size_t capacity_bytes) -> absl::StatusOr<std::unique_ptr<StorageBackend>> {
          auto backend = FakeBackend::Create(capacity_bytes);
          backend->set_auto_complete(true);
          return backend;
        }}));

}  // namespace kvcache
