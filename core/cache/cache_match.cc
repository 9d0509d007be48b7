// Cache: what a prompt finds.
#include <algorithm>
#include <new>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "kvcache/core/advice/advisor.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::kBlocksPerLock;
using internal::Nanos;
using internal::Removed;

namespace {

LookupResult ResultOf(const Block& b) {
  switch (b.state) {
    case Block::State::kComplete:
      return LookupResult::kHit;
    case Block::State::kPartial:
      return LookupResult::kPartial;
    case Block::State::kWriting:
      return LookupResult::kPending;
    default:
      return LookupResult::kMiss;
  }
}

}  // namespace

LookupResult Cache::Lookup(const BlockKey& key) const {
  MutexLock lock(mu_);
  const Slot slot = table_->Find(key, Now());
  return slot == kNoSlot ? LookupResult::kMiss : ResultOf(table_->block(slot));
}

size_t Cache::ForLeading(const Chain& chain,
                         absl::FunctionRef<void(BlockTable&, Slot, Nanos)> visit) const {
  for (size_t i = 0; i < chain.keys.size();) {
    if (i > 0) mu_.GiveWay();
    const size_t end = std::min(i + kBlocksPerLock, chain.keys.size());
    MutexLock lock(mu_);
    const Nanos now = Now();
    Slot previous = i == 0 ? kNoSlot : table_->Find(chain.keys[i - 1], now);
    while (i < end) {
      Slot found[BlockTable::kKeysPerFind];
      const auto keys = chain.keys.subspan(i, std::min(end - i, BlockTable::kKeysPerFind));
      table_->FindAny(keys, found);
      for (size_t k = 0; k < keys.size(); ++k, ++i) {
        const Slot slot = table_->Live(found[k], now);
        if (slot == kNoSlot || table_->block(slot).state != Block::State::kComplete ||
            !table_->Follows(slot, previous)) {
          return i;
        }
        visit(*table_, slot, now);
        previous = slot;
      }
    }
  }
  return chain.keys.size();
}

size_t Cache::LookupPrefix(const Chain& chain) const {
  return ForLeading(chain, [](BlockTable&, Slot, Nanos) {});
}

// --- What the policy is told

void Cache::TouchBackwards(absl::Span<const ReadLease> leases, uint32_t chain_blocks, Nanos now,
                           bool continues) {
  absl::InlinedVector<Slot, kBlocksPerLock> slots;
  for (auto it = leases.rbegin(); it != leases.rend(); ++it) {
    if (it->holds()) slots.push_back(it->slot_);
  }
  TouchSlots(slots, chain_blocks, now, continues);
}

void Cache::TouchSlots(absl::Span<const Slot> slots, uint32_t chain_blocks, Nanos now,
                       bool continues) {
  if (slots.empty()) return;
  table_->Touch(slots, {.first_depth = table_->block(slots.back()).depth,
                        .chain_blocks = chain_blocks,
                        .now = now,
                        .continues = continues});
}

void Cache::TouchChunks(absl::Span<const ReadLease> leases, uint32_t chain_blocks, bool continues) {
  for (size_t end = leases.size(); end > 0;) {
    const size_t begin = end > kBlocksPerLock ? end - kBlocksPerLock : 0;
    mu_.GiveWay();
    MutexLock lock(mu_);
    TouchBackwards(leases.subspan(begin, end - begin), chain_blocks, Now(), continues);
    continues = true;
    end = begin;
  }
}

void Cache::MissBackwards(const Chain& chain, size_t begin, size_t end, Nanos now) {
  if (begin == end) return;
  absl::InlinedVector<uint64_t, kBlocksPerLock> hashes;
  for (size_t i = end; i > begin; --i) hashes.push_back(chain.keys[i - 1].Hash64());
  table_->EndPriorities(now);
  table_->policy().Miss(hashes, {.first_depth = static_cast<uint32_t>(begin),
                                 .chain_blocks = static_cast<uint32_t>(chain.keys.size()),
                                 .now = now,
                                 .continues = end < chain.keys.size()});
}

