// Cache: from Reserve() to a WriteLease.
#include <algorithm>
#include <new>
#include <utility>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/container/inlined_vector.h"
#include "kvcache/core/advice/advisor.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/gap_maker.h"
#include "kvcache/core/table/block_table.h"

namespace kvcache {

using internal::Block;
using internal::BlockTable;
using internal::kBlocksPerLock;
using internal::Nanos;
using internal::Removed;

namespace {

// A request makes room in one piece this often before it leaves it to those who take it.
constexpr int kMostGaps = 16;

absl::Status CheckPut(const BlockKey& key, BlockSize size, const PutOptions& options,
                      const BlockKey* parent, absl::Duration recompute_cost) {
  if (size.bytes == 0) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "size.bytes: 0, expected more");
  }
  if (size.parts == 0 || size.parts > kMostParts) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "size.parts: ", size.parts,
                           ", expected from 1 to ", kMostParts);
  }
  if (size.bytes % size.parts != 0) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "size.bytes: ", size.bytes,
                           ", expected a multiple of size.parts, ", size.parts);
  }
  if (options.ttl.has_value() && *options.ttl <= absl::ZeroDuration()) {
    return internal::Error(absl::StatusCode::kInvalidArgument,
                           "options.ttl: ", absl::FormatDuration(*options.ttl),
                           ", expected more than 0");
  }
  if (recompute_cost < absl::ZeroDuration() || recompute_cost > kHighestRecomputeCost) {
    return internal::Error(absl::StatusCode::kInvalidArgument,
                           "options.recompute_cost: ", absl::FormatDuration(recompute_cost),
                           ", expected from 0 to ", absl::FormatDuration(kHighestRecomputeCost));
  }
  if (options.priority > kHighestPriority) {
    return internal::Error(absl::StatusCode::kInvalidArgument,
                           "options.priority: ", options.priority, ", expected from 0 to ",
                           kHighestPriority);
  }
  if (options.keep_priority_for <= absl::ZeroDuration()) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "options.keep_priority_for: ",
                           absl::FormatDuration(options.keep_priority_for),
                           ", expected more than 0");
  }
  if (parent != nullptr && *parent == key) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "options.parent: the block itself");
  }
  return absl::OkStatus();
}

}  // namespace

// One block to reserve, and what became of it.
struct Cache::Reservation {
  enum class Outcome {
    kOpen,
    kReserved,
    kFailed,  // the backend, for good
    kUnknownNamespace,
    kTooLarge,
    kExists,
    kBeingWritten,
    kPartial,    // and may not be resumed
    kOtherSize,  // of a partial block: found_size
    kNoParent,
    kParentElsewhere,
    kRefusedByPolicy,
    kNoRoom,
    kNoSlot,
    kNoExtent,  // `status` says why
    kNoMemory,
  };
  // Whether the next block of a prompt can be reserved, too.
  bool GoesOn() const {
    return outcome == Outcome::kReserved || outcome == Outcome::kExists ||
           outcome == Outcome::kBeingWritten;
  }

  const BlockKey& key;
  BlockSize size;
  const PutOptions& options;   // but for the two that follow
  const BlockKey* parent_key;  // nullptr: none
  absl::Duration recompute_cost;
  ReserveMode mode;
  BlockTable::PartMemory memory;

  Outcome outcome = Outcome::kOpen;
  BlockSize found_size = {};
  EntryInfo incoming = {};  // with bytes once it was asked whether there is room
  size_t credit = 0;        // charged for it already
  bool moved = false;       // its extent was another slot's
  Slot parent = kNoSlot;    // where parent_key is, if that is known in this hold of the lock
  absl::Status status = absl::OkStatus();
  WriteLease lease = {};
};

