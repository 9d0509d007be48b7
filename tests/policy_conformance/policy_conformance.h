// What every EvictionPolicy must do, whatever its order. The policies of //eviction:policies are
// tested by :conformance_test; any other joins with a target that depends on this one and the
// policy:
//
//   namespace kvcache {
//   INSTANTIATE_TEST_SUITE_P(Size, PolicyConformanceTest,
//                            testing::Values(PolicyUnderTest{"size", CreateSizePolicy}));
//   }  // namespace kvcache
#ifndef KVCACHE_TESTS_POLICY_CONFORMANCE_POLICY_CONFORMANCE_H_
#define KVCACHE_TESTS_POLICY_CONFORMANCE_POLICY_CONFORMANCE_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "gtest/gtest.h"
#include "kvcache/core/policy/eviction_policy.h"

namespace kvcache {

// A new policy, whose limits are not set.
using CreatePolicy = std::function<std::unique_ptr<EvictionPolicy>()>;

struct PolicyUnderTest {
  std::string name;
  CreatePolicy create;

  friend std::ostream& operator<<(std::ostream& out, const PolicyUnderTest& policy) {
    return out << policy.name;
  }
};

class PolicyConformanceTest : public testing::TestWithParam<PolicyUnderTest> {
 protected:
  static constexpr size_t kSlots = 64;

  // A new policy with limits.
  std::unique_ptr<EvictionPolicy> Create(size_t max_slots = kSlots);
};

// Expects two policies to name the same victim after each of 200,000 random calls, and now and then
// to have the same order from end to end.
void ExpectSameOrder(const CreatePolicy& policy, const CreatePolicy& model);

}  // namespace kvcache

#endif  // KVCACHE_TESTS_POLICY_CONFORMANCE_POLICY_CONFORMANCE_H_
