#include "kvcache/core/cache.h"

#include <algorithm>
#include <new>
#include <system_error>
#include <utility>

#include "absl/base/optimization.h"
#include "absl/container/inlined_vector.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/block_table.h"
#include "kvcache/core/check.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::kBlocksPerLock;
using internal::Nanos;
using internal::Removed;

namespace {

constexpr size_t kBytesPerDefaultBlock = 16 << 10;
constexpr size_t kFewestDefaultBlocks = 1024;
constexpr size_t kMostDefaultBlocks = 16 << 20;

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

absl::StatusOr<std::unique_ptr<Cache>> Cache::Create(const CacheOptions& options,
                                                     std::unique_ptr<StorageBackend> backend,
                                                     std::unique_ptr<EvictionPolicy> policy) {
  if (backend == nullptr) return absl::InvalidArgumentError("backend: null");
  if (policy == nullptr) return absl::InvalidArgumentError("policy: null");
  if (options.clock == nullptr) return absl::InvalidArgumentError("clock: null");
  const BackendTraits& traits = backend->traits();
  const size_t capacity = options.capacity_bytes.value_or(traits.capacity_bytes);
  if (capacity < traits.alignment || capacity > traits.capacity_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "capacity_bytes: ", capacity, ", expected from ", traits.alignment, " to ",
        traits.capacity_bytes, ", the alignment and the capacity of the backend ", traits.name));
  }
  const size_t max_blocks = options.max_blocks.value_or(std::clamp(
      traits.capacity_bytes / kBytesPerDefaultBlock, kFewestDefaultBlocks, kMostDefaultBlocks));
  if (max_blocks == 0 || max_blocks >= kNoSlot) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_blocks: ", max_blocks, ", expected from 1 to ", kNoSlot - 1));
  }
  if (options.default_ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "default_ttl: ", absl::FormatDuration(options.default_ttl), ", expected more than 0"));
  }
  if (options.scrub_bytes_per_second > 0 && !options.checksums) {
    return absl::InvalidArgumentError(
        absl::StrCat("scrub_bytes_per_second: ", options.scrub_bytes_per_second,
                     ", but checksums: false, so there is nothing to compare with"));
  }
  // More blocks than units of the backend can never be there.
  const size_t slots = std::min(max_blocks, traits.capacity_bytes / traits.alignment);
  const size_t whole_units = capacity / traits.alignment * traits.alignment;
  try {
    auto cache = absl::WrapUnique(
        new Cache(std::move(backend), std::move(policy), options, whole_units, slots));
    cache->StartScrubber(options.scrub_bytes_per_second);
    return cache;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("max_blocks: ", max_blocks, ", but there is no memory for their bookkeeping"));
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("scrub_bytes_per_second: no thread for it: ", error.what()));
  }
}

Cache::Cache(std::unique_ptr<StorageBackend> backend, std::unique_ptr<EvictionPolicy> policy,
             const CacheOptions& options, size_t capacity_bytes, size_t max_blocks)
    : backend_(std::move(backend)),
      policy_(std::move(policy)),
      clock_(*options.clock),
      default_ttl_(internal::LengthOf(options.default_ttl)),
      table_(std::make_unique<internal::BlockTable>(
          capacity_bytes, backend_->traits().alignment, max_blocks,
          options.checksums && backend_->traits().stores_bytes, *policy_)) {
  MutexLock lock(mu_);
  table_->AddNamespace("");
}

Cache::~Cache() {
  if (scrubber_.joinable()) {
    {
      MutexLock lock(mu_);
      stopping_ = true;
      stop_.NotifyAll();
    }
    scrubber_.join();
  }
  {
    MutexLock lock(mu_);
    while (in_flight_ > 0) changed_.Wait(mu_);
    KVCACHE_CHECK(table_->pins() == 0, table_->pins(),
                  " leases outlive the cache that they came from");
  }
  Clear();
}

absl::StatusOr<NamespaceId> Cache::Register(const Namespace& ns) {
  absl::StatusOr<BlockKey> root = RootKey(ns);
  if (!root.ok()) return root.status();
  MutexLock lock(mu_);
  const auto [it, added] = ids_.try_emplace(*root, NamespaceId::kDefault);
  if (added) it->second = table_->AddNamespace(ns.model);
  return it->second;
}