// Of one that has failed.
absl::Status Cache::StatusOf(const Reservation& reservation) const {
  using Outcome = Reservation::Outcome;
  const BlockSize size = reservation.size;
  switch (reservation.outcome) {
    case Outcome::kFailed: {
      MutexLock lock(mu_);
      return failed_;
    }
    case Outcome::kUnknownNamespace:
      return UnknownNamespace(reservation.options.ns, "options.ns");
    case Outcome::kTooLarge:
      return internal::Error(absl::StatusCode::kInvalidArgument, "size.bytes: ", size.bytes,
                             " is more than the capacity of the cache, ", capacity_bytes());
    case Outcome::kExists:
      return absl::AlreadyExistsError("");
    case Outcome::kBeingWritten:
      return absl::UnavailableError("");
    case Outcome::kPartial:
      return internal::Error(absl::StatusCode::kFailedPrecondition,
                             "the block is partial: Reserve() resumes it");
    case Outcome::kOtherSize:
      return internal::Error(absl::StatusCode::kInvalidArgument, "size: ", size.bytes, " bytes in ",
                             size.parts, " parts, but the partial block has ",
                             reservation.found_size.bytes, " bytes in ",
                             reservation.found_size.parts, " parts");
    case Outcome::kNoParent:
      return internal::Error(absl::StatusCode::kNotFound,
                             "options.parent: ", reservation.parent_key->ToHex(),
                             " is neither resident nor being written");
    case Outcome::kParentElsewhere:
      return internal::Error(absl::StatusCode::kInvalidArgument,
                             "options.parent: ", reservation.parent_key->ToHex(),
                             " is of another namespace");
    case Outcome::kRefusedByPolicy:
      return internal::Error(absl::StatusCode::kPermissionDenied, "the policy ", policy_->name(),
                             " refuses the block");
    case Outcome::kNoRoom:
      return internal::Error(absl::StatusCode::kResourceExhausted, "no room for ", size.bytes,
                             " bytes: of the capacity of ", capacity_bytes(),
                             ", what is not free is leased or has children");
    case Outcome::kNoSlot:
      return internal::Error(absl::StatusCode::kResourceExhausted,
                             "no room for one more block: of max_blocks, ", slots_,
                             ", all are leased or have children");
    case Outcome::kNoExtent:
      return reservation.status;
    case Outcome::kNoMemory:
      return internal::NoMemory();
    case Outcome::kOpen:
    case Outcome::kReserved:
      break;
  }
  return internal::Error(absl::StatusCode::kInternal, "a reservation that was not decided");
}

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
  if (LockSupplied(0, 1, 0)) {
    MutexLock lock(mu_, AdoptLock());
    const Nanos now = Now();
    const Slot slot = table_->FindOrRemove(key, now, &removed);
    if (slot != kNoSlot && table_->block(slot).visible()) {
      const size_t parts = std::min<size_t>(table_->block(slot).parts, committed->size());
      for (uint32_t part = 0; part < parts; ++part) {
        (*committed)[part] = table_->Committed(slot, part);
      }
      Pin(slot, table_->block(slot), std::nullopt, now, &lease);
    }
  }
  Free(removed);
  return lease;
}

absl::StatusOr<WriteLease> Cache::ReserveBlock(const BlockKey& key, BlockSize size,
                                               const PutOptions& options, ReserveMode mode) {
  return internal::WithoutThrowing([&]() -> absl::StatusOr<WriteLease> {
    const BlockKey* parent = options.parent.has_value() ? &*options.parent : nullptr;
    absl::Status status = CheckPut(key, size, options, parent, options.recompute_cost);
    if (status.ok() && options.priority != 0) status = UsePriority(options.priority);
    if (!status.ok()) return status;
    Reservation reservation = {
        key, size, options, parent, options.recompute_cost, mode, {size.parts, keeps_checksums_}};
    ReserveEach({&reservation, 1});
    if (reservation.outcome != Reservation::Outcome::kReserved) return StatusOf(reservation);
    return std::move(reservation.lease);
  });
}

