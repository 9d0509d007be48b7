#include "kvcache/core/advice/shadow_cache.h"

#include <algorithm>

#include "kvcache/core/base/check.h"

namespace kvcache::internal {
namespace {

EntryInfo InfoOf(const Reference& reference, Slot parent) {
  return {.key_hash = reference.key_hash,
          .bytes = reference.bytes,
          .parent = parent,
          .depth = reference.depth,
          .chain_blocks = reference.chain_blocks,
          .recompute_cost = reference.recompute_cost,
          .deadline = Later(reference.now, reference.ttl),
          .now = reference.now};
}

// Blocks that were sampled are seldom neighbours, so the policy hears of each by itself.
Run RunOf(const Reference& reference, bool continues) {
  return {.first_depth = reference.depth,
          .chain_blocks = reference.chain_blocks,
          .now = reference.now,
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
  if (request.front().kind == Reference::Kind::kMatch) return LookAtChain(request);
  hits_.clear();
  for (auto it = request.rbegin(); it != request.rend(); ++it) {
    const Slot slot = FindLive(*it);
    if (slot != kNoSlot) hits_.emplace_back(slot, &*it);
  }
  const size_t hits = hits_.size();
  bool continues = false;
  for (const auto& [slot, reference] : hits_) {
    Touch(slot, *reference, std::exchange(continues, true));
  }
  if (hits == request.size()) return hits;
  for (const Reference& reference : request) {
    if (Find(reference.id) == kNoSlot) Insert(reference, kNoSlot);
  }
  return hits;
}

size_t ShadowCache::LookAtChain(absl::Span<const Reference> request) {
  hits_.clear();
  for (const Reference& reference : request) {
    const Slot slot = FindLive(reference);
    if (slot == kNoSlot) break;
    hits_.emplace_back(slot, &reference);
  }
  const size_t hits = hits_.size();
  bool continues = false;
  for (size_t i = request.size(); i > hits; --i) {
    const Reference& missed = request[i - 1];
    policy_->Miss({&missed.key_hash, 1}, RunOf(missed, std::exchange(continues, true)));
  }
  for (auto it = hits_.rbegin(); it != hits_.rend(); ++it) {
    Touch(it->first, *it->second, std::exchange(continues, true));
  }
  Slot last = hits == 0 ? kNoSlot : hits_.back().first;
  for (const Reference& reference : request.subspan(hits)) {
    Slot slot = FindLive(reference);
    if (slot != kNoSlot) {
      Touch(slot, reference, /*continues=*/true);
    } else {
      slot = Insert(reference, last);
      if (slot == kNoSlot) break;
    }
    last = slot;
  }
  return hits;
}

void ShadowCache::Touch(Slot slot, const Reference& reference, bool continues) {
  entries_[slot].parked = false;
  policy_->Touch({&slot, 1}, RunOf(reference, continues));
}

void ShadowCache::Put(const Reference& put) {
  const Slot slot = FindLive(put);
  if (slot == kNoSlot) {
    if (!put.matched) Insert(put, kNoSlot);
    return;
  }
  Entry& entry = entries_[slot];
  const bool right = entry.bytes == put.bytes && entry.ttl == put.ttl &&
                     entry.recompute_cost == put.recompute_cost;
  if (!std::exchange(entry.guessed, false) || right) return;
  policy_->Remove(slot, RemoveReason::kReplaced);
  if (entry.deadline != kNever) deadlines_.Remove(slot);
  bytes_ -= entry.bytes;
  Admit(slot, put);
}

void ShadowCache::SetCapacity(size_t capacity_bytes) {
  capacity_ = capacity_bytes;
  full_ = false;
  policy_->SetLimits(max_blocks_, capacity_bytes);
  MakeRoom({});
}

Slot ShadowCache::FindLive(const Reference& reference) {
  const Slot slot = Find(reference.id);
  if (slot == kNoSlot || reference.now < entries_[slot].deadline) return slot;
  Remove(slot, RemoveReason::kExpired);
  return kNoSlot;
}

Slot ShadowCache::Insert(const Reference& reference, Slot parent) {
  if (reference.bytes == 0) return kNoSlot;
  RemoveExpired(reference.now);
  if (parent != kNoSlot) ++entries_[parent].children;  // so that it stays
  if (!MakeRoom(InfoOf(reference, parent))) {
    if (parent != kNoSlot) LoseChild(parent);
    return kNoSlot;
  }
  const Slot slot = free_;
  Entry& entry = entries_[slot];
  free_ = entry.next_free;
  entry = {.id = reference.id,
           .guessed = reference.kind != Reference::Kind::kPut,
           .parent = parent,
           .put_of_parent = parent == kNoSlot ? 0 : entries_[parent].put,
           .put = ++puts_};
  index_.Insert(reference.id, slot);
  Admit(slot, reference);
  return slot;
}

void ShadowCache::Admit(Slot slot, const Reference& reference) {
  Entry& entry = entries_[slot];
  const Slot parent = ParentOf(entry);
  entry.bytes = reference.bytes;
  entry.ttl = reference.ttl;
  entry.recompute_cost = reference.recompute_cost;
  entry.deadline = Later(reference.now, reference.ttl);
  if (parent != kNoSlot) entry.deadline = std::min(entry.deadline, entries_[parent].deadline);
  entry.parked = false;
  bytes_ += entry.bytes;
  if (entry.deadline != kNever) deadlines_.Push(slot, entry.deadline);
  EntryInfo info = InfoOf(reference, parent);
  info.deadline = entry.deadline;
  policy_->Admit(slot, info);
}

Slot ShadowCache::ParentOf(const Entry& entry) const {
  const Slot parent = entry.parent;
  return parent != kNoSlot && entries_[parent].put == entry.put_of_parent ? parent : kNoSlot;
}

void ShadowCache::LoseChild(Slot parent) {
  Entry& entry = entries_[parent];
  if (--entry.children == 0 && std::exchange(entry.parked, false)) policy_->Unpark(parent);
}

void ShadowCache::Remove(Slot slot, RemoveReason reason) {
  Entry& entry = entries_[slot];
  const Slot parent = ParentOf(entry);
  index_.Erase(entry.id, slot);
  if (entry.deadline != kNever) deadlines_.Remove(slot);
  bytes_ -= entry.bytes;
  policy_->Remove(slot, reason);
  entry = Entry();
  entry.next_free = free_;
  free_ = slot;
  if (parent != kNoSlot) LoseChild(parent);
}

bool ShadowCache::MakeRoom(const EntryInfo& incoming) {
  if (incoming.bytes > capacity_) {
    full_ = true;
    return false;
  }
  while (bytes_ > capacity_ - incoming.bytes || (incoming.bytes > 0 && free_ == kNoSlot)) {
    full_ = true;
    const VictimResult victim = policy_->Victim(incoming);
    if (victim.kind == VictimResult::Kind::kNone) return false;
    if (victim.kind == VictimResult::Kind::kRefuse) {
      policy_->Bypassed({&incoming.key_hash, 1}, {.first_depth = incoming.depth,
                                                  .chain_blocks = incoming.chain_blocks,
                                                  .now = incoming.now});
      return false;
    }
    if (entries_[victim.slot].children > 0) {
      policy_->Park(victim.slot);
      entries_[victim.slot].parked = true;
    } else {
      Remove(victim.slot, RemoveReason::kEvicted);
    }
  }
  return true;
}

void ShadowCache::RemoveExpired(Nanos now) {
  while (!deadlines_.empty() && deadlines_.top_rank() <= now) {
    Remove(deadlines_.top(), RemoveReason::kExpired);
  }
}

}  // namespace kvcache::internal
