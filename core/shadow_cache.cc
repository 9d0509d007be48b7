#include "kvcache/core/shadow_cache.h"

#include "kvcache/core/check.h"

namespace kvcache::internal {
namespace {

EntryInfo InfoOf(const Reference& reference) {
  return {.key_hash = reference.key_hash,
          .bytes = reference.bytes,
          .depth = reference.depth,
          .chain_blocks = reference.chain_blocks,
          .recompute_cost = reference.recompute_cost,
          .deadline = ToTime(After(reference.now, reference.ttl)),
          .now = ToTime(reference.now)};
}

// Blocks that were sampled are seldom neighbours, so the policy hears of each by itself.
Run RunOf(const Reference& reference, uint32_t depth, bool continues) {
  return {.first_depth = depth,
          .chain_blocks = reference.chain_blocks,
          .now = ToTime(reference.now),
          .continues = continues};
}

}  // namespace

ShadowCache::ShadowCache(std::unique_ptr<EvictionPolicy> policy, size_t max_blocks,
                         size_t capacity_bytes)
    : policy_(std::move(policy)),
      max_blocks_(max_blocks),
      capacity_(capacity_bytes),
      entries_(max_blocks) {
  KVCACHE_CHECK(max_blocks > 0 && max_blocks < kNoSlot, "max_blocks ", max_blocks);
  index_.SetMaxSlots(max_blocks);
  deadlines_.SetMaxSlots(max_blocks);
  policy_->SetLimits(max_blocks, capacity_bytes);
  for (size_t slot = 0; slot + 1 < max_blocks; ++slot) {
    entries_[slot].next_free = static_cast<Slot>(slot + 1);
  }
}

size_t ShadowCache::Look(absl::Span<const Reference> request) {
  hits_.clear();
  bool continues = false;
  for (auto it = request.rbegin(); it != request.rend(); ++it) {
    const Slot slot = FindLive(*it);
    if (slot != kNoSlot) {
      hits_.emplace_back(slot, it->depth);
    } else if (it->kind == Reference::Kind::kMatch) {
      policy_->Miss({&it->key_hash, 1}, RunOf(*it, it->depth, continues));
      continues = true;
    }
  }
  const size_t hits = hits_.size();
  for (const auto& [slot, depth] : hits_) {
    policy_->Touch({&slot, 1}, RunOf(request.front(), depth, continues));
    continues = true;
  }
  if (hits == request.size()) return hits;
  for (const Reference& reference : request) {
    if (Find(reference.id) == kNoSlot) Insert(reference);
  }
  return hits;
}

void ShadowCache::Put(const Reference& put) {
  const Slot slot = FindLive(put);
  if (slot != kNoSlot) {
    Entry& entry = entries_[slot];
    const bool right = entry.bytes == put.bytes && entry.ttl == put.ttl &&
                       entry.recompute_cost == put.recompute_cost;
    if (!std::exchange(entry.guessed, false) || right) return;
    Remove(slot, RemoveReason::kReplaced);
  }
  Insert(put);
}

void ShadowCache::SetCapacity(size_t capacity_bytes) {
  capacity_ = capacity_bytes;
  policy_->SetLimits(max_blocks_, capacity_bytes);
  MakeRoom({});
}

Slot ShadowCache::FindLive(const Reference& reference) {
  const Slot slot = Find(reference.id);
  if (slot == kNoSlot || reference.now < entries_[slot].deadline) return slot;
  Remove(slot, RemoveReason::kExpired);
  return kNoSlot;
}

void ShadowCache::Insert(const Reference& reference) {
  if (reference.bytes == 0) return;
  const EntryInfo info = InfoOf(reference);
  RemoveExpired(reference.now);
  if (!MakeRoom(info)) return;
  const Slot slot = free_;
  Entry& entry = entries_[slot];
  free_ = entry.next_free;
  entry = {.id = reference.id,
           .bytes = reference.bytes,
           .deadline = After(reference.now, reference.ttl),
           .ttl = reference.ttl,
           .recompute_cost = reference.recompute_cost,
           .guessed = reference.kind != Reference::Kind::kPut};
  bytes_ += reference.bytes;
  index_.Insert(reference.id, slot);
  if (entry.deadline != kNever) deadlines_.Push(slot, entry.deadline);
  policy_->Admit(slot, info);
}

void ShadowCache::Remove(Slot slot, RemoveReason reason) {
  Entry& entry = entries_[slot];
  index_.Erase(entry.id, slot);
  if (entry.deadline != kNever) deadlines_.Remove(slot);
  bytes_ -= entry.bytes;
  policy_->Remove(slot, reason);
  entry = Entry();
  entry.next_free = free_;
  free_ = slot;
}

bool ShadowCache::MakeRoom(const EntryInfo& incoming) {
  if (incoming.bytes > capacity_) return false;
  while (bytes_ > capacity_ - incoming.bytes || (incoming.bytes > 0 && free_ == kNoSlot)) {
    full_ = true;
    const VictimResult victim = policy_->Victim(incoming);
    if (victim.kind != VictimResult::Kind::kSlot) {
      KVCACHE_CHECK(victim.kind == VictimResult::Kind::kRefuse, "no victim among ", blocks());
      policy_->Bypassed({&incoming.key_hash, 1}, {.first_depth = incoming.depth,
                                                  .chain_blocks = incoming.chain_blocks,
                                                  .now = incoming.now});
      return false;
    }
    Remove(victim.slot, RemoveReason::kEvicted);
  }
  return true;
}

void ShadowCache::RemoveExpired(Nanos now) {
  while (!deadlines_.empty() && deadlines_.top_rank() <= now) {
    Remove(deadlines_.top(), RemoveReason::kExpired);
  }
}

}  // namespace kvcache::internal