size_t Cache::ReserveMany(const Chain& chain, absl::Span<const BlockSize> sizes,
                          const PutOptions& options,
                          absl::Span<absl::StatusOr<WriteLease>> results) {
  const size_t blocks = chain.keys.size();
  KVCACHE_CHECK(results.size() >= blocks, blocks, " keys, ", results.size(), " results");
  KVCACHE_CHECK(sizes.size() == blocks || sizes.size() == 1, blocks, " keys, ", sizes.size(),
                " sizes");
  PutOptions block_options = options;
  block_options.ns = chain.ns;
  if (block_options.chain_blocks == 0) block_options.chain_blocks = static_cast<uint32_t>(blocks);
  const auto size_of = [&](size_t i) { return sizes[sizes.size() == 1 ? 0 : i]; };
  size_t done = 0;
  const absl::Status status = internal::WithoutThrowing([&]() -> absl::Status {
    if (blocks > 0 && options.priority != 0) {
      if (absl::Status status = UsePriority(options.priority); !status.ok()) return status;
    }
    std::vector<Reservation> chunk;
    chunk.reserve(std::min(blocks, kBlocksPerLock));
    while (done < blocks) {
      chunk.clear();
      absl::Status refused;
      for (size_t i = done; i < blocks && chunk.size() < kBlocksPerLock; ++i) {
        const BlockSize size = size_of(i);
        const BlockKey* parent = i > 0                        ? &chain.keys[i - 1]
                                 : options.parent.has_value() ? &*options.parent
                                                              : nullptr;
        absl::Duration recompute_cost = options.recompute_cost;
        if (size.bytes != sizes[0].bytes && sizes[0].bytes > 0) {
          recompute_cost *= static_cast<double>(size.bytes) / static_cast<double>(sizes[0].bytes);
        }
        refused = CheckPut(chain.keys[i], size, block_options, parent, recompute_cost);
        if (!refused.ok()) break;
        chunk.push_back({chain.keys[i],
                         size,
                         block_options,
                         parent,
                         recompute_cost,
                         ReserveMode::kNewOrPartial,
                         {size.parts, keeps_checksums_}});
      }
      if (done > 0) mu_.GiveWay();
      ReserveEach(absl::MakeSpan(chunk));
      for (Reservation& reservation : chunk) {
        if (reservation.outcome == Reservation::Outcome::kReserved) {
          results[done] = std::move(reservation.lease);
        } else {
          results[done] = StatusOf(reservation);
        }
        ++done;
        if (!reservation.GoesOn()) return absl::OkStatus();
      }
      if (!refused.ok()) {
        results[done++] = refused;
        return absl::OkStatus();
      }
    }
    return absl::OkStatus();
  });
  if (!status.ok()) results[done++] = status;
  return done;
}

void Cache::ReserveEach(absl::Span<Reservation> reservations) {
  for (size_t begin = 0; begin < reservations.size();) {
    if (begin > 0) mu_.GiveWay();
    size_t end = begin;
    Locked last = Locked::kDecided;
    bool lacks_extent = false;
    Removed removed;
    if (!LockSupplied(reservations.size() - begin, 0, 0)) {
      reservations[begin].outcome = Reservation::Outcome::kNoMemory;
      return;
    }
    {
      MutexLock lock(mu_, AdoptLock());
      while (end < reservations.size() && last == Locked::kDecided && !removed.full() &&
             (end == begin || reservations[end - 1].GoesOn())) {
        Reservation& r = reservations[end];
        const Reservation* before = end == begin ? nullptr : &reservations[end - 1];
        const bool below = before != nullptr && before->lease.holds() &&
                           r.parent_key == &before->key &&
                           table_->block(before->lease.slot_).state == Block::State::kWriting;
        r.parent = below ? before->lease.slot_ : kNoSlot;
        last = ReserveLocked(&r, &removed);
        if (last != Locked::kDecided) break;
        lacks_extent |= r.lease.holds() && (r.moved || r.lease.extent_.size == 0);
        ++end;
      }
      if (last == Locked::kWait) changed_.Wait(mu_);
    }
    Free(removed);
    const auto decided = reservations.subspan(begin, end - begin);
    if (lacks_extent) GiveExtents(decided);
    for (const Reservation& r : decided) {
      if (advisor_ == nullptr) break;
      if (r.incoming.bytes == 0) continue;
      const size_t unit = backend_->traits().alignment;
      advisor_->Put(r.key, (r.size.bytes + unit - 1) / unit * unit, r.incoming, r.options);
    }
    if (!decided.empty() && !decided.back().GoesOn()) return;
    if (last == Locked::kStepByStep) {
      ReserveInSteps(&reservations[end]);
      if (reservations[end].outcome != Reservation::Outcome::kOpen) return;
    }
    begin = end;
  }
}

