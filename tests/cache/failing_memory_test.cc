// No call throws, and none breaks anything, whichever of its allocations fails.
#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/core/storage/completion_queue.h"
#include "kvcache/core/storage/extent_allocator.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/eviction/arc/arc.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/failing_new.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr size_t kCapacity = 16 << 10;
constexpr size_t kBytes = 1024;
constexpr uint32_t kParts = 4;
constexpr uint32_t kKeys = 40;
constexpr uint32_t kPageTokens = 4;

enum class Medium { kCpuRam, kFakeAtOnce, kFakeLater };

std::unique_ptr<StorageBackend> MakeBackend(Medium medium) {
  if (medium == Medium::kCpuRam) return *CreateCpuRamBackend({.capacity_bytes = kCapacity});
  auto fake = FakeBackend::Create(kCapacity);
  fake->set_auto_complete(medium == Medium::kFakeAtOnce);
  return fake;
}

bool OkOrNoMemory(const absl::Status& status) {
  return status.ok() || absl::IsResourceExhausted(status);
}

// A cache with what calls need, and what they leave: blocks 0 to 3 are a chain, 4 is alone, 5 is
// partial with its first two parts.
class World {
 public:
  explicit World(Medium medium) {
    std::unique_ptr<StorageBackend> backend = MakeBackend(medium);
    if (medium != Medium::kCpuRam) fake_ = static_cast<FakeBackend*>(backend.get());
    CacheOptions options = {.max_blocks = 64, .events = 16};
    if (medium == Medium::kFakeAtOnce) {
      options.advice = {.capacities = {1, 2}};
    }
    cache = *Cache::Create(options, std::move(backend), CreateLruPolicy());
    for (uint32_t i = 0; i < kKeys; ++i) keys.push_back(NumberedKey(i));
    content.resize(kKeys, std::vector<std::byte>(kBytes));
    for (uint32_t i = 0; i < kKeys; ++i) FillBlock(keys[i], kParts, absl::MakeSpan(content[i]));
    into.resize(8, std::vector<std::byte>(kBytes));
    if (fake_ != nullptr) fake_->set_auto_complete(true);
    for (uint32_t i = 0; i < 5; ++i) {
      PutOptions put;
      if (i > 0 && i < 4) put.parent = keys[i - 1];
      EXPECT_TRUE(cache->Put(keys[i], {kBytes, kParts}, {content[i]}, put).ok());
    }
    WriteLease partial = *cache->Reserve(keys[5], {kBytes, kParts});
    for (uint32_t part : {0, 1}) {
      EXPECT_TRUE(partial.WritePart(part, {PartOf(5, part)}).Wait().ok());
      EXPECT_TRUE(partial.CommitPart(part).ok());
    }
    EXPECT_TRUE(partial.Suspend().ok());
    if (fake_ != nullptr) fake_->set_auto_complete(medium == Medium::kFakeAtOnce);
    const size_t parts = kParts;
    page_memory.resize(2 * parts * 16 * kPageTokens * 16);
    pages = {.layout = {.dtype = DType::kF16, .layers = kParts, .kv_heads = 1, .head_dim = 8},
             .page_tokens = kPageTokens,
             .pages = 16,
             .page_stride = kPageTokens * 16};
    for (uint32_t layer = 0; layer < kParts; ++layer) {
      std::byte* const k = page_memory.data() + layer * 2 * 16 * pages.page_stride;
      pages.layers.push_back({k, k + 16 * pages.page_stride});
    }
    options_of_pages.tokens_per_block = 8;
    options_of_pages.ns = {.model = "m", .shard = Shard::Whole(kParts, 1), .layout = pages.layout};
    for (int32_t i = 0; i < 36; ++i) tokens.push_back(i);
    for (int32_t i = 0; i < 16; ++i) table.push_back(i);
  }

