#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/tests/backend_conformance/backend_conformance.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

BackendUnderTest FakeOfAlignment(size_t alignment) {
  const auto last = std::make_shared<FakeBackend*>();
  return {"fake",
          [alignment, last](size_t capacity_bytes) {
            auto backend = FakeBackend::Create(capacity_bytes, alignment);
            backend->set_auto_complete(true);
            *last = backend.get();
            return absl::StatusOr<std::unique_ptr<StorageBackend>>(std::move(backend));
          },
          [last] { (*last)->FailForGood(absl::UnavailableError("the medium has failed")); }};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Fake, BackendConformanceTest,
                         testing::Values(FakeOfAlignment(64), FakeOfAlignment(4096),
                                         FakeOfAlignment(16384)));

}  // namespace kvcache