void Cache::GiveExtents(absl::Span<Reservation> reservations) {
  bool any = false;
  for (Reservation& r : reservations) {
    if (r.outcome != Reservation::Outcome::kReserved) continue;
    if (r.lease.extent_.size > 0) {
      if (r.moved) backend_->SetOwner(r.lease.extent_, r.lease.slot_);
      continue;
    }
    AllocateExtent(&r);
    // The lease's end takes the block back, and those behind it, its children.
    if (r.outcome != Reservation::Outcome::kReserved) break;
    any = true;
  }
  if (!any) return;
  MutexLock lock(mu_);
  for (const Reservation& r : reservations) {
    if (r.lease.holds() && r.lease.extent_.size > 0) {
      table_->SetExtent(r.lease.slot_, r.lease.extent_);
    }
  }
}

// All that takes memory for each slot is made without the lock, and what is left over freed so.
absl::Status Cache::UsePriority(uint16_t priority) {
  {
    MutexLock lock(mu_);
    absl::Status status = table_->CheckPriority(priority);
    if (!status.ok() || table_->HasPriority(priority)) return status;
  }
  try {
    std::unique_ptr<EvictionPolicy> policy = policy_->CreateEmpty();
    policy->SetLimits(slots_, backend_->traits().capacity_bytes);  // those of now come later
    auto levels = std::make_unique<internal::PriorityLevels>(*policy_, slots_);
    MutexLock lock(mu_);
    return table_->AddPriority(priority, &policy, &levels);
  } catch (const std::bad_alloc&) {
    return internal::Error(absl::StatusCode::kResourceExhausted,
                           "options.priority: there is no memory for the bookkeeping of ",
                           priority);
  }
}

Cache::Locked Cache::ReserveLocked(Reservation* reservation, Removed* removed) {
  using Outcome = Reservation::Outcome;
  Reservation& r = *reservation;
  const PutOptions& options = r.options;
  const auto decide = [this, &r](Outcome outcome) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    r.outcome = outcome;
    if (r.credit > 0) {
      table_->budget().GiveBack(std::exchange(r.credit, 0));
      changed_.NotifyAll();
    }
    return Locked::kDecided;
  };
  if (!failed_.ok()) return decide(Outcome::kFailed);
  if (!table_->Knows(options.ns)) return decide(Outcome::kUnknownNamespace);
  const size_t capacity = table_->budget().capacity();
  if (r.size.bytes > capacity || table_->Charge(r.size.bytes) > capacity) {
    ++table_->counters(options.ns).rejected_too_large;
    return decide(Outcome::kTooLarge);
  }
  const Nanos now = Now();
  table_->EndPriorities(now);
  const Nanos ttl = options.ttl.has_value() ? internal::ToNanos(*options.ttl) : default_ttl_;
  const bool replacement = r.mode == ReserveMode::kReplacement;
  const Slot found = replacement ? kNoSlot : table_->FindOrRemove(r.key, now, removed);
  if (found != kNoSlot) {
    const Block& b = table_->block(found);
    if (b.state == Block::State::kComplete) {
      table_->Touch({found}, {.first_depth = b.depth, .now = now});
      return decide(Outcome::kExists);
    }
    if (b.state == Block::State::kWriting) return decide(Outcome::kBeingWritten);
    if (r.mode == ReserveMode::kNew) return decide(Outcome::kPartial);
    if (b.bytes != r.size.bytes || b.parts != r.size.parts) {
      r.found_size = {b.bytes, b.parts};
      return decide(Outcome::kOtherSize);
    }
    table_->Resume(found, ttl, now);
    r.lease = WriteLeaseOn(found);
    return decide(Outcome::kReserved);
  }
  if (r.credit == 0 && !table_->RemoveExpiredFor(r.size.bytes, now, removed)) {
    return Locked::kRetry;
  }
  Slot parent = kNoSlot;
  if (r.parent_key != nullptr) {
    parent = r.parent != kNoSlot ? r.parent : table_->FindOrRemove(*r.parent_key, now, removed);
    if (parent == kNoSlot) return decide(Outcome::kNoParent);
    if (table_->block(parent).ns != internal::Namespaces::NumberOf(options.ns)) {
      return decide(Outcome::kParentElsewhere);
    }
  }
  r.incoming = {.key_hash = r.key.Hash64(),
                .bytes = r.size.bytes,
                .parent = parent,
                .depth = parent == kNoSlot ? 0 : table_->block(parent).depth + 1,
                .chain_blocks = options.chain_blocks,
                .priority = options.priority,
                .keep_priority_for = internal::ToNanos(options.keep_priority_for),
                .recompute_cost = internal::SecondsOf(r.recompute_cost),
                .deadline = internal::Later(now, ttl),
                .now = now};
  switch (table_->MakeRoom(r.size.bytes, parent, r.incoming, r.credit, removed)) {
    case BlockTable::Room::kMade:
      break;
    case BlockTable::Room::kStepByStep:
    case BlockTable::Room::kNoMemory:
      return Locked::kStepByStep;
    case BlockTable::Room::kNothingToEvict:
      if (!removed->empty()) return Locked::kRetry;
      if (RoomComes()) return Locked::kWait;
      ++table_->counters(options.ns).rejected_pinned;
      return decide(table_->budget().Fits(table_->Charge(r.size.bytes), *removed, 0)
                        ? Outcome::kNoSlot
                        : Outcome::kNoRoom);
    case BlockTable::Room::kRefusedByPolicy:
      CountRefusalByPolicy(r);
      return decide(Outcome::kRefusedByPolicy);
  }
  r.credit -= std::min(r.credit, table_->Charge(r.size.bytes));  // the rest is given back
  const Slot slot = table_->Insert(r.key, r.size, options.ns, r.incoming, ttl, replacement,
                                   std::move(r.memory), removed);
  r.moved = removed->moved;
  r.lease = WriteLeaseOn(slot);
  return decide(Outcome::kReserved);
}

