#include "kvcache/core/cache/cache.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/container/inlined_vector.h"
#include "absl/memory/memory.h"
#include "kvcache/core/advice/advisor.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/cache/leased_copies.h"
#include "kvcache/core/cache/scrubber.h"
#include "kvcache/core/table/block_table.h"

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

}  // namespace

absl::StatusOr<std::unique_ptr<Cache>> Cache::Create(const CacheOptions& options,
                                                     std::unique_ptr<StorageBackend> backend,
                                                     std::unique_ptr<EvictionPolicy> policy) {
  try {
    return CreateOrThrow(options, std::move(backend), std::move(policy));
  } catch (const std::bad_alloc&) {
    return internal::Error(absl::StatusCode::kResourceExhausted,
                           "there is no memory for the bookkeeping of max_blocks");
  } catch (const std::runtime_error& error) {
    return internal::Error(absl::StatusCode::kResourceExhausted,
                           "scrub_bytes_per_second, advice: no thread for it: ", error.what());
  }
}

absl::StatusOr<std::unique_ptr<Cache>> Cache::CreateOrThrow(
    const CacheOptions& options, std::unique_ptr<StorageBackend> backend,
    std::unique_ptr<EvictionPolicy> policy) {
  if (backend == nullptr) return absl::InvalidArgumentError("backend: null");
  if (policy == nullptr) return absl::InvalidArgumentError("policy: null");
  if (options.clock == nullptr) return absl::InvalidArgumentError("clock: null");
  const BackendTraits& traits = backend->traits();
  const size_t capacity = options.capacity_bytes.value_or(traits.capacity_bytes);
  if (capacity < traits.alignment || capacity > traits.capacity_bytes) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "capacity_bytes: ", capacity,
                           ", expected from ", traits.alignment, " to ", traits.capacity_bytes,
                           ", the alignment and the capacity of the backend ", traits.name);
  }
  const size_t max_blocks = options.max_blocks.value_or(std::clamp(
      traits.capacity_bytes / kBytesPerDefaultBlock, kFewestDefaultBlocks, kMostDefaultBlocks));
  if (max_blocks == 0 || max_blocks >= kNoSlot) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "max_blocks: ", max_blocks,
                           ", expected from 1 to ", kNoSlot - 1);
  }
  if (options.default_ttl <= absl::ZeroDuration()) {
    return internal::Error(absl::StatusCode::kInvalidArgument,
                           "default_ttl: ", absl::FormatDuration(options.default_ttl),
                           ", expected more than 0");
  }
  if (options.scrub_bytes_per_second > 0 && !options.checksums) {
    return internal::Error(absl::StatusCode::kInvalidArgument,
                           "scrub_bytes_per_second: ", options.scrub_bytes_per_second,
                           ", but checksums: false, so there is nothing to compare with");
  }
  if (absl::Status s = internal::Advisor::Check(options.advice, *policy); !s.ok()) return s;
  // More blocks than units of the backend can never be there.
  const size_t slots = std::min(max_blocks, traits.capacity_bytes / traits.alignment);
  const size_t whole_units = capacity / traits.alignment * traits.alignment;
  auto cache = absl::WrapUnique(
      new Cache(std::move(backend), std::move(policy), options, whole_units, slots));
  if (!options.advice.capacities.empty()) {
    cache->advisor_ = std::make_unique<internal::Advisor>(options.advice, *cache->policy_, slots,
                                                          whole_units, cache->default_ttl_);
  }
  cache->scrubber_->Start(options.scrub_bytes_per_second);
  cache->backend_->OnFailure(
      [cache = cache.get()](const absl::Status& status) { cache->Fail(status); });
  return cache;
}

