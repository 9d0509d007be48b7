#include "kvcache/tests/cache/reference_cache.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace kvcache {

using State = ReferenceBlock::State;

ReferenceCache::ReferenceCache(const Options& options)
    : options_(options), counters_(options.namespaces) {}

// --- What there is

size_t ReferenceCache::Charge(const ReferenceBlock& block) const {
  return (block.size.bytes + options_.alignment - 1) / options_.alignment * options_.alignment;
}

size_t ReferenceCache::BytesInUse() const {
  size_t bytes = 0;
  for (const auto& [key, block] : resident_) bytes += Charge(*block);
  for (const Handle& block : detached_) bytes += Charge(*block);
  return bytes;
}

std::vector<ReferenceCache::Handle> ReferenceCache::ChildrenOf(const Handle& block) const {
  std::vector<Handle> children;
  for (const auto& [key, child] : resident_) {
    if (child->parent == block) children.push_back(child);
  }
  return children;
}

// A block that is being written lives no longer than its parent.
Nanos ReferenceCache::DeadlineOf(const Handle& block) const {
  if (block == nullptr) return kNever;
  if (block->visible()) return block->deadline;
  return std::min(block->deadline, DeadlineOf(block->parent));
}

ReferenceCache::Handle ReferenceCache::Find(const BlockKey& key) const {
  const auto found = resident_.find(key.bytes);
  return found == resident_.end() ? nullptr : found->second;
}

void ReferenceCache::CatchUp() {
  const Nanos now = options_.clock->Now();
  std::vector<Handle> expired;
  for (const auto& [key, block] : resident_) {
    if (DeadlineOf(block) <= now) expired.push_back(block);
  }
  for (const Handle& block : expired) Remove(block, Why::kExpired);

  // What loses its priority is as if it had just been put.
  std::vector<Handle> ended;
  for (const auto& [key, block] : resident_) {
    if (block->was_visible && block->priority > 0 && block->priority_end <= now) {
      ended.push_back(block);
    }
  }
  std::sort(ended.begin(), ended.end(), [](const Handle& a, const Handle& b) {
    return std::tie(a->priority_end, a->admitted) < std::tie(b->priority_end, b->admitted);
  });
  for (const Handle& block : ended) {
    block->priority = 0;
    block->uses = 0;
    Touch(block);
  }
}

void ReferenceCache::Remove(const Handle& block, Why why) {
  if (block->state == State::kGone) return;
  for (const Handle& child : ChildrenOf(block)) Remove(child, why);
  CacheCounters& count = counters(block->ns);
  if (!block->was_visible || why == Why::kAborted) {
    ++count.failed_writes;
  } else if (why == Why::kEvicted) {
    ++count.evictions;
    if (!block->hit) ++count.evicted_before_reuse;
    ++count.evicted_before_copied;
  } else {
    ++(why == Why::kErased ? count.erased : count.expirations);
  }
  block->state = State::kGone;
  resident_.erase(block->key.bytes);
  if (block->pins > 0) detached_.push_back(block);
}

void ReferenceCache::Pin(const Handle& block) {
  if (block->pins++ == 0) block->pinned_since = options_.clock->Now();
}

void ReferenceCache::Release(const Handle& block) {
  if (--block->pins == 0) std::erase(detached_, block);
}

void ReferenceCache::Touch(const Handle& block) {
  if (!block->was_visible) return;
  block->last_use = ++sequence_;
  ++block->uses;
}

// --- Reading

LookupResult ReferenceCache::Lookup(const BlockKey& key) const {
  const Handle block = Find(key);
  if (block == nullptr || DeadlineOf(block) <= options_.clock->Now()) return LookupResult::kMiss;
  if (block->state == State::kWriting) return LookupResult::kPending;
  return block->state == State::kPartial ? LookupResult::kPartial : LookupResult::kHit;
}

std::vector<ReferenceCache::Handle> ReferenceCache::LeadingBlocks(const Chain& chain) const {
  std::vector<Handle> blocks;
  for (const BlockKey& key : chain.keys) {
    const Handle block = Find(key);
    if (block == nullptr || block->state != State::kComplete) break;
    if (!blocks.empty() && block->parent != nullptr && block->parent != blocks.back()) break;
    blocks.push_back(block);
  }
  return blocks;
}

size_t ReferenceCache::LookupPrefix(const Chain& chain) {
  CatchUp();
  return LeadingBlocks(chain).size();
}