void Cache::CountRefusalByPolicy(const Reservation& reservation) {
  const EntryInfo& incoming = reservation.incoming;
  ++table_->counters(reservation.options.ns).rejected_by_policy;
  table_->policy().Bypassed(
      {incoming.key_hash},
      {.first_depth = incoming.depth, .chain_blocks = incoming.chain_blocks, .now = incoming.now});
}

bool Cache::IsFreeing() const {
  return table_->budget().being_freed() > 0 ||
         (scrubbed_ != kNoSlot && table_->EvictableButForOnePin(scrubbed_));
}

BlockTable::Room Cache::EvictInSteps(const EntryInfo& incoming, const BlockKey* parent,
                                     absl::FunctionRef<size_t(const internal::Budget&)> wanted,
                                     std::optional<size_t> limit, size_t* credit) {
  std::vector<Slot> victims;
  BlockTable::Room room = BlockTable::Room::kStepByStep;
  size_t chosen = 0;
  while (room == BlockTable::Room::kStepByStep) {
    try {
      BlockTable::ReserveVictims(&victims);
      mu_.GiveWay();
    } catch (const std::bad_alloc&) {
      room = BlockTable::Room::kNoMemory;
      break;
    }
    MutexLock lock(mu_);
    const size_t bytes = wanted(table_->budget());
    room = bytes > table_->loose_bytes()
               ? BlockTable::Room::kNothingToEvict
               : table_->ChooseMore(incoming,
                                    parent != nullptr ? table_->Find(*parent, Now()) : kNoSlot,
                                    bytes, &victims, &chosen);
    if (room == BlockTable::Room::kMade && limit.has_value()) table_->budget().Limit(*limit);
  }
  SettleChosen(victims, room == BlockTable::Room::kMade, credit);
  return room;
}

void Cache::SettleChosen(absl::Span<const Slot> victims, bool evict, size_t* credit) {
  while (!victims.empty()) {
    mu_.GiveWay();
    Removed removed;
    {
      MutexLock lock(mu_);
      if (evict) {
        const size_t bytes = table_->EvictChosen(&victims, &removed);
        if (credit != nullptr) {
          removed.reused = bytes;
          *credit += bytes;
        }
      } else {
        table_->TakeBackChosen(&victims);
      }
    }
    Free(removed);
  }
}

