// Cache: blocks of K/V by key, within a byte budget, over one backend and one eviction policy.
#ifndef KVCACHE_CORE_CACHE_CACHE_H_
#define KVCACHE_CORE_CACHE_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/base/fork.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/cache/lease.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

namespace internal {
class Advisor;
struct Block;
class BlockTable;
class Budget;
class GapMaker;
class LeasedCopies;
class Removed;
class Scrubber;
enum class Room : uint8_t;
}  // namespace internal

// A store of content-addressed blocks: a key names one content for ever, so a block is written
// once, read by many, and never overwritten.
//
//   auto backend = CreateCpuRamBackend({.capacity_bytes = size_t{4} << 30});
//   auto cache = Cache::Create({}, *std::move(backend), CreateLruPolicy());
//   absl::StatusOr<WriteLease> block = (*cache)->Reserve(key, {.bytes = n, .parts = layers}, {});
//   std::memcpy(block->data(), kv, n);          // in place; nobody sees it yet
//   absl::Status committed = block->Commit();
//   absl::StatusOr<ReadLease> hit = (*cache)->Get(NamespaceId::kDefault, key);
//   attend(hit->data(), hit->size());           // no copy; pinned until the lease goes
//
// Thread-safe: any thread may call anything at any time. One short lock guards the index and the
// policy; memory is allocated, freed and copied outside of it.
//
// No call throws. One that finds no memory on the host fails with kResourceExhausted, and an op of
// a transfer ends with it; where there is no status, it has found or done nothing. The store is
// then as it was before, and the message may be missing, as that of any error.
//
// The states of a block:
//
//                   Reserve()             last part committed
//      no block ------------------> writing ----------------> complete
//                                    |   ^
//                          Suspend() |   | Reserve() resumes it
//                                    v   |
//                                   partial
//
// From every state a block may be removed: evicted (not while it is being written), expired,
// erased, or after its parent; and from `writing` when its lease is dropped, or suspended without a
// committed part. Without leases there is no block then. With leases it is detached: no key leads
// to it, a new block may have its key, and its bytes count until its leases have gone.
//
// What always holds:
//  - Only complete blocks are returned by Get and Match, only committed parts by GetPart, and their
//    bytes never change. Match stops at the first block of a chain that is not complete.
//  - A leased block keeps its bytes; Erase, eviction and Clear take effect for it when the last
//    lease goes. A copy under way is a lease.
//  - Bytes in use, detached ones included, never exceed the capacity.
//  - A block with children or leases is never evicted. Otherwise the victim is the first in the
//    policy's order. A call that is refused evicts nothing.
//  - Where free memory is in pieces, blocks that lie side by side are evicted besides, and what
//    descends from them: less than the request and one of them. A request is refused for that only
//    if each row of neighbours that would do has something in it that cannot go; what was evicted
//    until then is no more than the request. Other threads that take such room, or hit such blocks,
//    in the same moment can cost another row, and after 16 of them the request.
//  - When the backend fails for good, all blocks are misses, and writes fail with what it says.
//  - deadline = min(time of commit + ttl, the parent's deadline). What has expired is a miss at
//    once.
//
// Costs. A Get is O(1), a few hundred nanoseconds, one hold of the lock and no allocation; Match,
// GetMany, CommitMany and Release of many wait for the processor's memory together, 16 keys at a
// time, and hold the lock for 256 blocks at a time. Reserve and Commit are O(1) besides the
// victims, a few holds of the lock each, and a call of the backend unless a victim's memory fits; a
// ttl, and the policies lfu, ttl and gdsf, add O(log blocks). Erase takes what descends from the
// block, 256 blocks in a hold of the lock. Copies run at the speed of memory, without the lock. A
// block costs about 150 bytes of host memory besides its own, and 8 for each part.
//
// After fork() a child may exit, also by exit(), exec, or destroy and release the caches and leases
// of its parent, and nothing else with them. Their end does nothing in a child: it takes no lock,
// since a thread of the parent may have held it, and waits for no thread, since the child has none.
class Cache {
 public:
  // kInvalidArgument, naming the option and the values: null backend or policy; a capacity of less
  // than the backend's alignment or more than its capacity; max_blocks of 0 or more than 2^32 - 2;
  // a ttl that is not positive; scrubbing without checksums; what AdviceOptions does not allow.
  // kResourceExhausted when there is no memory for the bookkeeping of max_blocks, or no thread to
  // scrub or advise.
  static absl::StatusOr<std::unique_ptr<Cache>> Create(const CacheOptions& options,
                                                       std::unique_ptr<StorageBackend> backend,
                                                       std::unique_ptr<EvictionPolicy> policy);