absl::Status Cache::UnknownNamespace(absl::string_view argument, NamespaceId ns) {
  return absl::InvalidArgumentError(absl::StrCat(argument, ": ", static_cast<uint32_t>(ns),
                                                 " was not registered with this cache"));
}

// --- Reading

Nanos Cache::Now() const { return internal::ToNanos(clock_.Now()); }

LookupResult Cache::Lookup(const BlockKey& key) const {
  MutexLock lock(mu_);
  const Slot slot = table_->Find(key, Now());
  return slot == kNoSlot ? LookupResult::kMiss : ResultOf(table_->block(slot));
}

size_t Cache::ForLeading(const Chain& chain,
                         absl::FunctionRef<void(BlockTable&, Slot, Nanos)> visit) const {
  for (size_t i = 0; i < chain.keys.size();) {
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

absl::Status Cache::PinFound(NamespaceId ns, Slot slot, std::optional<uint32_t> part, Nanos now,
                             ReadLease* lease) {
  if (part.has_value() && slot != kNoSlot && *part >= table_->block(slot).parts) {
    return absl::InvalidArgumentError(
        absl::StrCat("part: ", *part, " of a block with ", table_->block(slot).parts, " parts"));
  }
  CacheCounters& counters = table_->counters(ns);
  ++(part.has_value() ? counters.layer_lookups : counters.block_lookups);
  if (slot == kNoSlot) return absl::NotFoundError("");
  Block& b = table_->block(slot);
  const bool complete = b.state == Block::State::kComplete;
  if (ABSL_PREDICT_FALSE(!complete && !(part.has_value() && table_->Committed(slot, *part)))) {
    if (b.state != Block::State::kWriting) return absl::NotFoundError("");
    ++(part.has_value() ? counters.layer_pending : counters.block_pending);
    return absl::UnavailableError("");
  }
  ++(part.has_value() ? counters.layer_hits : counters.block_hits);
  if (b.recompute_cost > 0) {
    table_->CountSaved(ns, b.recompute_cost / (part.has_value() ? b.parts : 1));
  }
  b.reused = true;
  Pin(slot, part, now, lease);
  return absl::OkStatus();
}

void Cache::Pin(Slot slot, std::optional<uint32_t> part, Nanos now, ReadLease* lease) {
  table_->Pin(slot, now);
  const Block& b = table_->block(slot);
  lease->cache_ = this;
  lease->slot_ = slot;
  lease->extent_ = table_->ExtentOf(slot);
  lease->offset_ = 0;
  lease->bytes_ = b.bytes;
  lease->parts_ = b.parts;
  lease->first_part_ = 0;
  lease->checksums_ = table_->ChecksumsOf(slot);
  if (part.has_value()) {
    lease->bytes_ = b.part_bytes();
    lease->offset_ = *part * lease->bytes_;
    lease->parts_ = 1;
    lease->first_part_ = *part;
    if (lease->checksums_ != nullptr) lease->checksums_ += *part;
  }
}

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
                        .now = internal::ToTime(now),
                        .continues = continues});
}

void Cache::TouchChunks(absl::Span<const ReadLease> leases, uint32_t chain_blocks) {
  for (size_t end = leases.size(); end > 0;) {
    const size_t begin = end > kBlocksPerLock ? end - kBlocksPerLock : 0;
    MutexLock lock(mu_);
    TouchBackwards(leases.subspan(begin, end - begin), chain_blocks, Now(), end < leases.size());
    end = begin;
  }
}