void Cache::ReserveInSteps(Reservation* reservation) {
  Reservation& r = *reservation;
  MutexLock turn(steps_mu_);
  const auto wanted = [&r](const internal::Budget& budget) {
    const size_t charge = budget.Charge(r.size.bytes) + budget.charged();
    return charge - std::min(charge, r.credit + budget.limit());
  };
  SetStepping(true);
  const BlockTable::Room room =
      EvictInSteps(r.incoming, r.parent_key, wanted, std::nullopt, &r.credit);
  SetStepping(false);
  if (room == BlockTable::Room::kMade) return;
  MutexLock lock(mu_);
  if (room == BlockTable::Room::kNothingToEvict && RoomComes()) {
    changed_.Wait(mu_);
    return;
  }
  if (room == BlockTable::Room::kNoMemory) {
    r.outcome = Reservation::Outcome::kNoMemory;
  } else if (room == BlockTable::Room::kRefusedByPolicy) {
    CountRefusalByPolicy(r);
    r.outcome = Reservation::Outcome::kRefusedByPolicy;
  } else {
    ++table_->counters(r.options.ns).rejected_pinned;
    r.outcome = Reservation::Outcome::kNoRoom;
  }
  table_->budget().GiveBack(std::exchange(r.credit, 0));
  changed_.NotifyAll();
}

void Cache::SetStepping(bool stepping) {
  MutexLock lock(mu_);
  stepping_ = stepping;
  changed_.NotifyAll();
}

WriteLease Cache::WriteLeaseOn(Slot slot) {
  Block& b = table_->block(slot);
  WriteLease lease;
  lease.cache_ = this;
  lease.slot_ = slot;
  lease.extent_ = table_->ExtentOf(b);
  lease.bytes_ = b.bytes;
  lease.parts_ = b.parts;
  lease.checksums_ = table_->ChecksumsOf(b);
  lease.some_committed_ = table_->WriteOf(b).committed_parts > 0;
  return lease;
}

void Cache::AllocateExtent(Reservation* reservation) {
  Reservation& r = *reservation;
  absl::StatusOr<Extent> extent = backend_->Allocate(r.size.bytes, r.lease.slot_);
  // The budget has room for it, so this means that free memory is in pieces.
  if (ABSL_PREDICT_FALSE(absl::IsResourceExhausted(extent.status()))) extent = AllocateInGap(&r);
  if (extent.ok()) {
    r.lease.extent_ = *extent;
  } else if (r.outcome == Reservation::Outcome::kReserved) {
    r.outcome = Reservation::Outcome::kNoExtent;
    r.status = absl::IsResourceExhausted(extent.status())
                   ? extent.status()
                   : internal::Error(absl::StatusCode::kInternal, extent.status().message());
  }
}

absl::StatusOr<Extent> Cache::AllocateInGap(Reservation* reservation) {
  using Result = internal::GapMaker::Result;
  Reservation& r = *reservation;
  MutexLock turn(steps_mu_);
  SetStepping(true);
  internal::GapMaker gaps(*this, r.size.bytes, r.incoming);
  absl::StatusOr<Extent> extent;
  Result result = Result::kMade;
  size_t credit = 0;
  for (int made = 0;; ++made) {
    extent = backend_->Allocate(r.size.bytes, r.lease.slot_);
    if (!absl::IsResourceExhausted(extent.status()) || made == kMostGaps) break;
    result = gaps.Make(&credit);
    if (result != Result::kMade) break;
  }
  MutexLock lock(mu_);
  stepping_ = false;
  table_->budget().GiveBack(credit);
  changed_.NotifyAll();
  if (!absl::IsResourceExhausted(extent.status())) return extent;
  if (result == Result::kRefusedByPolicy) {
    CountRefusalByPolicy(r);
    r.outcome = Reservation::Outcome::kRefusedByPolicy;
  } else if (result == Result::kNoMemory) {
    r.outcome = Reservation::Outcome::kNoMemory;
  } else {
    ++table_->counters(r.options.ns).rejected_fragmented;
    return internal::Error(absl::StatusCode::kResourceExhausted, "no ", r.size.bytes,
                           " bytes in one piece: what would have to go is leased, ",
                           "or has descendants that are; ", extent.status().message());
  }
  return extent;
}

}  // namespace kvcache