  // Ends the cache; std::unique_ptr<Cache> calls it. Stops its threads, waits for copies under way
  // (not in a callback of a transfer, which may be what they wait for), and clears it. Leases may
  // outlive it: they still read, and verify, and their commits end with kAborted. The last of them,
  // or of the copies that they have started since, destroys what is left: the backend and its
  // memory; where that happens in a callback of a transfer, a thread of its own does it.
  static void operator delete(Cache* cache, std::destroying_delete_t);
  ~Cache();  // by the call above only
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  const BackendTraits& backend_traits() const { return backend_->traits(); }

  size_t capacity_bytes() const;

  // An id for statistics and EraseNamespace(); the same for an equal namespace. Each call is to be
  // answered by an Unregister(); when nobody holds a namespace any more and its last block has
  // gone, its id is unknown and its memory used for others, and what it has counted stays in the
  // sums. Errors: those of Namespace::Validate(); kResourceExhausted when 4 million are registered.
  absl::StatusOr<NamespaceId> Register(const Namespace& ns);
  void Unregister(NamespaceId ns);

  // --- Reading. A miss is kNotFound; a block that is being written is kUnavailable. An unknown
  // namespace id is kInvalidArgument, or a miss where there is no status. Codes tell outcomes, here
  // and below, and messages do not: those that are no errors have none, so that they allocate
  // nothing.

  // What a Get would find. Counts and touches nothing.
  LookupResult Lookup(const BlockKey& key) const;

  // How many leading blocks a Match would find. Counts and touches nothing, pins nothing, allocates
  // nothing: for schedulers, who ask far more often than they load.
  size_t LookupPrefix(const Chain& chain) const;

  // Leases the leading complete blocks, and touches them from the last to the first. Allocates the
  // result and nothing else.
  PrefixMatch Match(const Chain& chain);

  absl::StatusOr<ReadLease> Get(NamespaceId ns, const BlockKey& key);

  // One part, also of a block that is partial or being written; kUnavailable while it is. Errors
  // also: kInvalidArgument unless `part` is one of the block's parts.
  absl::StatusOr<ReadLease> GetPart(NamespaceId ns, const BlockKey& key, uint32_t part);

  // Gets each of `keys` into the lease of the same index, which holds nothing after a miss. Returns
  // the number of hits. Touches from the last to the first. Allocates nothing, once as many blocks
  // have been pinned before.
  // REQUIRES: leases.size() == keys.size(); a lease that held something is released first.
  size_t GetMany(NamespaceId ns, absl::Span<const BlockKey> keys, absl::Span<ReadLease> leases);

  // Releases many leases of this cache at once. Allocates nothing.
  void Release(absl::Span<ReadLease> leases);

  // Copies blocks, or parts, out. The op of each request has its index and its part, and ends with
  // kNotFound for a miss, kUnavailable for what is pending, kInvalidArgument when the destination
  // has another size. The requests may go when the call returns; their destinations must live until
  // the transfer ends.
  Transfer ReadInto(absl::Span<const ReadRequest> requests, Stream stream = {});

  // --- Writing

  // Room for a block, evicting what must go. A partial block is resumed, with the options that it
  // was first reserved with, except for the ttl. Errors:
  //   kAlreadyExists       the block is complete (counts as a touch)
  //   kUnavailable         somebody is writing it
  //   kNotFound            the parent is neither resident nor being written
  //   kResourceExhausted   no room: what would have to go, for room in one piece, is leased, has
  //                        descendants that are, or has a higher priority
  //   kPermissionDenied    the policy rather keeps what is there than take the newcomer
  //   kInternal            the backend has failed for good; the message says why
  //   kInvalidArgument     0 bytes or parts; more than 65,535 parts; bytes not a multiple of parts;
  //                        more bytes than the capacity; a partial block of another size; a ttl
  //                        or keep_priority_for that is not positive; a recompute_cost that is
  //                        negative or above kHighestRecomputeCost; a priority above 100, or a
  //                        ninth one; an unknown namespace id; a block as its own parent, or one of
  //                        another namespace
  absl::StatusOr<WriteLease> Reserve(const BlockKey& key, BlockSize size,
                                     const PutOptions& options = {});

  // Reserves the blocks of a chain, each the child of the one before; the first the child of
  // options.parent. Result i is that of keys[i]; a block that exists or that somebody is writing
  // does not stop it, any other refusal does. Returns the number of results written:
  // chain.keys.size(), or the index of the refusal plus 1. chain.ns counts, not options.ns. `sizes`
  // has one for each key, or a single one for all; options.recompute_cost is that of a block of the
  // first size, and that of others in proportion. Takes the lock at most a few times for 256
  // blocks. REQUIRES: as many results as keys.
  size_t ReserveMany(const Chain& chain, absl::Span<const BlockSize> sizes,
                     const PutOptions& options, absl::Span<absl::StatusOr<WriteLease>> results);