// --- Match

PrefixMatch Cache::Match(const Chain& chain) {
  PrefixMatch match;
  const size_t blocks = chain.keys.size();
  try {
    match.blocks.reserve(blocks);
  } catch (const std::bad_alloc&) {
    return match;
  }
  const auto tokens_in = [&chain](size_t blocks) {
    return std::min<uint64_t>(uint64_t{blocks} * chain.tokens_per_block, chain.tokens);
  };
  Nanos now = 0;
  bool ended = blocks == 0;
  if (ended) match.end = LookupResult::kHit;
  do {
    if (!match.blocks.empty()) mu_.GiveWay();
    const size_t end = std::min(match.blocks.size() + kBlocksPerLock, blocks);
    Removed removed;
    if (!LockSupplied(0, end - match.blocks.size(), 0)) return {};
    {
      MutexLock lock(mu_, AdoptLock());
      if (!table_->Knows(chain.ns)) break;
      now = Now();
      CacheCounters& counters = table_->counters(chain.ns);
      while (!ended && match.blocks.size() < end) {
        Slot found[BlockTable::kKeysPerFind];
        const auto keys = chain.keys.subspan(
            match.blocks.size(), std::min(end - match.blocks.size(), BlockTable::kKeysPerFind));
        table_->FindAny(keys, found);
        for (size_t k = 0; k < keys.size() && !ended; ++k) {
          const Slot previous = match.blocks.empty() ? kNoSlot : match.blocks.back().slot_;
          const Slot slot = table_->LiveOrRemove(found[k], now, &removed);
          // A block that lost its place in the chain is about to be removed.
          const bool follows = slot != kNoSlot && table_->Follows(slot, previous);
          match.end = follows ? ResultOf(table_->block(slot)) : LookupResult::kMiss;
          ended = match.end != LookupResult::kHit;
          if (match.end == LookupResult::kHit || match.end == LookupResult::kPending) {
            ReadLease lease;
            if (PinFound(chain.ns, slot, std::nullopt, now, &lease).ok()) {
              match.blocks.push_back(std::move(lease));
            }
          } else {
            ++counters.block_lookups;
          }
        }
      }
      if (match.blocks.size() == blocks) ended = true;
      if (ended) {
        counters.block_lookups += blocks - std::min(blocks, match.blocks.size() + 1);
        match.tokens = static_cast<uint32_t>(tokens_in(match.blocks.size()));
        ++counters.request_lookups;
        const uint32_t wanted = chain.tokens_per_block == 0 ? 0 : chain.tokens;
        counters.request_hits += match.blocks.size() == blocks && match.tokens == wanted;
        counters.tokens_looked_up += wanted;
        counters.tokens_found += match.tokens;
        counters.tokens_loaded += match.tokens - std::min(match.tokens, chain.first_token);
        // One hold of the lock is enough for a short chain.
        if (blocks <= kBlocksPerLock) {
          MissBackwards(chain, match.blocks.size(), blocks, now);
          TouchBackwards(match.blocks, blocks, now, match.blocks.size() < blocks);
        }
      }
    }
    Free(removed);
  } while (!ended);
  if (ended && blocks > kBlocksPerLock) {
    for (size_t end = blocks; end > match.blocks.size();) {
      const size_t hits = match.blocks.size();
      const size_t begin = end - hits > kBlocksPerLock ? end - kBlocksPerLock : hits;
      mu_.GiveWay();
      MutexLock lock(mu_);
      MissBackwards(chain, begin, end, Now());
      end = begin;
    }
    TouchChunks(match.blocks, blocks, match.blocks.size() < blocks);
  }
  if (advisor_ != nullptr && ended) {
    advisor_->Look(chain.keys, internal::Reference::Kind::kMatch, now, [&match](size_t i) {
      return i < match.blocks.size() ? match.blocks[i].extent_.size : 0;
    });
  }
  return match;
}

}  // namespace kvcache