ReferenceCache::PrefixHit ReferenceCache::Match(const Chain& chain) {
  CatchUp();
  PrefixHit match;
  match.blocks = LeadingBlocks(chain);
  const size_t hits = match.blocks.size();
  const size_t wanted = chain.keys.size();
  CacheCounters& count = counters(chain.ns);
  count.block_lookups += wanted;
  ++count.request_lookups;
  if (hits == wanted) {
    match.end = LookupResult::kHit;
  } else {
    const Handle next = Find(chain.keys[hits]);
    const bool follows = next != nullptr && (hits == 0 || next->parent == nullptr ||
                                             next->parent == match.blocks.back());
    match.end = follows ? Lookup(next->key) : LookupResult::kMiss;
    if (match.end == LookupResult::kPending) ++count.block_pending;
  }
  for (auto it = match.blocks.rbegin(); it != match.blocks.rend(); ++it) {
    const Handle& block = *it;
    ++count.block_hits;
    count.compute_saved += block->recompute_cost;
    block->hit = true;
    Pin(block);
    Touch(block);
  }
  const auto tokens_in = [&chain](size_t blocks) {
    return std::min<uint32_t>(blocks * chain.tokens_per_block, chain.tokens);
  };
  match.tokens = tokens_in(hits);
  const uint32_t asked = chain.tokens_per_block == 0 ? 0 : chain.tokens;
  count.request_hits += hits == wanted && match.tokens == asked;
  count.tokens_looked_up += asked;
  count.tokens_found += match.tokens;
  count.tokens_loaded += match.tokens - std::min(match.tokens, chain.first_token);
  return match;
}

std::vector<absl::StatusOr<ReferenceCache::Handle>> ReferenceCache::GetMany(
    NamespaceId ns, absl::Span<const Wanted> wanted) {
  CatchUp();
  CacheCounters& count = counters(ns);
  std::vector<absl::StatusOr<Handle>> results;
  for (const Wanted& want : wanted) {
    const bool layer = want.part.has_value();
    const Handle block = Find(want.key);
    if (block != nullptr) {
      const size_t bytes = block->size.bytes / (layer ? block->size.parts : 1);
      if ((layer && *want.part >= block->size.parts) || want.bytes.value_or(bytes) != bytes) {
        results.push_back(absl::InvalidArgumentError(""));
        continue;
      }
    }
    ++(layer ? count.layer_lookups : count.block_lookups);
    if (block == nullptr) {
      results.push_back(absl::NotFoundError(""));
      continue;
    }
    if (layer ? !block->committed[*want.part] : block->state != State::kComplete) {
      if (block->state == State::kWriting) {
        ++(layer ? count.layer_pending : count.block_pending);
        results.push_back(absl::UnavailableError(""));
      } else {
        results.push_back(absl::NotFoundError(""));
      }
      continue;
    }
    ++(layer ? count.layer_hits : count.block_hits);
    count.compute_saved +=
        layer ? block->recompute_cost / block->size.parts : block->recompute_cost;
    block->hit = true;
    Pin(block);
    results.push_back(block);
  }
  for (auto it = results.rbegin(); it != results.rend(); ++it) {
    if (it->ok()) Touch(**it);
  }
  return results;
}

// --- Room

bool ReferenceCache::GoesBefore(const ReferenceBlock& a, const ReferenceBlock& b) const {
  if (a.priority != b.priority) return a.priority < b.priority;
  switch (options_.order) {
    case Order::kLru:
      return a.last_use < b.last_use;
    case Order::kLfu:
      return std::tie(a.uses, a.last_use) < std::tie(b.uses, b.last_use);
    case Order::kTtl:
      return std::tie(a.deadline, a.last_use) < std::tie(b.deadline, b.last_use);
  }
  return false;
}

ReferenceCache::Handle ReferenceCache::FirstVictim(const Handle& spared,
                                                   absl::Span<const Handle> chosen) const {
  const auto is_chosen = [chosen](const Handle& block) {
    return std::find(chosen.begin(), chosen.end(), block) != chosen.end();
  };
  Handle first;
  for (const auto& [key, block] : resident_) {
    if (!block->visible() || block->pins > 0 || block == spared || is_chosen(block)) continue;
    if (first != nullptr && !GoesBefore(*block, *first)) continue;
    const std::vector<Handle> children = ChildrenOf(block);
    if (std::all_of(children.begin(), children.end(), is_chosen)) first = block;
  }
  return first;
}