  // Reserve, Write, Commit; waits for the copy. Errors: those of Reserve, kInvalidArgument when the
  // sizes of `source` do not add up to size.bytes, kFailedPrecondition when the block is partial
  // (Reserve() it and write what is missing), those of the backend, and kAborted as in Commit().
  absl::Status Put(const BlockKey& key, BlockSize size, absl::Span<const ConstBytes> source,
                   const PutOptions& options = {});

  // The same for many, without waiting: op i is requests[i]'s and ends after its commit. A request
  // may name an earlier one as its parent. The requests may go when the call returns; their sources
  // must live until the transfer ends.
  Transfer PutMany(absl::Span<const PutRequest> requests, Stream stream = {});

  // Commits each of `leases`, in order, and ends it; result i is that of leases[i].Commit(). One
  // hold of the lock for each 256 blocks; parts that were written in place are summed without it.
  // REQUIRES: results.size() == leases.size(); leases of this cache, or that hold nothing.
  void CommitMany(absl::Span<WriteLease> leases, absl::Span<absl::Status> results);

  // A transfer that ends when the work now queued on `stream` has finished: for CommitAfter() of a
  // part that this work writes in place. Ends with kInvalidArgument when the backend knows nothing
  // of the stream.
  Transfer After(Stream stream) { return backend_->After(stream); }

  // --- Removing. Leased bytes stay until the last lease goes; writers learn of it by kAborted.

  // Erases a block and what descends from it; Match misses all of it at once, Get may still find a
  // descendant until the call returns. Returns whether it was there.
  bool Erase(const BlockKey& key);
  // All blocks of a namespace, or of all; everybody misses all of them at once. Returns how many.
  size_t EraseNamespace(NamespaceId ns);
  void Clear();

  // --- For those who copy blocks elsewhere, or tell others what is here

  // Leases blocks that would be evicted first, in that order, and are not marked as copied; the
  // order stays as it is, and nothing is counted or touched. Looks at up to 256 blocks, marked ones
  // among them. Returns how many, at most leases.size(); the other leases hold nothing. REQUIRES:
  // leases that hold nothing.
  size_t PeekVictims(absl::Span<ReadLease> leases);
  // From now on the block of a lease need not be copied before it is evicted
  // (CacheCounters::evicted_before_copied). REQUIRES: the lease holds a whole block of this cache.
  void MarkCopied(const ReadLease& block);

  // Copies BlockEvents, the oldest first, from the one with the number *sequence on, which becomes
  // that of the next one; begin with 0. Adds to *lost how many of them are not kept any more: who
  // finds some has to ask for what is there instead (Lookup). Returns how many were copied: less
  // than events.size() when there are no more. Any number of readers.
  size_t Events(uint64_t* sequence, absl::Span<BlockEvent> events, uint64_t* lost) const;

  // --- Upkeep

  // Lets the leading complete blocks of a chain live until `ttl` from now, if that is later than
  // they would, but no longer than their parents. Returns how many there are. kInvalidArgument
  // unless ttl is positive.
  absl::StatusOr<size_t> Extend(const Chain& chain, absl::Duration ttl);

  // Evicts what no longer fits. kInvalidArgument for less than the backend's alignment or more than
  // its capacity; kResourceExhausted, with nothing evicted, when leased blocks do not fit.
  absl::Status Resize(size_t capacity_bytes);

  // Removes what has expired and waits until no copy is under way.
  void Drain();

  // Compares the checksums of all committed parts, going on where the last call stopped, until it
  // has read `bytes` or more, or every block once; drops the blocks that have changed. Returns how
  // many bytes were read: 0 in a cache without checksums or blocks. Pins one block at a time; a
  // Reserve() that only lacks the room of that one waits for it.
  size_t Scrub(size_t bytes);

  // Without the namespaces, the advice, and what backend and policy say of themselves when there is
  // no memory for these.
  CacheStats stats() const;

 private:
  friend class PrefixCache;  // replaces blocks
  friend class ReadLease;
  friend class WriteLease;
  friend class internal::GapMaker;
  friend class internal::LeasedCopies;
  friend class internal::Scrubber;

  internal::Nanos Now() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Create(), where also threads may fail.
  static absl::StatusOr<std::unique_ptr<Cache>> CreateOrThrow(
      const CacheOptions& options, std::unique_ptr<StorageBackend> backend,
      std::unique_ptr<EvictionPolicy> policy);