  ConstBytes PartOf(uint32_t key, uint32_t part) const {
    return absl::MakeConstSpan(content[key]).subspan(part * kBytes / kParts, kBytes / kParts);
  }
  void CompleteAll() {
    while (fake_ != nullptr && fake_->pending() > 0) fake_->CompleteAll();
  }
  // As if the medium were ready meanwhile.
  void Complete(const Transfer& transfer) {
    CompleteAll();
    EXPECT_TRUE(transfer.Wait().ok());
  }
  void Make(std::unique_ptr<PagedCache>* paged) const {
    *paged = *PagedCache::Create(cache.get(), pages, options_of_pages);
  }

  // What the call has left ends, and nothing but the blocks is left then.
  void Check() {
    CompleteAll();
    for (const Transfer* transfer : {&this->transfer, &saved.copies, &loaded.copies}) {
      EXPECT_TRUE(transfer->Done());
      for (size_t op = 0; op < transfer->size() && transfer->Done(); ++op) {
        EXPECT_TRUE(OkOrNoMemory(transfer->result(op)) || absl::IsNotFound(transfer->result(op)) ||
                    absl::IsAborted(transfer->result(op)))
            << transfer->result(op);
      }
    }
    match = {};
    reads = {};
    read = {};
    write = {};
    for (absl::StatusOr<WriteLease>& lease : writes) lease = absl::UnknownError("");
    CompleteAll();
    cache->Drain();
    const CacheStats stats = cache->stats();
    EXPECT_EQ(stats.leases, 0u);
    size_t in_use = 0;
    for (const NamespaceStats& ns : stats.namespaces) in_use += ns.usage.bytes_in_use;
    EXPECT_EQ(stats.usage.bytes_in_use, in_use);
    EXPECT_EQ(stats.usage.bytes_detached, 0u);
    if (fake_ != nullptr) fake_->set_auto_complete(true);
    for (uint32_t i = 0; i < kKeys; ++i) {
      EXPECT_NE(cache->Lookup(keys[i]), LookupResult::kPending) << i;
      const MutableBytes bytes = absl::MakeSpan(into[0]);
      if (cache->Lookup(keys[i]) == LookupResult::kHit) {
        EXPECT_TRUE(cache->Get(kNs, keys[i])->Read({bytes}).Wait().ok());
        EXPECT_TRUE(IsBlock(keys[i], kParts, bytes)) << i;
      }
    }
    // Everything can be taken in one piece again, so nothing is lost.
    cache->Clear();
    EXPECT_EQ(cache->stats().usage.bytes_in_use, 0u);
    EXPECT_EQ(cache->stats().usage.blocks, 0u);
    if (cache->capacity_bytes() == kCapacity) {
      const absl::StatusOr<WriteLease> all = cache->Reserve(keys[6], {kCapacity, 1});
      EXPECT_TRUE(all.ok()) << all.status();
    }
  }

  std::unique_ptr<Cache> cache;
  std::vector<BlockKey> keys;
  std::vector<std::vector<std::byte>> content;  // [kKeys]
  std::vector<std::vector<std::byte>> into;
  // Of paged caches.
  PagedKv pages;
  std::vector<std::byte> page_memory;
  PagedCacheOptions options_of_pages;
  std::vector<int32_t> tokens;
  std::vector<int32_t> table;

  // What calls return.
  Transfer transfer;
  PrefixMatch match;
  std::array<ReadLease, 8> reads;
  ReadLease read;
  WriteLease write;
  std::array<absl::StatusOr<WriteLease>, 12> writes;
  PagedCache::Saved saved;
  PagedCache::Loaded loaded;

 private:
  FakeBackend* fake_ = nullptr;
};

// Prepares a call, and returns it.
using Call = std::function<absl::Status()>;
using Prepare = std::function<Call(World& world)>;

absl::Status Ok(bool) { return absl::OkStatus(); }

template <typename T>
absl::Status Take(absl::StatusOr<T> from, T* to) {
  if (!from.ok()) return from.status();
  *to = *std::move(from);
  return absl::OkStatus();
}

