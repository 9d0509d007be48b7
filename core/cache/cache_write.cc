// Cache: from Reserve() to Commit().
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/core/advice/advisor.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::Nanos;
using internal::Removed;

namespace {

// A request may evict this many times its own size before it gives up on fragmented memory.
constexpr size_t kMostEvictedPerByte = 4;

absl::Status CheckPut(const BlockKey& key, BlockSize size, const PutOptions& options) {
  if (size.bytes == 0) return absl::InvalidArgumentError("size.bytes: 0, expected more");
  if (size.parts == 0 || size.parts > kMostParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("size.parts: ", size.parts, ", expected from 1 to ", kMostParts));
  }
  if (size.bytes % size.parts != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "size.bytes: ", size.bytes, ", expected a multiple of size.parts, ", size.parts));
  }
  if (options.ttl.has_value() && *options.ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "options.ttl: ", absl::FormatDuration(*options.ttl), ", expected more than 0"));
  }
  if (options.recompute_cost < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "options.recompute_cost: ", absl::FormatDuration(options.recompute_cost), " is negative"));
  }
  if (options.priority > kHighestPriority) {
    return absl::InvalidArgumentError(absl::StrCat("options.priority: ", options.priority,
                                                   ", expected from 0 to ", kHighestPriority));
  }
  if (options.keep_priority_for <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.keep_priority_for: ", absl::FormatDuration(options.keep_priority_for),
                     ", expected more than 0"));
  }
  if (options.parent == key) {
    return absl::InvalidArgumentError("options.parent: the block itself");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WriteLease> Cache::Reserve(const BlockKey& key, BlockSize size,
                                          const PutOptions& options) {
  return ReserveBlock(key, size, options, ReserveMode::kNewOrPartial);
}

absl::StatusOr<WriteLease> Cache::ReserveReplacement(const BlockKey& key, BlockSize size,
                                                     const PutOptions& options) {
  KVCACHE_CHECK(!options.parent.has_value(), "a replacement with a parent");
  return ReserveBlock(key, size, options, ReserveMode::kReplacement);
}

ReadLease Cache::PinForReplacement(const BlockKey& key, std::vector<bool>* committed) {
  Removed removed;
  ReadLease lease;
  {
    MutexLock lock(mu_);
    const Nanos now = Now();
    const Slot slot = table_->FindOrRemove(key, now, &removed);
    if (slot != kNoSlot && table_->block(slot).visible()) {
      for (uint32_t part = 0; part < table_->block(slot).parts; ++part) {
        committed->push_back(table_->Committed(slot, part));
      }
      Pin(slot, std::nullopt, now, &lease);
    }
  }
  Free(removed);
  return lease;
}

absl::StatusOr<WriteLease> Cache::ReserveBlock(const BlockKey& key, BlockSize size,
                                               const PutOptions& options, ReserveMode mode) {
  absl::Status status = CheckPut(key, size, options);
  if (status.ok() && options.priority != 0) status = UsePriority(options.priority);
  if (!status.ok()) return status;
  for (;;) {
    Removed removed;
    EntryInfo incoming;
    absl::StatusOr<WriteLease> lease;
    bool room_comes = false;
    {
      MutexLock lock(mu_);
      lease = ReserveLocked(key, size, options, mode, &incoming, &room_comes, &removed);
      if (room_comes && removed.bytes == 0) changed_.Wait(mu_);
    }
    const size_t evicted = removed.bytes;
    Free(removed);
    if (room_comes) continue;
    if (advisor_ != nullptr && incoming.bytes > 0) {
      const size_t unit = backend_->traits().alignment;
      advisor_->Put(key, (size.bytes + unit - 1) / unit * unit, incoming, options);
    }
    if (!lease.ok() || lease->extent_.size > 0) return lease;
    absl::StatusOr<Extent> extent = AllocateExtent(size.bytes, evicted, incoming, options.ns);
    if (!extent.ok()) return extent.status();  // the lease's end takes the block back
    lease->extent_ = *extent;
    MutexLock lock(mu_);
    table_->SetExtent(lease->slot_, *extent);
    return lease;
  }
}

// A policy takes its memory without the lock.
absl::Status Cache::UsePriority(uint16_t priority) {
  {
    MutexLock lock(mu_);
    if (table_->HasPriority(priority)) return absl::OkStatus();
  }
  try {
    std::unique_ptr<EvictionPolicy> policy = policy_->CreateEmpty();
    policy->SetLimits(slots_, backend_->traits().capacity_bytes);  // those of now come later
    MutexLock lock(mu_);
    return table_->AddPriority(priority, std::move(policy));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("options.priority: there is no memory for the bookkeeping of ", priority));
  }
}