Cache::Cache(std::unique_ptr<StorageBackend> backend, std::unique_ptr<EvictionPolicy> policy,
             const CacheOptions& options, size_t capacity_bytes, size_t max_blocks)
    : backend_(std::move(backend)),
      policy_(std::move(policy)),
      slots_(max_blocks),
      default_ttl_(internal::ToNanos(options.default_ttl)),
      keeps_checksums_(options.checksums && backend_->traits().stores_bytes),
      table_(std::make_unique<internal::BlockTable>(capacity_bytes, backend_->traits().alignment,
                                                    max_blocks, keeps_checksums_, options.events,
                                                    *policy_)),
      clock_(options.clock),
      scrubber_(std::make_unique<internal::Scrubber>(*this)) {
  MutexLock lock(mu_);
  internal::BlockTable::Supplies supplies = table_->Lacking({.blocks = 1, .namespaces = 1});
  supplies.Make();
  table_->Add(std::move(supplies));
  table_->namespaces().Add(BlockKey(), &*models_.emplace().first);
}

// --- The end

namespace {

// Runs `end` on a thread of its own where this one may be a backend's, which it must not wait for.
// If there is none, what would have been destroyed stays.
template <typename End>
void RunWhereWaitingIsAllowed(const End& end) {
  if (!internal::InTransferCallback()) return end();
  try {
    std::thread(end).detach();
  } catch (const std::exception&) {
  }
}

}  // namespace

// Not inlined: where g++ 12 sees through one of them, it takes its use for a mismatch.
ABSL_ATTRIBUTE_NOINLINE void* Cache::operator new(size_t bytes) { return ::operator new(bytes); }
ABSL_ATTRIBUTE_NOINLINE void Cache::operator delete(void* memory) { ::operator delete(memory); }

void Cache::operator delete(Cache* cache, std::destroying_delete_t) {
  if (cache == nullptr) return;
  if (cache->InForkedChild()) {
    // Leaked, and in reach, so that no checker of leaks complains.
    static std::atomic<Cache*> destroyed = nullptr;
    cache->next_in_child_ = destroyed.exchange(cache);
    return;
  }
  {
    MutexLock lock(cache->mu_);
    cache->clock_ = &Clock::Real();
  }
  RunWhereWaitingIsAllowed([cache] { cache->Close(); });
}

void Cache::Close() {
  backend_->OnFailure(nullptr);
  scrubber_->Stop();
  advisor_.reset();
  internal::LeasedCopies(*this).Wait();
  {
    MutexLock lock(mu_);
    failed_ =
        internal::Error(absl::StatusCode::kFailedPrecondition, "the cache has been destroyed");
  }
  Clear();
  bool abandoned;
  {
    MutexLock lock(mu_);
    closed_ = true;
    abandoned = Abandoned();
  }
  if (abandoned) Destroy(this);
}

bool Cache::Abandoned() const {
  return closed_ && in_flight_ == 0 && users_ == 0 && table_->pins() == 0;
}

bool Cache::EndsUse(const Removed& removed) {
  if (removed.empty()) return Abandoned();
  ++in_flight_;
  return false;
}

void Cache::EndUse(Removed& removed, bool last) {
  if (!removed.empty()) {
    FreeAll(removed);
    MutexLock lock(mu_);
    --in_flight_;
    changed_.NotifyAll();
    last = Abandoned();
  }
  if (last) Destroy(this);
}

void Cache::Destroy(Cache* cache) {
  RunWhereWaitingIsAllowed([cache] {
    cache->~Cache();
    operator delete(static_cast<void*>(cache));
  });
}

Cache::~Cache() {
  MutexLock lock(mu_);
  KVCACHE_CHECK(table_->pins() == 0, table_->pins(), " leases of a cache that is destroyed");
}

// Writes are refused first: what one reserved while blocks go would be found later.
void Cache::Fail(const absl::Status& status) {
  {
    MutexLock lock(mu_);
    failed_ = internal::Error(absl::StatusCode::kInternal, status.message());
  }
  Clear();
}