void FailEach(const std::string& name, Medium medium, const Prepare& prepare) {
  for (FailingNew::Which which : {FailingNew::Which::kOne, FailingNew::Which::kAllFrom}) {
    for (size_t number = 1;; ++number) {
      SCOPED_TRACE(absl::StrCat(
          name, ", medium ", static_cast<int>(medium),
          which == FailingNew::Which::kOne ? ", allocation " : ", all allocations from ", number));
      World world(medium);
      bool failed;
      {
        const Call call = prepare(world);
        absl::Status status;
        try {
          const FailingNew failing(number, which);
          status = call();
          failed = failing.failed();
        } catch (...) {
          FAIL() << "an exception";
        }
        EXPECT_TRUE(failed ? OkOrNoMemory(status) : status.ok()) << status;
        world.CompleteAll();
      }
      world.Check();
      if (testing::Test::HasFailure()) return;
      if (!failed) break;
      ASSERT_LT(number, 1000u);
    }
  }
}

class FailingMemoryTest : public testing::TestWithParam<Medium> {
 protected:
  void Each(const std::string& name, const Prepare& prepare) {
    if (!HasFailure()) FailEach(name, GetParam(), prepare);
  }
};

TEST_P(FailingMemoryTest, Reading) {
  Each("Lookup", [](World& w) {
    return [&w] { return Ok(w.cache->Lookup(w.keys[0]) == LookupResult::kHit); };
  });
  Each("LookupPrefix", [](World& w) {
    return [&w] { return Ok(w.cache->LookupPrefix({.keys = absl::MakeSpan(w.keys).first(6)})); };
  });
  Each("Match", [](World& w) {
    return [&w] {
      w.match = w.cache->Match({.keys = w.keys, .tokens_per_block = 16, .tokens = 80});
      return absl::OkStatus();
    };
  });
  Each("Get",
       [](World& w) { return [&w] { return Take(w.cache->Get(kNs, w.keys[0]), &w.read); }; });
  Each("GetPart", [](World& w) {
    return [&w] { return Take(w.cache->GetPart(kNs, w.keys[5], 1), &w.read); };
  });
  Each("errors of Get", [](World& w) {
    return [&w] {
      EXPECT_TRUE(absl::IsInvalidArgument(w.cache->GetPart(kNs, w.keys[5], 9).status()));
      EXPECT_TRUE(absl::IsInvalidArgument(w.cache->Get(NamespaceId{9}, w.keys[5]).status()));
      return absl::OkStatus();
    };
  });
  Each("GetMany", [](World& w) {
    return [&w] {
      return Ok(w.cache->GetMany(kNs, absl::MakeSpan(w.keys).first(8), absl::MakeSpan(w.reads)));
    };
  });
  for (uint32_t missing : {0u, 1u}) {
    Each("ReadInto", [missing](World& w) -> Call {
      struct Requests {
        std::vector<MutableBytes> bytes;
        std::vector<ReadRequest> requests;
      };
      auto r = std::make_shared<Requests>();
      for (uint32_t i = 0; i < 3; ++i) r->bytes.push_back(absl::MakeSpan(w.into[i]));
      for (uint32_t i = 0; i < 3; ++i) {
        r->requests.push_back(
            {.key = w.keys[i == 1 ? 1 + 20 * missing : i], .destination = {&r->bytes[i], 1}});
      }
      return [&w, r] {
        w.transfer = w.cache->ReadInto(r->requests);
        return absl::OkStatus();
      };
    });
  }
  for (int kind = 0; kind < 4; ++kind) {
    Each(absl::StrCat("Read ", kind), [kind](World& w) -> Call {
      w.read = *w.cache->Get(kNs, w.keys[3]);
      return [&w, kind] {
        const MutableBytes all = absl::MakeSpan(w.into[0]);
        const MutableBytes part = all.first(kBytes / kParts);
        const absl::Span<const MutableBytes> one = {&part, 1};
        const absl::Span<const MutableBytes> parts[kParts] = {one, one, one, one};
        if (kind == 0) w.transfer = w.read.Read({&all, 1});
        if (kind == 1) w.transfer = w.read.ReadPart(2, one);
        if (kind == 2) return w.read.ReleaseAfter({});
        if (kind == 3) w.transfer = w.read.ReadParts(parts);
        return absl::OkStatus();
      };
    });
  }
  if (GetParam() != Medium::kFakeLater) {
    Each("Verify", [](World& w) -> Call {
      w.read = *w.cache->Get(kNs, w.keys[3]);
      return [&w] { return w.read.Verify(); };
    });
    Each("Scrub", [](World& w) { return [&w] { return Ok(w.cache->Scrub(1 << 20)); }; });
  }
  Each("stats", [](World& w) {
    return [&w] {
      EXPECT_EQ(w.cache->stats().usage.blocks, 6u);
      return absl::OkStatus();
    };
  });
  Each("PeekVictims, Events, MarkCopied", [](World& w) {
    return [&w] {
      EXPECT_TRUE(w.cache->PeekVictims(absl::MakeSpan(w.reads)) > 0 || !w.reads[0].holds());
      if (w.reads[0].holds()) w.cache->MarkCopied(w.reads[0]);
      uint64_t sequence = 0;
      uint64_t lost = 0;
      std::array<BlockEvent, 16> events;
      return Ok(w.cache->Events(&sequence, absl::MakeSpan(events), &lost));
    };
  });
}

