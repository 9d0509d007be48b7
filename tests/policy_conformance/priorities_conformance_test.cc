// Policies of every kind, one for each of three priorities.
#include <memory>
#include <utility>

#include "gtest/gtest.h"
#include "kvcache/core/policy/priority_levels.h"
#include "kvcache/eviction/arc/arc.h"
#include "kvcache/eviction/chain/chain.h"
#include "kvcache/eviction/fifo/fifo.h"
#include "kvcache/eviction/gdsf/gdsf.h"
#include "kvcache/eviction/lfu/lfu.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/eviction/s3fifo/s3fifo.h"
#include "kvcache/eviction/ttl/ttl.h"
#include "kvcache/tests/policy_conformance/policy_conformance.h"

namespace kvcache {
namespace {

// The cache owns the policy of the normal priority; here nobody else does.
class Priorities final : public EvictionPolicy {
 public:
  explicit Priorities(std::unique_ptr<EvictionPolicy> normal) : normal_(std::move(normal)) {
    for (uint16_t priority : {1, 2}) {
      EXPECT_TRUE(levels_.AddLevel(priority, levels_.CreateEmpty()).ok());
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
  internal::PriorityLevels levels_{*normal_, 0, 0};
};

template <std::unique_ptr<EvictionPolicy> (*create)()>
std::unique_ptr<EvictionPolicy> WithPriorities() {
  return std::make_unique<Priorities>(create());
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(
    Priorities, PolicyConformanceTest,
    testing::Values(PolicyUnderTest{"arc", WithPriorities<CreateArcPolicy>},
                    PolicyUnderTest{"chain", WithPriorities<CreateChainPolicy>},
                    PolicyUnderTest{"fifo", WithPriorities<CreateFifoPolicy>},
                    PolicyUnderTest{"gdsf", WithPriorities<CreateGdsfPolicy>},
                    PolicyUnderTest{"lfu", WithPriorities<CreateLfuPolicy>},
                    PolicyUnderTest{"lru", WithPriorities<CreateLruPolicy>},
                    PolicyUnderTest{"s3fifo", WithPriorities<CreateS3FifoPolicy>},
                    PolicyUnderTest{"ttl", WithPriorities<CreateTtlPolicy>}));

}  // namespace kvcache