  Cache(std::unique_ptr<StorageBackend> backend, std::unique_ptr<EvictionPolicy> policy,
        const CacheOptions& options, size_t capacity_bytes, size_t max_blocks);

  enum class ReserveMode { kNew, kNewOrPartial, kReplacement };

  // Like Reserve(), for a block that takes the place of the one of this key, without parent or
  // children, when it is first committed or suspended. Only one at a time for a key.
  absl::StatusOr<WriteLease> ReserveReplacement(const BlockKey& key, BlockSize size,
                                                const PutOptions& options);

  // For PrefixCache: pins what there is of a block without counting it as a lookup, and sets which
  // of the parts are committed. Holds nothing when there is nothing, or somebody is writing it.
  ReadLease PinForReplacement(const BlockKey& key, std::vector<bool>* committed);

  Transfer ReadFound(absl::Span<const ReadRequest> requests, Stream stream);
  Transfer PutAll(absl::Span<const PutRequest> requests, Stream stream);
  // The sums, and with `models` the namespaces, whose models it lists. Without it nothing is
  // allocated.
  CacheStats CollectStats(std::vector<const std::string*>* models) const;

  absl::StatusOr<WriteLease> ReserveBlock(const BlockKey& key, BlockSize size,
                                          const PutOptions& options, ReserveMode mode);
  struct Reservation;
  absl::Status StatusOf(const Reservation& reservation) const;
  // Decides them one by one, up to the first that does not go on; with extents.
  void ReserveEach(absl::Span<Reservation> reservations);
  enum class Locked {
    kDecided,
    kRetry,       // after what was removed is free
    kWait,        // for room that another thread is about to free
    kStepByStep,  // ReserveInSteps()
  };
  // A reservation without an extent, unless it resumes a block.
  Locked ReserveLocked(Reservation* reservation, internal::Removed* removed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Makes room that takes many holds of the lock, and leaves the decision to ReserveLocked(),
  // unless there is none.
  void ReserveInSteps(Reservation* reservation);
  absl::Status ResizeInSteps(size_t capacity_bytes);
  // Evicts `wanted` bytes, or nothing but what was chosen when others took some of it. Once it has
  // chosen what suffices, `limit` holds for newcomers. With `credit`, what is evicted stays charged
  // and is added to it.
  internal::Room EvictInSteps(const EntryInfo& incoming, const BlockKey* parent,
                              absl::FunctionRef<size_t(const internal::Budget&)> wanted,
                              std::optional<size_t> limit, size_t* credit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(steps_mu_);
  // Evicts what was chosen, with `credit` as above, or takes it back.
  void SettleChosen(absl::Span<const Slot> victims, bool evict, size_t* credit);
  void SetStepping(bool stepping);
  void GiveExtents(absl::Span<Reservation> reservations);
  // Must come before a Reserve() with a priority other than 0.
  absl::Status UsePriority(uint16_t priority);
  // Into the lease of the reservation, or decides it otherwise.
  void AllocateExtent(Reservation* reservation);
  // The same where nothing that is free is large enough.
  absl::StatusOr<Extent> AllocateInGap(Reservation* reservation);
  void CountRefusalByPolicy(const Reservation& reservation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Locks mu_ when the table has the memory for so many new blocks, pins and namespaces, which it
  // gets without the lock; false, without the lock, when there is none.
  bool LockSupplied(size_t blocks, size_t pins, size_t namespaces)
      ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true, mu_);
  // Forgets the ids of namespaces that were given back, so that their numbers can be used again.
  void ForgetDeparted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(names_mu_);

  // Whether this processor can read and write blocks in place.
  bool host_addressable() const {
    const BackendTraits& traits = backend_->traits();
    return traits.addressable && traits.memory_space.kind != MemoryKind::kDevice;
  }

  absl::StatusOr<ReadLease> GetOne(NamespaceId ns, const BlockKey& key,
                                   std::optional<uint32_t> part);
  // A lease on a block, or on one part of it.
  void Pin(Slot slot, internal::Block& block, std::optional<uint32_t> part, internal::Nanos now,
           ReadLease* lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  WriteLease WriteLeaseOn(Slot slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Counts the lookup that found `slot`, or kNoSlot, and pins it for `lease`, which holds nothing.
  absl::Status PinFound(NamespaceId ns, Slot slot, std::optional<uint32_t> part,
                        internal::Nanos now, ReadLease* lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Visits the leading complete blocks of a chain under the lock; returns how many they are.
  size_t ForLeading(
      const Chain& chain,
      absl::FunctionRef<void(internal::BlockTable&, Slot, internal::Nanos)> visit) const;
  // Touches what is pinned from the last to the first; TouchChunks does so for any number.
  void TouchBackwards(absl::Span<const ReadLease> leases, uint32_t chain_blocks,
                      internal::Nanos now, bool continues) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TouchSlots(absl::Span<const Slot> slots, uint32_t chain_blocks, internal::Nanos now,
                  bool continues) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TouchChunks(absl::Span<const ReadLease> leases, uint32_t chain_blocks,
                   bool continues = false);
  // Tells the policy of the blocks [begin, end) of a chain, which were not there.
  void MissBackwards(const Chain& chain, size_t begin, size_t end, internal::Nanos now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ends a read lease, or a write lease after `end`.
  void Release(Slot slot);
  absl::Status Release(
      Slot slot,
      absl::FunctionRef<absl::Status(internal::BlockTable&, internal::Nanos, internal::Removed*)>
          end);

  // Whether the cache belongs to a process that this one was forked from.
  bool InForkedChild() const { return internal::ForkGeneration() != fork_generation_; }

  // --- The end. What has ended a lease or a copy calls EndsUse() under the same hold of the lock,
  // and then EndUse() unless nothing was removed and that was false.
  bool EndsUse(const internal::Removed& removed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndUse(internal::Removed& removed, bool last);
  // Whether nobody but the caller knows the cache any more.
  bool Abandoned() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Close();
  static void Destroy(Cache* cache);
  Cache* next_in_child_ = nullptr;  // of those that a forked child has destroyed
  static void* operator new(size_t bytes);
  static void operator delete(void* memory);

  // Runs `change` under the lock and then, without it, frees what it removed.
  absl::Status Change(
      absl::FunctionRef<absl::Status(internal::BlockTable&, internal::Nanos, internal::Removed*)>
          change);
  // Frees, without the lock, what was removed under it, and what hangs below that.
  void Free(const internal::Removed& removed);
  void FreeAll(const internal::Removed& removed);
  bool FreeSome(const internal::Removed& removed);
  // Removes what is erased in the namespaces [first, end), by their numbers.
  void FinishErase(uint32_t first, uint32_t end);

  // The backend has failed for good.
  void Fail(const absl::Status& status);

  // Whether room may come without anybody's doing: another thread frees, or is done comparing; or
  // takes back what it has chosen.
  bool IsFreeing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool RoomComes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stepping_ || IsFreeing(); }

  template <typename... Argument>
  static absl::Status UnknownNamespace(NamespaceId ns, const Argument&... argument) {
    return internal::Error(absl::StatusCode::kInvalidArgument, argument..., ": ",
                           static_cast<uint64_t>(ns), " was not registered with this cache");
  }

  const std::unique_ptr<StorageBackend> backend_;
  const std::unique_ptr<EvictionPolicy> policy_;
  const uint32_t fork_generation_ = internal::WatchForks();
  const size_t slots_;
  const internal::Nanos default_ttl_;
  const bool keeps_checksums_;
  std::unique_ptr<internal::Advisor> advisor_;  // nullptr: no advice; set by Create()

  Mutex steps_mu_;  // before mu_: one EvictInSteps() or GapMaker at a time
  Mutex names_mu_;  // before mu_
  mutable Mutex mu_;
  CondVar changed_;  // bytes were freed, or a copy has ended
  const std::unique_ptr<internal::BlockTable> table_ ABSL_PT_GUARDED_BY(mu_);
  std::set<std::string> models_ ABSL_GUARDED_BY(names_mu_);  // never shrinks
  // By root key. Not a flat_hash_map: one that could not grow is broken for good.
  std::unordered_map<BlockKey, NamespaceId, absl::Hash<BlockKey>> ids_ ABSL_GUARDED_BY(names_mu_);
  bool stepping_ ABSL_GUARDED_BY(mu_) = false;  // some blocks are chosen and may be taken back
  // Batches of copies, and threads that free what the end of a lease has removed.
  size_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;
  size_t users_ ABSL_GUARDED_BY(mu_) = 0;  // what LeasedCopies::Hold() returned
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  const Clock* clock_ ABSL_GUARDED_BY(mu_);   // the caller's until the cache is ended
  absl::Status failed_ ABSL_GUARDED_BY(mu_);  // why nothing can be reserved

  const std::unique_ptr<internal::Scrubber> scrubber_;
  Slot scrubbed_ ABSL_GUARDED_BY(mu_) = kNoSlot;  // pinned only to be compared
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_CACHE_CACHE_H_