TEST_P(FailingMemoryTest, Writing) {
  Each("Reserve", [](World& w) {
    return [&w] { return Take(w.cache->Reserve(w.keys[7], {kBytes, 128}), &w.write); };
  });
  Each("Reserve that evicts", [](World& w) {
    return [&w] { return Take(w.cache->Reserve(w.keys[7], {kCapacity - kBytes, 1}), &w.write); };
  });
  Each("Reserve that resumes", [](World& w) {
    return [&w] { return Take(w.cache->Reserve(w.keys[5], {kBytes, kParts}), &w.write); };
  });
  Each("Reserve of a priority", [](World& w) {
    return [&w] {
      return Take(w.cache->Reserve(w.keys[7], {kBytes, kParts}, {.priority = 7}), &w.write);
    };
  });
  // What is free is in pieces.
  Each("Reserve in a gap", [](World& w) -> Call {
    for (uint32_t i = 8; w.cache->stats().usage.bytes_in_use < kCapacity; ++i) {
      WriteLease lease = *w.cache->Reserve(w.keys[i], {kBytes, kParts});
      std::vector<std::byte> content = w.content[i];
      const Transfer copy = lease.Write({content});
      w.Complete(copy);
      EXPECT_TRUE(lease.Commit().ok());
    }
    for (uint32_t i = 8; i < kKeys; i += 2) w.cache->Erase(w.keys[i]);
    return [&w] { return Take(w.cache->Reserve(w.keys[7], {4 * kBytes, 1}), &w.write); };
  });
  Each("ReserveMany", [](World& w) {
    return [&w] {
      const BlockSize size = {kBytes, 128};
      const size_t done = w.cache->ReserveMany({.keys = absl::MakeSpan(w.keys).subspan(8, 8)},
                                               {&size, 1}, {}, absl::MakeSpan(w.writes));
      return w.writes[done - 1].status();
    };
  });
  Each("errors of Reserve", [](World& w) {
    return [&w] {
      EXPECT_FALSE(w.cache->Reserve(w.keys[7], {0, 1}).ok());
      EXPECT_FALSE(w.cache->Reserve(w.keys[7], {2 * kCapacity, 1}).ok());
      EXPECT_FALSE(w.cache->Reserve(w.keys[7], {kBytes, 1}, {.parent = w.keys[20]}).ok());
      return absl::OkStatus();
    };
  });
  for (int kind = 0; kind < 7; ++kind) {
    Each(absl::StrCat("a lease ", kind), [kind](World& w) -> Call {
      const uint32_t key = kind == 6 ? 5 : 7;
      w.write = *w.cache->Reserve(w.keys[key], {kBytes, kParts});
      for (uint32_t part = 0; part < kParts; ++part)
        FillPart(w.keys[7], part, absl::MakeSpan(w.into[part]).first(kBytes / kParts));
      if (kind == 2 || kind == 4) w.Complete(w.write.Write({w.content[7]}));
      return [&w, kind, key]() -> absl::Status {
        const ConstBytes all = w.content[key];
        const ConstBytes part = w.PartOf(key, kind == 6 ? 2 : 1);
        if (kind == 0) w.transfer = w.write.Write({&all, 1});
        if (kind == 1) w.transfer = w.write.WritePart(1, {&part, 1});
        if (kind == 2) return w.write.CommitPart(1);
        if (kind == 3) {
          Transfer copy = w.write.WritePart(1, {&part, 1});
          if (copy.Done() && !copy.Wait().ok()) return copy.Wait();
          return w.write.CommitAfter(1, std::move(copy));
        }
        if (kind == 4) return w.write.Commit();
        if (kind >= 5) {
          const uint32_t number = kind == 6 ? 2 : 1;
          Transfer copy = w.write.WritePart(number, {&part, 1});
          if (copy.Done() && !copy.Wait().ok()) return copy.Wait();
          absl::Status status = w.write.CommitAfter(number, std::move(copy));
          return status.ok() ? w.write.Suspend() : status;
        }
        return absl::OkStatus();
      };
    });
  }
  Each("CommitMany", [](World& w) -> Call {
    auto leases = std::make_shared<std::array<WriteLease, 4>>();
    for (uint32_t i = 0; i < 3; ++i) {
      (*leases)[i] = *w.cache->Reserve(w.keys[8 + i], {kBytes, kParts});
      w.Complete((*leases)[i].Write({w.content[8 + i]}));
    }
    return [&w, leases] {
      std::array<absl::Status, 4> results;
      w.cache->CommitMany(absl::MakeSpan(*leases), absl::MakeSpan(results));
      EXPECT_TRUE(absl::IsFailedPrecondition(results[3]));
      return results[0];
    };
  });
  if (GetParam() != Medium::kFakeLater) {
    Each("Put", [](World& w) {
      return [&w] {
        const ConstBytes all = w.content[7];
        return w.cache->Put(w.keys[7], {kBytes, kParts}, {&all, 1});
      };
    });
  }
  Each("PutMany", [](World& w) -> Call {
    auto sources = std::make_shared<std::vector<ConstBytes>>();
    auto requests = std::make_shared<std::vector<PutRequest>>();
    for (uint32_t i = 6; i < 10; ++i) sources->push_back(w.content[i]);
    for (uint32_t i = 6; i < 10; ++i) {
      requests->push_back({w.keys[i], {kBytes, kParts}, {&(*sources)[i - 6], 1}});
    }
    return [&w, sources, requests] {
      w.transfer = w.cache->PutMany(*requests);
      return absl::OkStatus();
    };
  });
}

