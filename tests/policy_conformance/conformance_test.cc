// All policies that //eviction:policies lists: each alone, and one of its kind for each of three
// priorities.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/plugins/registry.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/policy/priority_levels.h"
#include "kvcache/core/policy/slot.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"
#include "kvcache/tests/policy_conformance/scan_model.h"

namespace kvcache {
namespace {

// The cache owns the policy of the normal priority; here nobody else does.
class Priorities final : public EvictionPolicy {
 public:
  explicit Priorities(std::unique_ptr<EvictionPolicy> normal) : normal_(std::move(normal)) {
    for (uint16_t priority : {1, 2}) {
      levels_.AddLevel(priority, levels_.CreateEmpty());
    }
  }

  const char* name() const override { return levels_.name(); }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override {
    return std::make_unique<Priorities>(levels_.CreateEmpty());
  }
  void SetLimits(size_t max_slots, size_t capacity_bytes) override {
    levels_.SetLimits(max_slots, capacity_bytes);
  }
  void Admit(Slot slot, const EntryInfo& info) override { levels_.Admit(slot, info); }
  void Touch(absl::Span<const Slot> slots, const Run& run) override { levels_.Touch(slots, run); }
  void Remove(Slot slot, RemoveReason reason) override { levels_.Remove(slot, reason); }
  VictimResult Victim(const EntryInfo& incoming) override { return levels_.Victim(incoming); }
  void Park(Slot slot) override { levels_.Park(slot); }
  void Unpark(Slot slot) override { levels_.Unpark(slot); }
  void SetDeadline(Slot slot, Nanos deadline) override { levels_.SetDeadline(slot, deadline); }
  void Miss(absl::Span<const uint64_t> key_hashes, const Run& run) override {
    levels_.Miss(key_hashes, run);
  }
  void Bypassed(absl::Span<const uint64_t> key_hashes, const Run& run) override {
    levels_.Bypassed(key_hashes, run);
  }

 private:
  const std::unique_ptr<EvictionPolicy> normal_;
  internal::PriorityLevels levels_{*normal_, 0};
};

CreatePolicy Maker(const std::string& name) {
  return [name] { return *MakePolicy(name); };
}

std::vector<PolicyUnderTest> AllPolicies() {
  std::vector<PolicyUnderTest> policies;
  for (const std::string& name : PolicyNames()) {
    policies.push_back({name, Maker(name)});
    policies.push_back({absl::StrCat(name, "_with_priorities"),
                        [name] { return std::make_unique<Priorities>(*MakePolicy(name)); }});
  }
  return policies;
}

INSTANTIATE_TEST_SUITE_P(AllPolicies, PolicyConformanceTest, testing::ValuesIn(AllPolicies()),
                         [](const auto& info) { return info.param.name; });

TEST(AllPoliciesTest, EachHasTheNameThatItIsMadeByAndRefusesSettingsThatItDoesNotHave) {
  EXPECT_GE(PolicyNames().size(), 8u);
  for (const std::string& name : PolicyNames()) {
    EXPECT_EQ((*MakePolicy(name))->name(), name);
    EXPECT_EQ(MakePolicy(name, {{"no such setting", "1"}}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
}

// Policies whose order can be said in a line.

void ExpectOrder(const std::string& name,
                 bool (*goes_before)(const ScanModel::Entry&, const ScanModel::Entry&)) {
  ExpectSameOrder(Maker(name), [=] { return std::make_unique<ScanModel>(goes_before); });
}

TEST(PolicyModelTest, LruGoesByTheLastUse) {
  ExpectOrder("lru", [](const auto&, const auto&) { return false; });
}

TEST(PolicyModelTest, LfuGoesByTheNumberOfUses) {
  ExpectOrder("lfu", [](const auto& a, const auto& b) { return a.uses < b.uses; });
}

TEST(PolicyModelTest, TtlGoesByTheDeadline) {
  ExpectOrder("ttl", [](const auto& a, const auto& b) { return a.deadline < b.deadline; });
}

}  // namespace
}  // namespace kvcache
