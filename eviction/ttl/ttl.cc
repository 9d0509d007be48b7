#include "kvcache/eviction/ttl/ttl.h"

#include <cstdint>

#include "kvcache/core/base/nanos.h"
#include "kvcache/eviction/ranked_policy.h"

namespace kvcache {
namespace {

struct Expiry {
  Nanos deadline = kNever;
  uint64_t sequence = 0;  // of the last use

  static Expiry OfNew(const EntryInfo& info, uint64_t sequence) {
    return {info.deadline, sequence};
  }
  void Touch(uint64_t now) { sequence = now; }
  void SetDeadline(Nanos new_deadline) { deadline = new_deadline; }

  friend bool operator<(const Expiry& a, const Expiry& b) {
    return a.deadline != b.deadline ? a.deadline < b.deadline : a.sequence < b.sequence;
  }
};

class TtlPolicy final : public RankedPolicy<Expiry> {
 public:
  const char* name() const override { return "ttl"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateTtlPolicy(); }
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateTtlPolicy() { return std::make_unique<TtlPolicy>(); }

}  // namespace kvcache