// Calls fail again and again in one and the same cache.
TEST_P(FailingMemoryTest, AnAttackThatGoesOn) {
  World w(GetParam());
  Random random(1);
  int failures = 0;
  bool same = true;
  for (int i = 0; i < 20'000 && same; ++i) {
    const uint32_t key = 6 + random.Below(20);
    const uint32_t part = random.Below(kParts);
    const ConstBytes from = w.PartOf(key, part);
    PutOptions options;
    if (key > 6 && random.Chance(50)) options.parent = w.keys[key - 1];
    if (random.Chance(30)) w.CompleteAll();
    const FailingNew failing(1 + random.Below(6), FailingNew::Which::kOne);
    absl::StatusOr<WriteLease> lease = w.cache->Reserve(w.keys[key], {kBytes, kParts}, options);
    if (lease.ok() && !lease->committed(part)) {
      Transfer copy = lease->WritePart(part, {&from, 1});
      if (!copy.Done() || copy.Wait().ok()) {
        (random.Chance(80) ? lease->CommitAfter(part, std::move(copy)) : absl::OkStatus())
            .IgnoreError();
      }
      if (random.Chance(70)) lease->Suspend().IgnoreError();
    }
    w.transfer = {};
    if (random.Chance(10)) w.cache->Erase(w.keys[random.Below(26)]);
    if (absl::StatusOr<ReadLease> hit = w.cache->GetPart(kNs, w.keys[key], part); hit.ok()) {
      const MutableBytes to = absl::MakeSpan(w.into[0]).first(kBytes / kParts);
      const Transfer read = hit->Read({&to, 1});
      same &= !read.Done() || !read.Wait().ok() || IsPart(w.keys[key], part, to);
    }
    failures += failing.failed();
  }
  EXPECT_TRUE(same);
  EXPECT_GT(failures, 1000);
  w.Check();
}

