#include "kvcache/eviction/lfu/lfu.h"

#include <cstdint>

#include "kvcache/core/base/nanos.h"
#include "kvcache/eviction/ranked_policy.h"

namespace kvcache {
namespace {

struct Use {
  uint64_t count = 0;
  uint64_t sequence = 0;  // of the last use

  static Use OfNew(const EntryInfo& /*info*/, uint64_t sequence) { return {1, sequence}; }
  void Touch(uint64_t now) { *this = {count + 1, now}; }
  void SetDeadline(Nanos) {}

  friend bool operator<(const Use& a, const Use& b) {
    return a.count != b.count ? a.count < b.count : a.sequence < b.sequence;
  }
};

class LfuPolicy final : public RankedPolicy<Use> {
 public:
  const char* name() const override { return "lfu"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateLfuPolicy(); }
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateLfuPolicy() { return std::make_unique<LfuPolicy>(); }

}  // namespace kvcache
