#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

BackendUnderTest FakeOfAlignment(size_t alignment) {
  return {"fake", [alignment](size_t capacity_bytes) {
            auto backend = FakeBackend::Create(capacity_bytes, alignment);
            backend->set_auto_complete(true);
            return absl::StatusOr<std::unique_ptr<StorageBackend>>(std::move(backend));
          }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Fake, BackendConformanceTest,
                         testing::Values(FakeOfAlignment(64), FakeOfAlignment(4096),
                                         FakeOfAlignment(16384)));

}  // namespace kvcache