TEST(FailingMemoryOfAnExtentAllocatorTest, ItIsAsItWas) {
  ExtentAllocator allocator = *ExtentAllocator::Create({.capacity_bytes = 64 << 20});
  for (size_t allocated = 0; allocated < 100'000;) {
    bool threw = false;
    try {
      const FailingNew failing(1, FailingNew::Which::kOne);
      allocated += allocator.Allocate(64).ok();
    } catch (const std::bad_alloc&) {
      threw = true;
    }
    if (!threw) continue;
    EXPECT_TRUE(allocator.CheckConsistency().ok());
    ASSERT_TRUE(allocator.Allocate(64).ok());
    ++allocated;
  }
  EXPECT_TRUE(allocator.CheckConsistency().ok());
}

TEST_P(FailingMemoryTest, RemovingAndUpkeep) {
  Each("Erase", [](World& w) { return [&w] { return Ok(w.cache->Erase(w.keys[0])); }; });
  Each("EraseNamespace",
       [](World& w) { return [&w] { return Ok(w.cache->EraseNamespace(kNs)); }; });
  Each("Clear", [](World& w) {
    return [&w] {
      w.cache->Clear();
      return absl::OkStatus();
    };
  });
  Each("Extend", [](World& w) {
    return [&w] {
      EXPECT_FALSE(w.cache->Extend({.keys = w.keys}, absl::ZeroDuration()).ok());
      return w.cache->Extend({.keys = w.keys}, absl::Hours(1)).status();
    };
  });
  Each("Resize", [](World& w) { return [&w] { return w.cache->Resize(2 * kBytes); }; });
  Each("Drain", [](World& w) {
    return [&w] {
      w.cache->Drain();
      return absl::OkStatus();
    };
  });
  Each("Register", [](World& w) {
    const KvLayout layout = {.dtype = DType::kF16, .layers = 1, .kv_heads = 1, .head_dim = 8};
    const Namespace ns = {
        .model = std::string(100, 'm'), .shard = Shard::Whole(1, 1), .layout = layout};
    return [&w, ns] {
      const absl::StatusOr<NamespaceId> id = w.cache->Register(ns);
      if (id.ok()) w.cache->Unregister(*id);
      return id.status();
    };
  });
  Each("Create", [](World& w) -> Call {
    auto backend = std::make_shared<std::unique_ptr<StorageBackend>>(MakeBackend(Medium::kCpuRam));
    auto policy = std::make_shared<std::unique_ptr<EvictionPolicy>>(CreateArcPolicy());
    const CacheOptions options = {
        .scrub_bytes_per_second = 1, .events = 10, .advice = {.capacities = {1}}};
    return [backend, policy, options] {
      return Cache::Create(options, std::move(*backend), std::move(*policy)).status();
    };
  });
  Each("CreateCpuRamBackend", [](World&) {
    return [] { return CreateCpuRamBackend({.capacity_bytes = kCapacity}).status(); };
  });
}

