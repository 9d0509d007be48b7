#include "kvcache/eviction/chain/chain.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kvcache/core/base/check.h"
#include "kvcache/eviction/chain/cohorts.h"
#include "kvcache/eviction/chain/reuse_odds.h"

namespace kvcache {
namespace {

using chain::BlockClass;
using chain::Cohorts;
using chain::Kind;
using chain::kNoPlace;
using chain::Place;

// The values are computed anew after this many requests, but not more often than each so many
// blocks, and what was learned counts half after so many requests and so many times the blocks that
// are there.
constexpr uint64_t kRefreshRequests = 32;
constexpr uint64_t kRefreshBlocks = 1024;
constexpr uint64_t kFadeRequests = 2048;
constexpr uint64_t kFadeTurnovers = 4;
constexpr size_t kGhostsPerBlock = 12;
// Blocks used within this share of the time in which all are replaced are the same age.
constexpr uint64_t kTogether = 16;
constexpr uint32_t kMeanPrompts = 1024;

uint32_t Fold(uint64_t hash) { return static_cast<uint32_t>(hash >> 32 ^ hash); }

class ChainPolicy final : public EvictionPolicy {
 public:
  const char* name() const override { return "chain"; }
  std::unique_ptr<EvictionPolicy> CreateEmpty() const override { return CreateChainPolicy(); }

  void SetLimits(size_t max_slots, size_t /*capacity_bytes*/) override {
    nodes_.resize(std::max(nodes_.size(), max_slots));
    cohorts_.SetMaxSlots(nodes_.size());
  }

  void Miss(absl::Span<const uint64_t> key_hashes, const Run& run) override {
    StartRun(run);
    for (uint64_t hash : key_hashes) cohorts_.PrefetchGhost(Fold(hash));
    uint32_t depth = run.first_depth + static_cast<uint32_t>(key_hashes.size());
    for (uint64_t hash : key_hashes) {
      const bool last = --depth + 1 == run.chain_blocks;
      UseGhost(Fold(hash), run.chain_blocks, last, /*expected=*/true);
    }
  }

  void Touch(absl::Span<const Slot> slots, const Run& run) override {
    if (slots.empty()) return;
    StartRun(run);
    for (Slot slot : slots) {
      KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].place != kNoPlace, "slot ", slot,
                    " is not known");
      cohorts_.Prefetch(nodes_[slot].place);
    }
    uint32_t depth = run.first_depth + static_cast<uint32_t>(slots.size());
    for (Slot slot : slots) {
      const bool last = --depth + 1 == run.chain_blocks;
      Place& place = nodes_[slot].place;
      if (cohorts_.UsedAt(place) > run_start_) {  // twice in one prompt
        if (!cohorts_.IsShown(place)) cohorts_.Show(place);
        continue;
      }
      const Use use = Reuse(place, last);
      cohorts_.Take(place);
      place = cohorts_.AddResident(use.kind, slot, use.uses, together());
    }
  }