bool Cache::LockSupplied(size_t blocks, size_t pins, size_t namespaces) {
  const BlockTable::Needs needs = {blocks, pins, namespaces};
  mu_.Lock();
  while (ABSL_PREDICT_FALSE(table_->Lacks(needs))) {
    BlockTable::Supplies supplies = table_->Lacking(needs);
    mu_.Unlock();
    try {
      supplies.Make();
    } catch (const std::bad_alloc&) {
      return false;
    }
    mu_.Lock();
    table_->Add(std::move(supplies));
  }
  return true;
}

absl::StatusOr<NamespaceId> Cache::Register(const Namespace& ns) {
  return internal::WithoutThrowing([&]() -> absl::StatusOr<NamespaceId> {
    absl::StatusOr<BlockKey> root = RootKey(ns);
    if (!root.ok()) return root.status();
    MutexLock names(names_mu_);
    ForgetDeparted();
    const std::string* model = &*models_.insert(ns.model).first;
    const auto [entry, is_new] = ids_.try_emplace(*root, NamespaceId::kDefault);
    NamespaceId& id = entry->second;
    absl::Status status;
    if (LockSupplied(0, 0, 1)) {
      MutexLock lock(mu_, AdoptLock());
      internal::Namespaces& namespaces = table_->namespaces();
      if (!is_new && namespaces.Knows(id)) {
        namespaces.Hold(id);
        return id;
      }
      if (namespaces.records().spare() > 0) return id = namespaces.Add(*root, model);
      status =
          internal::Error(absl::StatusCode::kResourceExhausted, "there are too many namespaces");
    } else {
      status = internal::NoMemory();
    }
    if (is_new) ids_.erase(entry);
    return status;
  });
}

void Cache::Unregister(NamespaceId ns) {
  MutexLock lock(mu_);
  if (ns != NamespaceId::kDefault && table_->Knows(ns)) table_->namespaces().Unhold(ns);
}

void Cache::ForgetDeparted() {
  constexpr size_t kSome = 64;
  BlockKey roots[kSome];
  for (size_t taken = kSome; taken == kSome;) {
    MutexLock lock(mu_);
    taken = table_->namespaces().TakeDeparted(roots);
    for (const BlockKey& root : absl::MakeConstSpan(roots, taken)) {
      const auto found = ids_.find(root);
      if (found != ids_.end() && !table_->Knows(found->second)) ids_.erase(found);
    }
  }
}

size_t Cache::capacity_bytes() const {
  MutexLock lock(mu_);
  return table_->budget().capacity();
}

// --- Reading

Nanos Cache::Now() const { return clock_->Now(); }

absl::Status Cache::PinFound(NamespaceId ns, Slot slot, std::optional<uint32_t> part, Nanos now,
                             ReadLease* lease) {
  if (part.has_value() && slot != kNoSlot && *part >= table_->block(slot).parts) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "part: ", *part, " of a block with ",
                           table_->block(slot).parts, " parts");
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
  Pin(slot, b, part, now, lease);
  return absl::OkStatus();
}

void Cache::Pin(Slot slot, Block& b, std::optional<uint32_t> part, Nanos now, ReadLease* lease) {
  table_->Pin(&b, now);
  lease->cache_ = this;
  lease->slot_ = slot;
  lease->extent_ = table_->ExtentOf(b);
  lease->offset_ = 0;
  lease->bytes_ = b.bytes;
  lease->parts_ = b.parts;
  lease->first_part_ = 0;
  lease->checksums_ = table_->ChecksumsOf(b);
  if (part.has_value()) {
    lease->bytes_ = b.part_bytes();
    lease->offset_ = *part * lease->bytes_;
    lease->parts_ = 1;
    lease->first_part_ = *part;
    if (lease->checksums_ != nullptr) lease->checksums_ += *part;
  }
}