TEST_P(FailingMemoryTest, Transfers) {
  Each("CompletionQueue", [](World& w) -> Call {
    auto queue = std::make_shared<CompletionQueue>();
    auto copies = std::make_shared<std::array<Transfer, 3>>();
    w.read = *w.cache->Get(kNs, w.keys[3]);
    for (size_t i = 0; i < 3; ++i) {
      const MutableBytes bytes = absl::MakeSpan(w.into[i]);
      (*copies)[i] = w.read.Read({&bytes, 1});
    }
    return [queue, copies] {
      absl::Status status = queue->Add(*copies, 1);
      EXPECT_EQ(queue->size(), status.ok() ? 1u : 0u);
      return status;
    };
  });
  Each("hooks", [](World& w) -> Call {
    w.read = *w.cache->Get(kNs, w.keys[3]);
    const MutableBytes bytes = absl::MakeSpan(w.into[0]);
    w.transfer = w.read.Read({&bytes, 1});
    struct Hook final : internal::TransferHook {
      void OpEnded(size_t, const absl::Status&) override { ++*ended; }
      std::shared_ptr<int> ended = std::make_shared<int>();
    };
    auto hook = std::make_shared<std::unique_ptr<Hook>>(std::make_unique<Hook>());
    return [&w, hook] {
      internal::Attach(w.transfer, std::move(*hook));
      return absl::OkStatus();
    };
  });
}

TEST_P(FailingMemoryTest, PagedCaches) {
  Each("Create", [](World& w) {
    return [&w] { return PagedCache::Create(w.cache.get(), w.pages, w.options_of_pages).status(); };
  });
  struct Fixture {
    std::unique_ptr<PagedCache> paged;
    std::optional<PagedCache::Prompt> prompt;
    PagedCache::Saved before;
  };
  // With the first 16 tokens in the cache.
  const auto fixture = [](World& w, bool saved) {
    auto f = std::make_shared<Fixture>();
    w.Make(&f->paged);
    f->prompt = *f->paged->Hash(w.tokens);
    if (saved) {
      f->before = *f->paged->Save(absl::MakeSpan(w.tokens).first(16), w.table);
      w.Complete(f->before.copies);
    }
    return f;
  };
  Each("Hash", [&](World& w) -> Call {
    auto f = fixture(w, false);
    return [&w, f] {
      return f->paged->Hash(w.tokens, {.tenant = "a tenant with a name longer than short strings"})
          .status();
    };
  });
  Each("Append", [&](World& w) -> Call {
    auto f = fixture(w, false);
    return [&w, f] {
      const size_t keys = f->prompt->keys().size();
      absl::Status status =
          f->prompt->Append(w.tokens, {{{40, 2, "a digest that is not short at all"}}});
      EXPECT_EQ(f->prompt->tokens(), status.ok() ? 72u : 36u);
      EXPECT_EQ(f->prompt->keys().size(), status.ok() ? 9u : keys);
      return status;
    };
  });
  for (bool half : {false, true}) {
    Each("Save", [&](World& w) -> Call {
      auto f = fixture(w, half);
      return [&w, f] {
        absl::Status status = Take(f->paged->Save(*f->prompt, w.table), &w.saved);
        return status.ok() ? w.saved.stopped : status;
      };
    });
  }
  Each("Save of what another one saves", [&](World& w) -> Call {
    auto f = fixture(w, false);
    f->before = *f->paged->Save(absl::MakeSpan(w.tokens).first(16), w.table);
    return [&w, f] {
      absl::Status status = Take(f->paged->Save(*f->prompt, w.table), &w.saved);
      return status.ok() ? w.saved.stopped : status;
    };
  });
  Each("Save of tokens", [&](World& w) -> Call {
    auto f = fixture(w, false);
    return [&w, f] { return Take(f->paged->Save(w.tokens, w.table), &w.saved); };
  });
  Each("Load", [&](World& w) -> Call {
    auto f = fixture(w, true);
    return [&w, f] { return Take(f->paged->Load(*f->prompt, w.table), &w.loaded); };
  });
  Each("Lookup", [&](World& w) -> Call {
    auto f = fixture(w, true);
    return [&w, f] { return f->paged->Lookup(w.tokens).status(); };
  });
}