absl::StatusOr<WriteLease> Cache::ReserveLocked(const BlockKey& key, BlockSize size,
                                                const PutOptions& options, ReserveMode mode,
                                                EntryInfo* incoming, bool* room_comes,
                                                Removed* removed) {
  if (!failed_.ok()) return failed_;
  if (!table_->Knows(options.ns)) {
    return UnknownNamespace("options.ns", options.ns);
  }
  if (size.bytes > table_->capacity() || table_->Charge(size.bytes) > table_->capacity()) {
    ++table_->counters(options.ns).rejected_too_large;
    return absl::InvalidArgumentError(absl::StrCat("size.bytes: ", size.bytes,
                                                   " is more than the capacity of the cache, ",
                                                   table_->capacity()));
  }
  const Nanos now = Now();
  table_->EndPriorities(now);
  const Nanos ttl = options.ttl.has_value() ? internal::LengthOf(*options.ttl) : default_ttl_;
  const bool replacement = mode == ReserveMode::kReplacement;
  const Slot found = replacement ? kNoSlot : table_->FindOrRemove(key, now, removed);
  if (found != kNoSlot) {
    const Block& b = table_->block(found);
    if (b.state == Block::State::kComplete) {
      table_->Touch({found}, {.first_depth = b.depth, .now = internal::ToTime(now)});
      return absl::AlreadyExistsError("");
    }
    if (b.state == Block::State::kWriting) return absl::UnavailableError("");
    if (mode == ReserveMode::kNew) {
      return absl::FailedPreconditionError("the block is partial: Reserve() resumes it");
    }
    if (b.bytes != size.bytes || b.parts != size.parts) {
      return absl::InvalidArgumentError(absl::StrCat("size: ", size.bytes, " bytes in ", size.parts,
                                                     " parts, but the partial block has ", b.bytes,
                                                     " bytes in ", b.parts, " parts"));
    }
    table_->Resume(found, ttl, now);
    return WriteLeaseOn(found);
  }
  table_->RemoveExpiredFor(size.bytes, now, removed);
  Slot parent = kNoSlot;
  if (options.parent.has_value()) {
    parent = table_->FindOrRemove(*options.parent, now, removed);
    if (parent == kNoSlot || table_->block(parent).ns != options.ns) {
      return absl::FailedPreconditionError(absl::StrCat(
          "options.parent: ", options.parent->ToHex(), " is ",
          parent == kNoSlot ? "neither resident nor being written" : "of another namespace"));
    }
  }
  *incoming = {.key_hash = key.Hash64(),
               .bytes = size.bytes,
               .parent = parent,
               .depth = parent == kNoSlot ? 0 : table_->block(parent).depth + 1,
               .chain_blocks = options.chain_blocks,
               .priority = options.priority,
               .keep_priority_for = options.keep_priority_for,
               .recompute_cost = internal::SecondsOf(options.recompute_cost),
               .deadline = internal::ToTime(internal::After(now, ttl)),
               .now = internal::ToTime(now)};
  switch (table_->MakeRoom(size.bytes, parent, *incoming, removed)) {
    case BlockTable::Room::kMade:
      break;
    case BlockTable::Room::kNothingToEvict:
      *room_comes = RoomComes();
      if (!*room_comes) ++table_->counters(options.ns).rejected_pinned;
      return absl::ResourceExhaustedError(
          absl::StrCat("no room for ", size.bytes, " bytes: of the capacity of ",
                       table_->capacity(), ", what is not free is leased or has children"));
    case BlockTable::Room::kRefusedByPolicy:
      ++table_->counters(options.ns).rejected_by_policy;
      table_->policy().Bypassed({incoming->key_hash}, {.first_depth = incoming->depth,
                                                       .chain_blocks = incoming->chain_blocks,
                                                       .now = internal::ToTime(now)});
      return absl::ResourceExhaustedError(
          absl::StrCat("the policy ", policy_->name(), " refuses the block"));
  }
  const Slot slot = table_->Insert(key, size, options, parent, ttl, replacement, now, removed);
  return WriteLeaseOn(slot);
}

bool Cache::RoomComes() const {
  return table_->bytes_being_freed() > 0 ||
         (scrubbed_ != kNoSlot && table_->EvictableButForOnePin(scrubbed_));
}

WriteLease Cache::WriteLeaseOn(Slot slot) {
  const Block& b = table_->block(slot);
  WriteLease lease;
  lease.cache_ = this;
  lease.slot_ = slot;
  lease.extent_ = table_->ExtentOf(slot);
  lease.bytes_ = b.bytes;
  lease.parts_ = b.parts;
  lease.checksums_ = table_->ChecksumsOf(slot);
  return lease;
}

// The budget has room for it, so failure means that free memory is in pieces.
absl::StatusOr<Extent> Cache::AllocateExtent(size_t bytes, size_t evicted,
                                             const EntryInfo& incoming, NamespaceId ns) {
  for (;;) {
    absl::StatusOr<Extent> extent = backend_->Allocate(bytes);
    if (!absl::IsResourceExhausted(extent.status())) return extent;
    Removed removed;
    {
      MutexLock lock(mu_);
      const Nanos now = Now();
      table_->EndPriorities(now);
      if (table_->HasExpired(now)) {
        table_->RemoveExpired(1, now, &removed);
      } else {
        const size_t limit = table_->Charge(bytes) * kMostEvictedPerByte;
        const size_t more =
            evicted < limit ? table_->EvictOne(limit - evicted, incoming, &removed) : 0;
        if (more == 0) {
          ++table_->counters(ns).rejected_fragmented;
          return absl::ResourceExhaustedError(
              absl::StrCat("no contiguous ", bytes, " bytes, after evicting ", evicted,
                           " bytes for them: ", extent.status().message()));
        }
        evicted += more;
      }
    }
    Free(removed);
  }
}

size_t Cache::ReserveMany(const Chain& chain, BlockSize size, const PutOptions& options,
                          absl::Span<absl::StatusOr<WriteLease>> results) {
  KVCACHE_CHECK(results.size() >= chain.keys.size(), chain.keys.size(), " keys, ", results.size(),
                " results");
  PutOptions block_options = options;
  block_options.ns = chain.ns;
  if (block_options.chain_blocks == 0) block_options.chain_blocks = chain.keys.size();
  for (size_t i = 0; i < chain.keys.size(); ++i) {
    results[i] = Reserve(chain.keys[i], size, block_options);
    if (!results[i].ok() && !absl::IsAlreadyExists(results[i].status())) return i + 1;
    block_options.parent = chain.keys[i];
  }
  return chain.keys.size();
}

}  // namespace kvcache