  void Admit(Slot slot, const EntryInfo& info) override {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].place == kNoPlace, "slot ", slot,
                  " is out of range or known already");
    const uint32_t hash = Fold(info.key_hash);
    const uint8_t worth = WorthOf(info);
    LearnWorth(info);
    const Place ghost = cohorts_.FindGhost(hash);
    nodes_[slot].hash = hash;
    ++residents_;
    if (ghost == kNoPlace) {
      StartRequest();
      const Kind kind = {ClassOfNew(info.chain_blocks, EndsPrompt(info)), worth};
      nodes_[slot].place = cohorts_.AddResident(kind, slot, 1, together());
      return;
    }
    const Cohorts::Block block = cohorts_.BlockAt(ghost);
    if (block.expected && cohorts_.KindOf(ghost).worth == worth) {
      cohorts_.Revive(ghost, slot);
      nodes_[slot].place = ghost;
      return;
    }
    Use use = {cohorts_.KindOf(ghost), block.uses};
    if (!block.expected) {
      StartRequest();
      use = Reuse(ghost, EndsPrompt(info));
    }
    use.kind.worth = worth;
    cohorts_.Take(ghost);
    nodes_[slot].place = cohorts_.AddResident(use.kind, slot, use.uses, together());
  }

  void Remove(Slot slot, RemoveReason reason) override {
    Node& node = NodeOf(slot);
    if (reason == RemoveReason::kEvicted) {
      cohorts_.Retire(node.place, node.hash);
      cohorts_.ForgetGhosts(kGhostsPerBlock * std::max<size_t>(residents_, 8));
    } else {
      cohorts_.Take(node.place);
    }
    node.place = kNoPlace;
    --residents_;
  }

  VictimResult Victim(const EntryInfo& incoming) override {
    const Place first = cohorts_.First();
    if (first == kNoPlace) return VictimResult::None();
    if (incoming.bytes > 0 && ValueOf(incoming) < ValueAt(first)) return VictimResult::Refuse();
    return VictimResult::Of(cohorts_.BlockAt(first).slot);
  }

  void Park(Slot slot) override {
    const Place place = NodeOf(slot).place;
    KVCACHE_CHECK(cohorts_.IsShown(place), "slot ", slot, " is parked already");
    cohorts_.Hide(place);
  }

  void Unpark(Slot slot) override {
    const Place place = NodeOf(slot).place;
    KVCACHE_CHECK(!cohorts_.IsShown(place), "slot ", slot, " is not parked");
    cohorts_.Show(place);
  }

  void Bypassed(absl::Span<const uint64_t> key_hashes, const Run& run) override {
    for (uint64_t key_hash : key_hashes) {
      const Place ghost = cohorts_.FindGhost(Fold(key_hash));
      if (ghost != kNoPlace && cohorts_.BlockAt(ghost).expected) {
        cohorts_.SetExpected(ghost, false);
        continue;
      }
      StartRequest();
      UseGhost(Fold(key_hash), run.chain_blocks, run.first_depth + 1 == run.chain_blocks,
               /*expected=*/false);
    }
  }

 private:
  struct Node {
    Place place = kNoPlace;
    uint32_t hash = 0;
  };

  struct Use {
    Kind kind;
    uint8_t uses;
  };

  Node& NodeOf(Slot slot) {
    KVCACHE_CHECK(slot < nodes_.size() && nodes_[slot].place != kNoPlace, "slot ", slot,
                  " is not known");
    return nodes_[slot];
  }

  static bool EndsPrompt(const EntryInfo& info) { return info.depth + 1 == info.chain_blocks; }

  uint64_t together() const { return residents_ / kTogether; }

  uint8_t ClassOfNew(uint32_t chain_blocks, bool last) const {
    return static_cast<uint8_t>(BlockClass::OfNew(chain_blocks, mean_blocks_, last));
  }

  // One more use of a block that is known.
  Use NextUse(Place place, bool last) const {
    const uint8_t uses = static_cast<uint8_t>(std::min(cohorts_.BlockAt(place).uses + 1, 255));
    const uint64_t gap = cohorts_.now() - cohorts_.UsedAt(place);
    const int block_class = BlockClass::OfUsed(uses, gap, mean_blocks_, last);
    return {{static_cast<uint8_t>(block_class), cohorts_.KindOf(place).worth}, uses};
  }

  Use Reuse(Place place, bool last) {
    odds_.CountReuse(cohorts_.KindOf(place).block_class, cohorts_.BucketOf(place));
    return NextUse(place, last);
  }

  void UseGhost(uint32_t hash, uint32_t chain_blocks, bool last, bool expected) {
    const Place known = cohorts_.FindGhost(hash);
    Use use = {{ClassOfNew(chain_blocks, last)}, 1};
    if (known != kNoPlace) {
      use = Reuse(known, last);
      cohorts_.Take(known);
    }
    cohorts_.AddGhost(use.kind, hash, use.uses, expected, together());
  }

  float ValueAt(Place place) const {
    return cohorts_.ValueOf(cohorts_.KindOf(place), cohorts_.BucketOf(place));
  }

  float ValueOf(const EntryInfo& incoming) const {
    const Place ghost = cohorts_.FindGhost(Fold(incoming.key_hash));
    const uint8_t worth = WorthOf(incoming);
    if (ghost == kNoPlace) {
      return cohorts_.ValueOf({ClassOfNew(incoming.chain_blocks, EndsPrompt(incoming)), worth}, 0);
    }
    if (cohorts_.BlockAt(ghost).expected) {
      return cohorts_.ValueOf({cohorts_.KindOf(ghost).block_class, worth},
                              cohorts_.BucketOf(ghost));
    }
    return cohorts_.ValueOf({NextUse(ghost, EndsPrompt(incoming)).kind.block_class, worth}, 0);
  }

  void StartRun(const Run& run) {
    if (run.continues) return;
    StartRequest();
    if (run.chain_blocks == 0) return;
    prompts_ = std::min(prompts_ + 1, kMeanPrompts);
    mean_blocks_ += (static_cast<float>(run.chain_blocks) - mean_blocks_) / prompts_;
  }

  void StartRequest() {
    run_start_ = cohorts_.now();
    ++requests_;
    if (requests_ >= faded_request_ + kFadeRequests &&
        cohorts_.now() >= faded_at_ + kFadeTurnovers * residents_) {
      odds_.Fade();
      faded_request_ = requests_;
      faded_at_ = cohorts_.now();
    }
    if (requests_ >= refreshed_request_ + kRefreshRequests &&
        cohorts_.now() >= refreshed_at_ + kRefreshBlocks) {
      odds_.Refresh(mean_blocks_);
      cohorts_.Reorder();
      refreshed_request_ = requests_;
      refreshed_at_ = cohorts_.now();
    }
  }

  static double CostPerByte(const EntryInfo& info) {
    return info.CostOr(0) / static_cast<double>(std::max<size_t>(info.bytes, 1));
  }

  uint8_t WorthOf(const EntryInfo& info) const {
    if (info.CostOr(0) == 0 || mean_cost_per_byte_ == 0) return chain::kUsualWorth;
    const double worth = CostPerByte(info) / mean_cost_per_byte_;
    return worth < M_SQRT1_2 ? 0 : worth < M_SQRT2 ? 1 : 2;
  }

  void LearnWorth(const EntryInfo& info) {
    if (info.CostOr(0) == 0) return;
    costs_ = std::min(costs_ + 1, kMeanPrompts);
    mean_cost_per_byte_ += (CostPerByte(info) - mean_cost_per_byte_) / costs_;
  }

  chain::ReuseOdds odds_;
  Cohorts cohorts_{odds_};
  std::vector<Node> nodes_;
  size_t residents_ = 0;

  uint64_t run_start_ = 0;
  uint64_t requests_ = 0, refreshed_request_ = 0, faded_request_ = 0;
  uint64_t refreshed_at_ = 0, faded_at_ = 0;
  uint32_t prompts_ = 0;
  float mean_blocks_ = 1;
  uint32_t costs_ = 0;
  double mean_cost_per_byte_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateChainPolicy() { return std::make_unique<ChainPolicy>(); }

}  // namespace kvcache