PrefixMatch Cache::Match(const Chain& chain) {
  PrefixMatch match;
  const size_t blocks = chain.keys.size();
  match.blocks.reserve(blocks);
  const auto tokens_in = [&chain](size_t blocks) {
    return std::min<uint64_t>(uint64_t{blocks} * chain.tokens_per_block, chain.tokens);
  };
  bool ended = blocks == 0;
  if (ended) match.end = LookupResult::kHit;
  do {
    const size_t end = std::min(match.blocks.size() + kBlocksPerLock, blocks);
    Removed removed;
    {
      MutexLock lock(mu_);
      if (!table_->Knows(chain.ns)) break;
      const Nanos now = Now();
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
        counters.request_hits += match.blocks.size() == blocks;
        counters.tokens_looked_up += tokens_in(blocks);
        counters.tokens_reused += match.tokens;
        // One hold of the lock is enough for a short chain.
        if (match.blocks.size() <= kBlocksPerLock) TouchBackwards(match.blocks, blocks, now, false);
      }
    }
    Free(removed);
  } while (!ended);
  if (match.blocks.size() > kBlocksPerLock) TouchChunks(match.blocks, blocks);
  return match;
}

absl::StatusOr<ReadLease> Cache::GetOne(NamespaceId ns, const BlockKey& key,
                                        std::optional<uint32_t> part) {
  Removed removed;
  ReadLease lease;
  absl::Status status;
  {
    MutexLock lock(mu_);
    if (!table_->Knows(ns)) return UnknownNamespace("ns", ns);
    const Nanos now = Now();
    status = PinFound(ns, table_->FindOrRemove(key, now, &removed), part, now, &lease);
    if (status.ok()) TouchSlots({&lease.slot_, 1}, 0, now, false);
  }
  Free(removed);
  if (!status.ok()) return status;
  return lease;
}

absl::StatusOr<ReadLease> Cache::Get(NamespaceId ns, const BlockKey& key) {
  return GetOne(ns, key, std::nullopt);
}

absl::StatusOr<ReadLease> Cache::GetPart(NamespaceId ns, const BlockKey& key, uint32_t part) {
  return GetOne(ns, key, part);
}

size_t Cache::GetMany(NamespaceId ns, absl::Span<const BlockKey> keys,
                      absl::Span<ReadLease> leases) {
  KVCACHE_CHECK(keys.size() == leases.size(), keys.size(), " keys, ", leases.size(), " leases");
  Release(leases);
  size_t hits = 0;
  for (size_t i = 0; i < keys.size();) {
    const size_t end = std::min(i + kBlocksPerLock, keys.size());
    Removed removed;
    {
      MutexLock lock(mu_);
      if (!table_->Knows(ns)) return 0;
      const Nanos now = Now();
      while (i < end) {
        Slot found[BlockTable::kKeysPerFind];
        const auto some = keys.subspan(i, std::min(end - i, BlockTable::kKeysPerFind));
        table_->FindAny(some, found);
        for (size_t k = 0; k < some.size(); ++k, ++i) {
          const Slot slot = table_->LiveOrRemove(found[k], now, &removed);
          hits += PinFound(ns, slot, std::nullopt, now, &leases[i]).ok();
        }
      }
      if (keys.size() <= kBlocksPerLock) TouchBackwards(leases, keys.size(), now, false);
    }
    Free(removed);
  }
  if (keys.size() > kBlocksPerLock) TouchChunks(leases, keys.size());
  return hits;
}

void Cache::Release(Slot slot) {
  Removed removed;
  {
    MutexLock lock(mu_);
    table_->Unpin(slot, &removed);
  }
  Free(removed);
}

void Cache::Release(absl::Span<ReadLease> leases) {
  for (size_t i = 0; i < leases.size();) {
    const size_t end = std::min(i + kBlocksPerLock, leases.size());
    Removed removed;
    {
      MutexLock lock(mu_);
      for (; i < end; ++i) {
        ReadLease& lease = leases[i];
        if (!lease.holds()) continue;
        KVCACHE_CHECK(lease.cache_ == this, "leases[", i, "] is of another cache");
        table_->Unpin(lease.slot_, &removed);
        lease.cache_ = nullptr;
      }
    }
    Free(removed);
  }
}

absl::Status Cache::Change(absl::FunctionRef<absl::Status(BlockTable&, Nanos, Removed*)> change) {
  Removed removed;
  absl::Status status;
  {
    MutexLock lock(mu_);
    status = change(*table_, Now(), &removed);
  }
  Free(removed);
  return status;
}