TEST_P(FailingMemoryTest, PrefixCaches) {
  if (GetParam() == Medium::kFakeLater) GTEST_SKIP() << "puts wait for their copies";
  struct Fixture {
    std::unique_ptr<PrefixCache> cache;
    std::vector<LayerKv> layers;
    std::vector<float> data = std::vector<float>(64, 1.5f);
    std::optional<CachedKv> hit;
    std::vector<LayerDestination> destinations;
    std::vector<float> into = std::vector<float>(64 * kParts);
    Transfer copy;
  };
  const auto fixture = [medium = GetParam()](bool put) {
    auto f = std::make_shared<Fixture>();
    f->cache = *PrefixCache::Create({.layers = kParts}, MakeBackend(medium), CreateLruPolicy());
    for (uint32_t layer = 0; layer < kParts; ++layer) {
      const KvTensor tensor = {f->data.data(), DType::kF32, 4, 2, 4};
      f->layers.push_back({tensor, tensor});
      auto* at = reinterpret_cast<std::byte*>(f->into.data() + 64 * layer);
      f->destinations.push_back({{at, 128}, {at + 128, 128}});
    }
    EXPECT_TRUE(!put || f->cache->CacheAllLayers("a prompt", f->layers).ok());
    return f;
  };
  // The whole is as it was, or as it should be.
  const auto check = [](const std::shared_ptr<Fixture>& f) {
    f->hit.reset();
    EXPECT_EQ(f->cache->stats().leases, 0u);
    EXPECT_TRUE(f->cache->CacheAllLayers("a prompt", f->layers).ok());
    EXPECT_TRUE(f->cache->GetAllLayers("a prompt").ok());
    f->cache->Clear();
    EXPECT_EQ(f->cache->stats().usage.bytes_in_use, 0u);
  };
  const auto each = [&](const std::string& name, bool put,
                        const std::function<absl::Status(Fixture&)>& call) {
    Each(name, [&](World&) -> Call {
      auto f = fixture(put);
      struct Checked {
        std::shared_ptr<Fixture> f;
        std::function<void(const std::shared_ptr<Fixture>&)> check;
        ~Checked() { check(f); }
      };
      auto checked = std::make_shared<Checked>(Checked{f, [](const auto&) {}});
      checked->check = check;
      return [checked, &call] { return call(*checked->f); };
    });
  };
  Each("Create", [](World&) -> Call {
    auto backend = std::make_shared<std::unique_ptr<StorageBackend>>(MakeBackend(Medium::kCpuRam));
    auto policy = std::make_shared<std::unique_ptr<EvictionPolicy>>(CreateArcPolicy());
    const PrefixCacheOptions options = {.layers = kParts, .model = std::string(64, 'm')};
    return [backend, policy, options] {
      return PrefixCache::Create(options, std::move(*backend), std::move(*policy)).status();
    };
  });
  for (bool before : {false, true}) {
    each("CacheAllLayers", before,
         [](Fixture& f) { return f.cache->CacheAllLayers("a prompt", f.layers); });
    each("CacheKv", before,
         [](Fixture& f) { return f.cache->CacheKv("a prompt", 1, f.layers[1].k, f.layers[1].v); });
  }
  each("GetAllLayers", true, [](Fixture& f) { return f.cache->GetAllLayers("a prompt").status(); });
  each("GetCachedKv", true,
       [](Fixture& f) { return f.cache->GetCachedKv("a prompt", 1).status(); });
  each("LoadAllLayers", true, [](Fixture& f) {
    absl::Status status = Take(f.cache->LoadAllLayers("a prompt", f.destinations), &f.copy);
    return status.ok() ? f.copy.Wait() : status;
  });
  each("LoadKv", true, [](Fixture& f) {
    absl::Status status = Take(f.cache->LoadKv("a prompt", 1, f.destinations[0]), &f.copy);
    return status.ok() ? f.copy.Wait() : status;
  });
  each("Evict", true, [](Fixture& f) { return Ok(f.cache->Evict("a prompt")); });
}

std::string NameOf(const testing::TestParamInfo<Medium>& info) {
  constexpr const char* kNames[] = {"CpuRam", "FakeAtOnce", "FakeLater"};
  return kNames[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Media, FailingMemoryTest,
                         testing::Values(Medium::kCpuRam, Medium::kFakeAtOnce, Medium::kFakeLater),
                         NameOf);

}  // namespace
}  // namespace kvcache
