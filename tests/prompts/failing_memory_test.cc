// Every allocation of every public call fails once: the call says so and leaves everything right.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/completion_queue.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/tests/fake_backend/fake_backend.h"
#include "kvcache/tests/prompts/deferred_copies.h"

namespace kvcache {
namespace {

// Of this thread: how many allocations are still granted; none: all.
thread_local std::optional<size_t> granted;
thread_local bool refused = false;

void* AllocateOrNull(size_t bytes, size_t alignment) {
  if (granted.has_value() && (*granted)-- == 0) {
    granted.reset();  // one failure is enough
    refused = true;
    return nullptr;
  }
  return alignment <= alignof(std::max_align_t)
             ? std::malloc(bytes)
             : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void* Allocate(size_t bytes, size_t alignment) {
  void* const memory = AllocateOrNull(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace
}  // namespace kvcache

void* operator new(size_t bytes) { return kvcache::Allocate(bytes, 1); }
void* operator new[](size_t bytes) { return kvcache::Allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return kvcache::Allocate(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return kvcache::Allocate(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return kvcache::AllocateOrNull(bytes, 1);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return kvcache::AllocateOrNull(bytes, 1);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace kvcache {
namespace {

constexpr size_t kCapacityBlocks = 12;
constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr BlockSize kSize = {kBlockBytes, kLayers};

// Both ways that copies go: in the call that starts them, and later.
class FailingMemoryTest : public DeferredCopiesTest, public testing::WithParamInterface<bool> {
 protected:
  FailingMemoryTest() : DeferredCopiesTest(kCapacityBlocks) {}

  bool in_call() const { return GetParam(); }

  void Start() {
    paged_.reset();
    cache_.reset();
    CacheOptions options;
    options.clock = &clock_;
    options.events = 64;
    MakeCache(options);
    backend_->set_auto_complete(true);
    SaveAndWait(0, Tokens(4 * kBlockTokens));  // the first prompt
    for (uint64_t i = 0; i < 2; ++i) Put(i);
    queue_.emplace();
    status_ = absl::OkStatus();
    backend_->set_auto_complete(in_call());
  }

  static BlockKey Key(uint64_t number) { return *TextKey(BlockKey(), std::to_string(number)); }
  void Put(uint64_t number) {
    ASSERT_TRUE(cache_->Put(Key(number), kSize, {ConstBytes(bytes_)}).ok());
  }

  // What is there afterwards can be used, and nothing is left of what the call had begun.
  void CheckAndEnd() {
    backend_->CompleteAll();
    for (Transfer& transfer : transfers_) EXPECT_TRUE(transfer.Done());
    transfers_.clear();
    writes_.clear();
    reads_.clear();
    backend_->CompleteAll();
    cache_->Drain();
    CacheStats stats = cache_->stats();
    EXPECT_EQ(stats.leases, 0u);
    EXPECT_EQ(stats.usage.bytes_detached, 0u);
    EXPECT_LE(stats.usage.bytes_in_use, stats.capacity_bytes);
    // Whatever is found has the right bytes.
    backend_->set_auto_complete(true);
    const Prompt prompt = Tokens(4 * kBlockTokens);
    Fill(1, std::byte{1});
    const absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(prompt, Table(1));
    ASSERT_TRUE(loaded.ok() && loaded->copies.Wait().ok());
    EXPECT_TRUE(HasOnly(1, prompt, 0, loaded->tokens, std::byte{1}));
    cache_->Clear();
    EXPECT_EQ(InUse(), 0u);
    for (uint64_t i = 0; i < stats.capacity_bytes / kBlockBytes; ++i) Put(100 + i);
    EXPECT_EQ(InUse(), stats.capacity_bytes / kBlockBytes * kBlockBytes);
  }

  // Repeats `call`, with one more allocation granted each time, until none is refused. `prepare`
  // runs before with all of them granted. `call` leaves what it gets in the members below.
  void EachAllocation(const char* name, const std::function<void()>& prepare,
                      const std::function<void()>& call) {
    SCOPED_TRACE(name);
    for (size_t allocations = 0;; ++allocations) {
      SCOPED_TRACE(allocations);
      Start();
      prepare();
      refused = false;
      granted = allocations;
      bool thrown = false;
      try {
        call();
      } catch (const std::bad_alloc&) {
        thrown = true;
      }
      granted.reset();
      EXPECT_FALSE(thrown);
      if (!status_.ok()) {
        EXPECT_TRUE(refused && absl::IsResourceExhausted(status_)) << status_;
      }
      const bool last = !refused;
      CheckAndEnd();
      if (last || HasFailure()) return;
      ASSERT_LT(allocations, 1000u);
    }
  }
  void EachAllocation(const char* name, const std::function<void()>& call) {
    EachAllocation(
        name, [] {}, call);
  }

  void Keep(absl::StatusOr<WriteLease> lease) {
    status_ = lease.status();
    if (lease.ok()) writes_[0] = *std::move(lease);
  }
  void Keep(absl::StatusOr<ReadLease> lease) {
    status_ = lease.status();
    if (lease.ok()) reads_[0] = *std::move(lease);
  }
  void Keep(Transfer transfer) {
    transfers_[0] = std::move(transfer);
    if (transfers_[0].Done()) status_ = transfers_[0].Wait();
  }
  // Room for what the calls leave, made before they are watched.
  void Room(size_t leases = 1) {
    writes_.resize(leases);
    reads_.resize(leases);
    transfers_.resize(1);
  }
  void Reserved(uint64_t number) {
    Room();
    writes_[0] = *cache_->Reserve(Key(number), kSize);
  }
  void Got() {
    Room();
    reads_[0] = *cache_->Get(kNs, Key(0));
  }

  const std::vector<std::byte> bytes_ = std::vector<std::byte>(kBlockBytes, std::byte{7});
  std::vector<std::byte> copy_ = std::vector<std::byte>(kBlockBytes);
  absl::Status status_;
  std::vector<WriteLease> writes_;
  std::vector<ReadLease> reads_;
  std::vector<Transfer> transfers_;
  std::optional<CompletionQueue> queue_;
};

TEST_P(FailingMemoryTest, Reserving) {
  const auto room = [this] { Room(8); };
  EachAllocation("Reserve", room, [&] { Keep(cache_->Reserve(Key(9), kSize)); });
  EachAllocation("Reserve of many parts", room, [&] {
    Keep(cache_->Reserve(Key(9), {kBlockBytes, kBlockBytes / 2}));
  });
  EachAllocation("Reserve that evicts", room, [&] {
    Keep(cache_->Reserve(Key(9), {8 * kBlockBytes, 1}));
  });
  PutOptions options;
  options.priority = 3;
  options.ttl = absl::Hours(1);
  EachAllocation("Reserve with a priority", room,
                 [&] { Keep(cache_->Reserve(Key(9), kSize, options)); });
  EachAllocation("a refused Reserve", room, [&] {
    const absl::Status refusal = cache_->Reserve(Key(9), {size_t{1} << 30, 1}).status();
    EXPECT_FALSE(refusal.ok());
  });
  std::vector<BlockKey> keys;
  for (uint64_t i = 20; i < 28; ++i) keys.push_back(Key(i));
  std::vector<absl::StatusOr<WriteLease>> results(keys.size());
  std::vector<absl::Status> committed(keys.size());
  EachAllocation(
      "ReserveMany and CommitMany",
      [&] {
        Room(8);
        for (auto& result : results) result = WriteLease();
      },
      [&] {
        const size_t reserved =
            cache_->ReserveMany({.keys = keys}, {kSize}, {}, absl::MakeSpan(results));
        for (size_t i = 0; i < reserved; ++i) {
          if (results[i].ok()) {
            writes_[i] = *std::move(results[i]);
          } else {
            status_ = results[i].status();
          }
        }
        cache_->CommitMany(absl::MakeSpan(writes_), absl::MakeSpan(committed));
      });
}

TEST_P(FailingMemoryTest, Writing) {
  const auto reserved = [this] { Reserved(9); };
  const ConstBytes all = bytes_;
  const ConstBytes part = all.first(kBlockBytes / kLayers);
  EachAllocation("Write", reserved, [&] { Keep(writes_[0].Write({&all, 1})); });
  EachAllocation("WritePart", reserved, [&] { Keep(writes_[0].WritePart(1, {&part, 1})); });
  EachAllocation("CommitAfter", reserved, [&] {
    status_ = writes_[0].CommitAfter(0, writes_[0].WritePart(0, {&part, 1}));
  });
  EachAllocation("Suspend", reserved, [&] {
    status_ = writes_[0].CommitPart(0);
    if (status_.ok()) status_ = writes_[0].Suspend();
  });
  EachAllocation("Commit", reserved, [&] { status_ = writes_[0].Commit(); });
  EachAllocation("Abort", reserved, [&] { writes_[0].Abort(); });
  if (in_call()) {  // waits for the copy
    EachAllocation("Put", [&] { status_ = cache_->Put(Key(9), kSize, {&all, 1}); });
  }
  const PutRequest requests[] = {{.key = Key(9), .size = kSize, .source = {&all, 1}},
                                 {.key = Key(10), .size = kSize, .source = {&all, 1}}};
  EachAllocation(
      "PutMany", [this] { Room(); }, [&] { Keep(cache_->PutMany(requests)); });
}

TEST_P(FailingMemoryTest, Reading) {
  const auto room = [this] { Room(2); };
  const auto got = [this] { Got(); };
  const MutableBytes all = absl::MakeSpan(copy_);
  const MutableBytes part = all.first(kBlockBytes / kLayers);
  const std::vector<BlockKey> keys = {Key(0), Key(1)};
  EachAllocation("Get", room, [&] { Keep(cache_->Get(kNs, keys[0])); });
  EachAllocation("GetPart", room, [&] { Keep(cache_->GetPart(kNs, keys[0], 1)); });
  EachAllocation("GetMany", room,
                 [&] { cache_->GetMany(kNs, keys, absl::MakeSpan(reads_).first(2)); });
  EachAllocation("Match", room, [&] {
    PrefixMatch match = cache_->Match({.keys = keys});
    cache_->Release(absl::MakeSpan(match.blocks));
  });
  EachAllocation("LookupPrefix", [&] { cache_->LookupPrefix({.keys = keys}); });
  EachAllocation("Read", got, [&] { Keep(reads_[0].Read({&all, 1})); });
  EachAllocation("ReadPart", got, [&] { Keep(reads_[0].ReadPart(1, {&part, 1})); });
  EachAllocation("ReleaseAfter", got, [&] { status_ = reads_[0].ReleaseAfter({}); });
  const ReadRequest requests[] = {{.key = Key(0), .destination = {&all, 1}},
                                  {.key = Key(1), .destination = {&all, 1}}};
  EachAllocation("ReadInto", room, [&] { Keep(cache_->ReadInto(requests)); });
  EachAllocation("a queue", got, [&] {
    Keep(reads_[0].Read({&all, 1}));
    const absl::Status added = queue_->Add(transfers_[0], 5);
    if (status_.ok()) status_ = added;
  });
}

TEST_P(FailingMemoryTest, Upkeep) {
  const auto room = [this] { Room(4); };
  Namespace ns = {.model = "another model, whose name is long", .tenant = "alice"};
  ns.layout = kLayout;
  ns.shard = Shard::Whole(kLayers, kHeads);
  EachAllocation("Register", [&] {
    const absl::StatusOr<NamespaceId> id = cache_->Register(ns);
    status_ = id.status();
    if (id.ok()) cache_->Unregister(*id);
  });
  const BlockKey key = Key(0);
  EachAllocation("Erase", [&] { cache_->Erase(key); });
  EachAllocation("EraseNamespace", [&] { cache_->EraseNamespace(kNs); });
  EachAllocation("Clear", [&] { cache_->Clear(); });
  EachAllocation("Extend", [&] {
    status_ = cache_->Extend({.keys = {&key, 1}}, absl::Hours(1)).status();
  });
  EachAllocation("Resize", [&] {
    status_ = cache_->Resize(4 * kBlockBytes);
    const absl::Status grown = cache_->Resize(kCapacityBlocks * kBlockBytes);
    if (status_.ok()) status_ = grown;
  });
  EachAllocation("PeekVictims", room, [&] { cache_->PeekVictims(absl::MakeSpan(reads_)); });
  std::vector<BlockEvent> events(16);
  EachAllocation("Events", [&] {
    uint64_t sequence = 0, lost = 0;
    cache_->Events(&sequence, absl::MakeSpan(events), &lost);
  });
  if (in_call()) {
    EachAllocation("Scrub", [&] { cache_->Scrub(size_t{1} << 20); });
  }
}

TEST_P(FailingMemoryTest, Prompts) {
  const auto room = [this] { Room(); };
  const Prompt known = Tokens(4 * kBlockTokens);
  const Prompt other = Tokens(3 * kBlockTokens + 1, 500);
  const std::vector<int32_t> table = Table(2);
  EachAllocation("Create", [&] { status_ = Create(kv_).status(); });
  EachAllocation("Hash", [&] {
    absl::StatusOr<PagedCache::Prompt> prompt =
        paged_->Hash(other, {.items = {{0, 2, "an image"}}, .tenant = "a tenant of one request"});
    status_ = prompt.status();
    if (prompt.ok()) status_ = prompt->Append(known);
  });
  EachAllocation("Lookup", [&] { status_ = paged_->Lookup(known).status(); });
  EachAllocation("Load", room, [&] {
    absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(known, table);
    status_ = loaded.status();
    if (loaded.ok()) Keep(std::move(loaded->copies));
  });
  EachAllocation("Save", room, [&] {
    absl::StatusOr<PagedCache::Saved> saved = paged_->Save(other, table);
    status_ = saved.status();
    if (saved.ok()) Keep(std::move(saved->copies));
  });
  if (in_call()) return;
  PagedCache::Saved first;
  EachAllocation(
      "Save of what another one saves",
      [&] {
        Room();
        first = *paged_->Save(other, table);
      },
      [&] {
        absl::StatusOr<PagedCache::Saved> saved = paged_->Save(other, table);
        status_ = saved.status();
        if (saved.ok()) Keep(std::move(saved->copies));
      });
}

INSTANTIATE_TEST_SUITE_P(Copies, FailingMemoryTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "InTheCall" : "Later"; });

}  // namespace
}  // namespace kvcache