// --- Removing and upkeep

void Cache::Free(Removed& removed) {
  if (!removed.empty()) FreeAll(removed);
}

void Cache::FreeAll(Removed& removed) {
  while (!removed.empty()) {
    for (const Extent& extent : removed.extents) backend_->Free(extent);
    Removed below;
    {
      MutexLock lock(mu_);
      table_->Freed(removed);
      if (removed.more) table_->RemoveRetired(kBlocksPerLock, &below);
      changed_.NotifyAll();
    }
    removed = std::move(below);
  }
}

bool Cache::Erase(const BlockKey& key) {
  bool found = false;
  Change([&](BlockTable& table, Nanos now, Removed* removed) {
    const Slot slot = table.FindOrRemove(key, now, removed);
    found = slot != kNoSlot;
    if (found) table.Unlink(slot, RemoveReason::kErased, removed);
    return absl::OkStatus();
  }).IgnoreError();
  return found;
}

size_t Cache::EraseNamespace(NamespaceId ns) {
  size_t erased = 0;
  {
    MutexLock lock(mu_);
    if (!table_->Knows(ns)) return 0;
    erased = table_->StartErase(ns);
  }
  FinishErase(ns);
  return erased;
}

void Cache::FinishErase(NamespaceId ns) {
  bool more = true;
  while (more) {
    Removed removed;
    {
      MutexLock lock(mu_);
      more = table_->ContinueErase(ns, kBlocksPerLock, &removed);
    }
    Free(removed);
  }
}

void Cache::Clear() {
  size_t namespaces;
  {
    MutexLock lock(mu_);
    namespaces = table_->namespaces();
    for (size_t id = 0; id < namespaces; ++id) table_->StartErase(static_cast<NamespaceId>(id));
  }
  for (size_t id = 0; id < namespaces; ++id) FinishErase(static_cast<NamespaceId>(id));
}

absl::StatusOr<size_t> Cache::Extend(const Chain& chain, absl::Duration ttl) {
  if (ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ttl: ", absl::FormatDuration(ttl), ", expected more than 0"));
  }
  return ForLeading(chain,
                    [length = internal::LengthOf(ttl)](BlockTable& table, Slot slot, Nanos now) {
                      table.Extend(slot, internal::After(now, length));
                    });
}

absl::Status Cache::Resize(size_t capacity_bytes) {
  const BackendTraits& traits = backend_->traits();
  if (capacity_bytes < traits.alignment || capacity_bytes > traits.capacity_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("capacity_bytes: ", capacity_bytes,
                                                   ", expected from ", traits.alignment, " to ",
                                                   traits.capacity_bytes, ", the backend's"));
  }
  MutexLock resize_lock(resize_mu_);
  for (;;) {
    Removed removed;
    bool fits;
    {
      MutexLock lock(mu_);
      fits = table_->Shrink(capacity_bytes, Now(), &removed);
      if (!fits && removed.bytes == 0) {
        if (!RoomComes()) {
          return absl::ResourceExhaustedError(absl::StrCat("capacity_bytes: ", capacity_bytes,
                                                           " is not enough for what is leased"));
        }
        changed_.Wait(mu_);
      }
    }
    Free(removed);
    if (!fits) continue;
    MutexLock lock(mu_);
    table_->SetCapacity(capacity_bytes);
    return absl::OkStatus();
  }
}

void Cache::Drain() {
  bool more = true;
  while (more) {
    Removed removed;
    {
      MutexLock lock(mu_);
      more = table_->RemoveExpired(kBlocksPerLock, Now(), &removed);
    }
    Free(removed);
  }
  MutexLock lock(mu_);
  while (in_flight_ > 0) changed_.Wait(mu_);
}

CacheStats Cache::stats() const {
  CacheStats stats;
  {
    MutexLock lock(mu_);
    stats = table_->Stats(Now());
  }
  stats.scrubbed_bytes = scrubbed_bytes_;
  stats.backend = backend_->traits().name;
  stats.policy = policy_->name();
  stats.backend_stats = backend_->stats();
  return stats;
}

}  // namespace kvcache