ReferenceCache::Room ReferenceCache::MakeRoom(size_t bytes, size_t blocks, size_t capacity,
                                              const Handle& spared, uint16_t priority) {
  std::vector<Handle> victims;
  size_t bytes_left = BytesInUse();
  size_t blocks_left = resident_.size() + detached_.size();
  size_t loose = 0;
  for (const auto& [key, block] : resident_) {
    if (block->visible() && block->pins == 0) loose += Charge(*block);
  }
  if (bytes_left + bytes > capacity + loose) return Room::kNone;
  while (bytes_left + bytes > capacity || blocks_left + blocks > options_.max_blocks) {
    const Handle victim = FirstVictim(spared, victims);
    if (victim == nullptr) return Room::kNone;
    if (victim->priority > priority) return Room::kRefused;
    victims.push_back(victim);
    bytes_left -= Charge(*victim);
    --blocks_left;
  }
  for (const Handle& victim : victims) Remove(victim, Why::kEvicted);
  return Room::kMade;
}

// --- Writing

absl::StatusOr<ReferenceCache::Handle> ReferenceCache::Reserve(const BlockKey& key, BlockSize size,
                                                               const PutOptions& options,
                                                               bool resume) {
  CatchUp();
  if (size.bytes == 0 || size.parts == 0 || size.parts > kMostParts ||
      size.bytes % size.parts != 0 ||
      options.ttl.value_or(options_.default_ttl) <= absl::Duration() ||
      options.recompute_cost < absl::Duration() || options.parent == key ||
      options.priority > kHighestPriority || options.keep_priority_for <= absl::Duration() ||
      static_cast<size_t>(options.ns) >= counters_.size()) {
    return absl::InvalidArgumentError("");
  }
  const auto block = std::make_shared<ReferenceBlock>();
  block->key = key;
  block->ns = options.ns;
  block->size = size;
  block->ttl = options.ttl.value_or(options_.default_ttl);
  block->recompute_cost = options.recompute_cost;
  block->priority = options.priority;
  block->keep_priority_for = options.keep_priority_for;
  block->committed.resize(size.parts);
  block->failed.resize(size.parts);
  CacheCounters& count = counters(options.ns);
  if (Charge(*block) > options_.capacity_bytes) {
    ++count.rejected_too_large;
    return absl::InvalidArgumentError("");
  }
  if (const Handle found = Find(key); found != nullptr) {
    if (found->state == State::kComplete) {
      Touch(found);
      return absl::AlreadyExistsError("");
    }
    if (found->state == State::kWriting) return absl::UnavailableError("");
    if (!resume) return absl::FailedPreconditionError("");
    if (found->size.bytes != size.bytes || found->size.parts != size.parts) {
      return absl::InvalidArgumentError("");
    }
    found->state = State::kWriting;
    found->ttl = block->ttl;
    found->progress = false;
    found->failed.assign(size.parts, false);
    Pin(found);
    return found;
  }
  if (options.parent.has_value()) {
    block->parent = Find(*options.parent);
    if (block->parent == nullptr) return absl::NotFoundError("options.parent");
    if (block->parent->ns != options.ns) return absl::InvalidArgumentError("");
  }
  const Room room =
      MakeRoom(Charge(*block), 1, options_.capacity_bytes, block->parent, options.priority);
  if (room != Room::kMade) {
    if (room == Room::kRefused) {
      ++count.rejected_by_policy;
      return absl::PermissionDeniedError("");
    }
    ++count.rejected_pinned;
    return absl::ResourceExhaustedError("");
  }
  resident_[key.bytes] = block;
  Pin(block);
  return block;
}

void ReferenceCache::MakeVisible(const Handle& block, State state) {
  block->state = state;
  if (block->progress) block->deadline = Later(options_.clock->Now(), ToNanos(block->ttl));
  block->deadline = std::min(block->deadline, DeadlineOf(block->parent));
  for (const auto& [key, other] : resident_) {
    for (Handle above = other->parent; above != nullptr && other->visible();
         above = above->parent) {
      if (above == block) other->deadline = std::min(other->deadline, block->deadline);
    }
  }
  if (!block->was_visible) {
    block->was_visible = true;
    Touch(block);
    block->admitted = block->last_use;
    block->priority_end = Later(options_.clock->Now(), ToNanos(block->keep_priority_for));
  }
  if (state == State::kComplete) ++counters(block->ns).blocks_written;
}

void ReferenceCache::EndWrite(const Handle& block) {
  const auto committed = std::count(block->committed.begin(), block->committed.end(), true);
  if (committed == block->size.parts) {
    MakeVisible(block, State::kComplete);
  } else if (block->suspended && committed > 0) {
    MakeVisible(block, State::kPartial);
  } else {
    Remove(block, Why::kAborted);
  }
}

