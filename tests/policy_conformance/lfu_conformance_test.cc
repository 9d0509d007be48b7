#include <memory>

#include "gtest/gtest.h"
#include "kvcache/eviction/lfu/lfu.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"
#include "kvcache/tests/policy_conformance/scan_model.h"

namespace kvcache {

INSTANTIATE_TEST_SUITE_P(Lfu, PolicyConformanceTest,
                         testing::Values(PolicyUnderTest{"lfu", CreateLfuPolicy}));

TEST(LfuConformanceTest, AgreesWithTheModel) {
  ExpectSameOrder(CreateLfuPolicy, [] {
    return std::make_unique<ScanModel>(
        [](const auto& a, const auto& b) { return a.uses < b.uses; });
  });
}

}  // namespace kvcache
