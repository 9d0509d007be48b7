#include <memory>

#include "gtest/gtest.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"
#include "kvcache/tests/policy_conformance/scan_model.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Lru, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"lru", CreateLruPolicy}));

TEST(LruConformanceTest, AgreesWithTheModel) {
  ExpectSameOrder(CreateLruPolicy, [] {
    return std::make_unique<ScanModel>([](const auto&, const auto&) { return false; });
  });
}

}  // namespace kvcache