absl::Status ReferenceCache::CommitPart(const Handle& block, uint32_t part, bool succeeds) {
  CatchUp();
  if (part >= block->size.parts) return absl::InvalidArgumentError("");
  if (block->state == State::kGone) return absl::AbortedError("");
  if (block->committed[part]) return absl::FailedPreconditionError("");
  block->failed[part] = !succeeds;
  if (succeeds) {
    block->committed[part] = block->progress = true;
    counters(block->ns).bytes_written += block->size.bytes / block->size.parts;
    const std::vector<bool>& committed = block->committed;
    if (std::find(committed.begin(), committed.end(), false) == committed.end()) EndWrite(block);
  } else if (block->suspended) {
    ++counters(block->ns).failed_writes;
  } else {
    Remove(block, Why::kAborted);
  }
  return absl::OkStatus();
}

absl::Status ReferenceCache::Commit(const Handle& block) {
  CatchUp();
  const bool gone = block->state == State::kGone;
  bool failed = false;
  for (uint32_t part = 0; part < block->size.parts && !gone; ++part) {
    failed |= block->failed[part];
    if (!block->committed[part] && !block->failed[part]) CommitPart(block, part).IgnoreError();
  }
  if (failed) EndWrite(block);
  Release(block);
  return gone || failed ? absl::AbortedError("") : absl::OkStatus();
}

absl::Status ReferenceCache::Suspend(const Handle& block) {
  CatchUp();
  const bool gone = block->state == State::kGone;
  if (block->state == State::kWriting) {
    block->suspended = true;
    EndWrite(block);
  }
  Release(block);
  return gone ? absl::AbortedError("") : absl::OkStatus();
}

void ReferenceCache::Abort(const Handle& block) {
  CatchUp();
  if (block->state == State::kWriting) {
    if (block->suspended) ++counters(block->ns).failed_writes;
    EndWrite(block);
  }
  Release(block);
}

// --- Removing and upkeep

bool ReferenceCache::Erase(const BlockKey& key) {
  CatchUp();
  const Handle block = Find(key);
  if (block != nullptr) Remove(block, Why::kErased);
  return block != nullptr;
}

size_t ReferenceCache::EraseNamespace(NamespaceId ns) {
  CatchUp();
  std::vector<Handle> erased;
  for (const auto& [key, block] : resident_) {
    if (block->ns == ns) erased.push_back(block);
  }
  for (const Handle& block : erased) Remove(block, Why::kErased);
  return erased.size();
}

absl::StatusOr<size_t> ReferenceCache::Extend(const Chain& chain, absl::Duration ttl) {
  CatchUp();
  if (ttl <= absl::ZeroDuration()) return absl::InvalidArgumentError("");
  const std::vector<Handle> blocks = LeadingBlocks(chain);
  for (const Handle& block : blocks) {
    const Nanos deadline =
        std::min(Later(options_.clock->Now(), ToNanos(ttl)), DeadlineOf(block->parent));
    block->deadline = std::max(block->deadline, deadline);
  }
  return blocks.size();
}

absl::Status ReferenceCache::Resize(size_t capacity_bytes) {
  CatchUp();
  if (capacity_bytes < options_.alignment || capacity_bytes > options_.backend_capacity_bytes) {
    return absl::InvalidArgumentError("");
  }
  if (MakeRoom(0, 0, capacity_bytes, nullptr, kHighestPriority) != Room::kMade) {
    return absl::ResourceExhaustedError("");
  }
  options_.capacity_bytes = capacity_bytes;
  return absl::OkStatus();
}

CacheStats ReferenceCache::stats() {
  CatchUp();
  CacheStats stats;
  stats.capacity_bytes = options_.capacity_bytes;
  stats.max_blocks = options_.max_blocks;
  stats.namespaces.resize(counters_.size());
  const auto count = [&](const ReferenceBlock& block) {
    CacheUsage& usage = stats.namespaces[static_cast<size_t>(block.ns)].usage;
    usage.bytes_in_use += Charge(block);
    if (block.state == State::kGone) {
      usage.bytes_detached += Charge(block);
    } else {
      ++usage.blocks;
      if (block.state == State::kComplete) ++usage.blocks_complete;
    }
    stats.leases += block.pins;
    if (block.pins > 0) {
      stats.longest_pinned =
          std::max(stats.longest_pinned, ToDuration(options_.clock->Now() - block.pinned_since));
    }
  };
  for (const auto& [key, block] : resident_) count(*block);
  for (const Handle& block : detached_) count(*block);
  for (size_t i = 0; i < counters_.size(); ++i) {
    stats.namespaces[i].counters = counters_[i];
    stats.counters += counters_[i];
    stats.usage += stats.namespaces[i].usage;
  }
  return stats;
}

}  // namespace kvcache