absl::StatusOr<ReadLease> Cache::GetOne(NamespaceId ns, const BlockKey& key,
                                        std::optional<uint32_t> part) {
  Removed removed;
  ReadLease lease;
  absl::Status status;
  Nanos now;
  if (!LockSupplied(0, 1, 0)) return internal::NoMemory();
  {
    MutexLock lock(mu_, AdoptLock());
    if (!table_->Knows(ns)) return UnknownNamespace(ns, "ns");
    now = Now();
    status = PinFound(ns, table_->FindOrRemove(key, now, &removed), part, now, &lease);
    if (status.ok()) TouchSlots({&lease.slot_, 1}, 0, now, false);
  }
  Free(removed);
  if (advisor_ != nullptr && !part.has_value()) {
    advisor_->LookOne(key, lease.extent_.size, now);
  }
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
  Nanos now = 0;
  for (size_t i = 0; i < keys.size();) {
    if (i > 0) mu_.GiveWay();
    const size_t end = std::min(i + kBlocksPerLock, keys.size());
    Removed removed;
    if (!LockSupplied(0, end - i, 0)) return hits;
    {
      MutexLock lock(mu_, AdoptLock());
      if (!table_->Knows(ns)) return 0;
      now = Now();
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
  if (advisor_ != nullptr) {
    advisor_->Look(keys, internal::Reference::Kind::kLookup, now,
                   [leases](size_t i) { return leases[i].holds() ? leases[i].extent_.size : 0; });
  }
  return hits;
}

void Cache::Release(Slot slot) {
  if (ABSL_PREDICT_FALSE(InForkedChild())) return;
  Removed removed;
  bool last;
  {
    MutexLock lock(mu_);
    table_->Unpin(slot, &removed);
    last = EndsUse(removed);
  }
  if (ABSL_PREDICT_FALSE(last || !removed.empty())) EndUse(removed, last);
}

absl::Status Cache::Release(Slot slot,
                            absl::FunctionRef<absl::Status(BlockTable&, Nanos, Removed*)> end) {
  if (InForkedChild()) {
    return internal::Error(absl::StatusCode::kAborted, "the cache is that of another process");
  }
  Removed removed;
  absl::Status status;
  bool last;
  {
    MutexLock lock(mu_);
    status = end(*table_, Now(), &removed);
    table_->Unpin(slot, &removed);
    last = EndsUse(removed);
  }
  EndUse(removed, last);
  return status;
}

void Cache::Release(absl::Span<ReadLease> leases) {
  if (InForkedChild()) {
    for (ReadLease& lease : leases) lease.Release();
    return;
  }
  for (size_t i = 0; i < leases.size();) {
    if (i > 0) mu_.GiveWay();
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

void Cache::CommitMany(absl::Span<WriteLease> leases, absl::Span<absl::Status> results) {
  KVCACHE_CHECK(leases.size() == results.size(), leases.size(), " leases, ", results.size(),
                " results");
  for (size_t i = 0; i < leases.size(); ++i) {
    if (leases[i].holds()) {
      KVCACHE_CHECK(leases[i].cache_ == this, "leases[", i, "] is of another cache");
    } else {
      results[i] = WriteLease::Ended();
    }
  }
  const auto next = [&leases](size_t i) {
    while (i < leases.size() && !leases[i].holds()) ++i;
    return i;
  };
  // Whatever is left of them keeps the cache.
  for (size_t i = next(0); i < leases.size(); i = next(i)) {
    if (i > 0) mu_.GiveWay();
    const size_t end = std::min(i + kBlocksPerLock, leases.size());
    for (size_t k = i; k < end; ++k) {
      if (leases[k].holds()) leases[k].SumUnclaimed();
    }
    Removed removed;
    bool last;
    {
      MutexLock lock(mu_);
      const Nanos now = Now();
      for (; i < end; ++i) {
        WriteLease& lease = leases[i];
        if (!lease.holds()) continue;
        lease.cache_ = nullptr;
        results[i] = table_->CommitRest(lease.slot_, now, &removed);
        table_->Unpin(lease.slot_, &removed);
      }
      last = EndsUse(removed);
    }
    EndUse(removed, last);
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

void Cache::Free(const Removed& removed) {
  if (!removed.empty()) FreeAll(removed);
}

void Cache::FreeAll(const Removed& removed) {
  bool more = FreeSome(removed);
  while (more) {
    mu_.GiveWay();
    Removed below;
    {
      MutexLock lock(mu_);
      table_->RemoveRetired(kBlocksPerLock, &below);
    }
    more = FreeSome(below);
  }
}

bool Cache::FreeSome(const Removed& removed) {
  for (const Extent& extent : removed.extents()) backend_->Free(extent);
  MutexLock lock(mu_);
  table_->Freed(removed);
  changed_.NotifyAll();
  return removed.more;
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
  const uint32_t number = internal::Namespaces::NumberOf(ns);
  FinishErase(number, number + 1);
  return erased;
}

void Cache::FinishErase(uint32_t first, uint32_t end) {
  while (first < end) {
    mu_.GiveWay();
    Removed removed;
    {
      MutexLock lock(mu_);
      for (size_t steps = 0; first < end && steps < kBlocksPerLock && !removed.full(); ++steps) {
        if (!table_->ContinueErase(first, 1, &removed)) ++first;
      }
    }
    Free(removed);
  }
}

void Cache::Clear() {
  uint32_t namespaces;
  {
    MutexLock lock(mu_);
    table_->StartClear();
    namespaces = table_->namespaces().records().used();
  }
  FinishErase(0, namespaces);
}

absl::StatusOr<size_t> Cache::Extend(const Chain& chain, absl::Duration ttl) {
  if (ttl <= absl::ZeroDuration()) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "ttl: ", absl::ToDoubleSeconds(ttl),
                           " s, expected more than 0");
  }
  return ForLeading(chain,
                    [length = internal::ToNanos(ttl)](BlockTable& table, Slot slot, Nanos now) {
                      table.Extend(slot, internal::Later(now, length));
                    });
}

absl::Status Cache::Resize(size_t capacity_bytes) {
  const BackendTraits& traits = backend_->traits();
  if (capacity_bytes < traits.alignment || capacity_bytes > traits.capacity_bytes) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "capacity_bytes: ", capacity_bytes,
                           ", expected from ", traits.alignment, " to ", traits.capacity_bytes,
                           ", the backend's");
  }
  absl::Status status = internal::WithoutThrowing([&] { return ResizeInSteps(capacity_bytes); });
  if (status.ok() && advisor_ != nullptr) {
    const CacheCounters counters = CollectStats(nullptr).counters;
    advisor_->SetCapacity(capacity_bytes, {counters.block_lookups, counters.block_hits});
  }
  return status;
}

absl::Status Cache::ResizeInSteps(size_t capacity_bytes) {
  MutexLock turn(steps_mu_);
  const auto wanted = [capacity_bytes](const internal::Budget& budget) {
    return budget.charged() - std::min(budget.charged(), capacity_bytes);
  };
  for (;;) {
    mu_.GiveWay();
    Removed removed;
    {
      MutexLock lock(mu_);
      if (wanted(table_->budget()) == 0) {
        table_->SetCapacity(capacity_bytes);
        return absl::OkStatus();
      }
      table_->EndPriorities(Now());
      if (table_->HasExpired(Now())) table_->RemoveExpired(kBlocksPerLock, Now(), &removed);
    }
    if (!removed.empty()) {
      Free(removed);
      continue;
    }
    const BlockTable::Room room = EvictInSteps({}, nullptr, wanted, capacity_bytes, nullptr);
    if (room == BlockTable::Room::kMade) continue;
    MutexLock lock(mu_);
    if (room == BlockTable::Room::kNoMemory || !RoomComes()) {
      table_->budget().Limit(table_->budget().capacity());
      if (room == BlockTable::Room::kNoMemory) return internal::NoMemory();
      return internal::Error(absl::StatusCode::kResourceExhausted,
                             "capacity_bytes: ", capacity_bytes,
                             " is not enough for what is leased");
    }
    changed_.Wait(mu_);
  }
}

size_t Cache::PeekVictims(absl::Span<ReadLease> leases) {
  Slot slots[kBlocksPerLock];
  const size_t wanted = std::min(leases.size(), kBlocksPerLock);
  if (!LockSupplied(0, wanted, 0)) return 0;
  MutexLock lock(mu_, AdoptLock());
  const Nanos now = Now();
  table_->EndPriorities(now);
  const size_t found = table_->PeekVictims(absl::MakeSpan(slots, wanted));
  for (size_t i = 0; i < found; ++i)
    Pin(slots[i], table_->block(slots[i]), std::nullopt, now, &leases[i]);
  return found;
}

void Cache::MarkCopied(const ReadLease& block) {
  KVCACHE_CHECK(block.cache_ == this, "the lease is not of this cache");
  MutexLock lock(mu_);
  table_->block(block.slot_).copied = true;
}

size_t Cache::Events(uint64_t* sequence, absl::Span<BlockEvent> events, uint64_t* lost) const {
  size_t copied = 0;
  for (size_t some = kBlocksPerLock; some == kBlocksPerLock;) {
    MutexLock lock(mu_);
    some = table_->events().CopyFrom(sequence, events.subspan(copied, kBlocksPerLock), lost);
    copied += some;
  }
  return copied;
}

void Cache::Drain() {
  bool more = true;
  while (more) {
    mu_.GiveWay();
    Removed removed;
    {
      MutexLock lock(mu_);
      more = table_->RemoveExpired(kBlocksPerLock, Now(), &removed);
    }
    Free(removed);
  }
  internal::LeasedCopies(*this).Wait();
}

size_t Cache::Scrub(size_t bytes) { return scrubber_->Scrub(bytes); }

CacheStats Cache::CollectStats(std::vector<const std::string*>* models) const {
  CacheStats stats;
  CacheUsage usage;
  uint32_t number = 0;
  uint32_t namespaces = 0;
  do {
    if (models != nullptr) {  // nothing is allocated under the lock
      models->reserve(models->size() + kBlocksPerLock);
      stats.namespaces.reserve(models->capacity());
    }
    if (number > 0) mu_.GiveWay();
    MutexLock lock(mu_);
    if (number == 0) stats = table_->Stats(Now(), std::move(stats.namespaces));
    namespaces = table_->namespaces().records().used();
    for (size_t i = 0; i < kBlocksPerLock && number < namespaces; ++i, ++number) {
      const internal::NamespaceRecord& record = table_->namespaces()[number];
      if (record.model == nullptr) continue;
      const CacheCounters counters = internal::Namespaces::CountersOf(record);
      const CacheUsage used = table_->namespaces().UsageOf(record);
      stats.counters += counters;
      usage += used;
      if (models == nullptr) continue;
      models->push_back(record.model);
      NamespaceStats& ns = stats.namespaces.emplace_back();
      ns.id = static_cast<uint64_t>(table_->namespaces().IdOf(number));
      ns.counters = counters;
      ns.usage = used;
    }
  } while (number < namespaces);
  usage.bytes_in_use = stats.usage.bytes_in_use;
  stats.usage = usage;
  return stats;
}

CacheStats Cache::stats() const {
  try {
    std::vector<const std::string*> models;
    CacheStats stats = CollectStats(&models);
    for (size_t i = 0; i < models.size(); ++i) stats.namespaces[i].model = *models[i];
    if (advisor_ != nullptr) {
      stats.advice = advisor_->Advise({stats.counters.block_lookups, stats.counters.block_hits});
    }
    stats.scrubbed_bytes = scrubber_->scrubbed_bytes();
    stats.backend = backend_->traits().name;
    stats.policy = policy_->name();
    stats.backend_stats = backend_->stats();
    return stats;
  } catch (const std::bad_alloc&) {
    CacheStats stats = CollectStats(nullptr);
    stats.scrubbed_bytes = scrubber_->scrubbed_bytes();
    return stats;
  }
}

}  // namespace kvcache
