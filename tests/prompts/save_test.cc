// What PagedCache makes of its options, of blocks that somebody began and of what cannot be.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/cache/lease.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/tests/prompts/deferred_copies.h"

namespace kvcache {
namespace {

class SaveTest : public DeferredCopiesTest {
 protected:
  SaveTest() : DeferredCopiesTest(/*capacity_blocks=*/4) {}

  std::vector<BlockKey> Keys(const Prompt& prompt) {
    std::vector<BlockKey> keys;
    EXPECT_TRUE(ChainKeys(*RootKey(paged_->options().ns), prompt, kBlockTokens, &keys).ok());
    return keys;
  }
  // Layer 0 of the first block, as an engine without pages writes it.
  void BeginFirstBlock(const Prompt& prompt) {
    std::vector<std::byte> layer;
    for (bool v : {false, true}) {
      for (size_t t = 0; t < kBlockTokens; ++t) {
        for (size_t at = 0; at < kTokenBytes; ++at) {
          layer.push_back(Content(prompt, t, 0, v, at));
        }
      }
    }
    absl::StatusOr<WriteLease> lease = cache_->Reserve(
        Keys(prompt)[0], {kBlockBytes, kLayers}, {.ns = *cache_->Register(paged_->options().ns)});
    ASSERT_TRUE(lease.ok()) << lease.status();
    const ConstBytes source = layer;
    const Transfer copy = lease->WritePart(0, {&source, 1});
    backend_->CompleteAll();
    ASSERT_TRUE(copy.Wait().ok() && lease->CommitPart(0).ok() && lease->Suspend().ok());
  }
};

TEST_F(SaveTest, ABlockThatWasBegunIsFinished) {
  BeginFirstBlock(Tokens(8));
  const PagedCache::Saved saved = Save(0, Tokens(8));
  EXPECT_EQ(saved.copied_tokens, 8u);
  EXPECT_EQ(backend_->pending(), 3u);  // not layer 0 of the first one
  backend_->CompleteAll();
  EXPECT_TRUE(saved.copies.Wait().ok());
  Fill(1, std::byte{0xEE});
  absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(Tokens(8), Table(1));
  backend_->CompleteAll();
  ASSERT_TRUE(loaded.ok() && loaded->copies.Wait().ok());
  EXPECT_TRUE(HasOnly(1, Tokens(8), 0, 8, std::byte{0xEE}));
}

TEST_F(SaveTest, AFailureLeavesABlockThatWasBegunAsItWas) {
  BeginFirstBlock(Tokens(4));
  const PagedCache::Saved saved = Save(0, Tokens(4));
  backend_->Fail(0, absl::InternalError("injected"));
  EXPECT_FALSE(saved.copies.Wait().ok());
  EXPECT_EQ(cache_->Lookup(Keys(Tokens(4))[0]), LookupResult::kPartial);
  SaveAndWait(0, Tokens(4));
  EXPECT_EQ(Lookup(Tokens(4)), 4u);
}

TEST_F(SaveTest, BlocksLiveForTheTtl) {
  SaveAndWait(0, Tokens(8), {.ttl = absl::Minutes(1)});
  SaveAndWait(1, Tokens(8, 50));
  clock_.Advance(absl::Seconds(59));
  EXPECT_EQ(Lookup(Tokens(8)), 8u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Lookup(Tokens(8)), 0u);
  EXPECT_EQ(Lookup(Tokens(8, 50)), 8u);
}

TEST_F(SaveTest, AHigherPriorityOutlivesALowerOneForAsLongAsItIsToBeKept) {
  SaveAndWait(0, Tokens(8), {.priority = 5, .keep_priority_for = absl::Minutes(1)});
  SaveAndWait(1, Tokens(8, 50));
  SaveAndWait(2, Tokens(4, 70));  // the oldest would have to go otherwise
  EXPECT_EQ(Lookup(Tokens(8)), 8u);
  EXPECT_EQ(Lookup(Tokens(8, 50)), 4u);
  // Three blocks have room only when one of them goes.
  EXPECT_EQ(Save(3, Tokens(12, 90)).tokens, 8u);
  backend_->CompleteAll();
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(Save(4, Tokens(12, 200)).tokens, 12u);
  backend_->CompleteAll();
  EXPECT_LT(Lookup(Tokens(8)), 8u);
}

TEST_F(SaveTest, WhatIsLoadedSavesItsCompute) {
  const Prompt prompt = Tokens(6);  // the last block has two tokens
  SaveAndWait(0, prompt, {.recompute_cost_per_token = absl::Milliseconds(3)});
  ASSERT_TRUE(paged_->Load(prompt, Table(1)).ok());
  backend_->CompleteAll();
  const CacheCounters counters = cache_->stats().counters;
  EXPECT_NEAR(absl::ToDoubleMilliseconds(counters.compute_saved), 18, 0.001);
  EXPECT_EQ(counters.tokens_loaded, 6u);
}

TEST_F(SaveTest, WhatHangsTogetherIsErasedTogether) {
  SaveAndWait(0, Tokens(12));
  EXPECT_TRUE(cache_->Erase(Keys(Tokens(12))[1]));
  EXPECT_EQ(Lookup(Tokens(12)), 4u);
  cache_->Drain();
  EXPECT_EQ(cache_->Lookup(Keys(Tokens(12))[2]), LookupResult::kMiss);
}

TEST_F(SaveTest, TheEndOfAPromptGoesFirst) {
  SaveAndWait(0, Tokens(16));
  SaveAndWait(1, Tokens(4, 50));
  EXPECT_EQ(Lookup(Tokens(16)), 12u);
}

TEST_F(SaveTest, WithoutChecksumsNothingIsCompared) {
  MakeCache({.checksums = false});
  SaveAndWait(0, Tokens(8));
  backend_->FlipBit(3, 2);
  absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(Tokens(8), Table(1));
  backend_->CompleteAll();
  ASSERT_TRUE(loaded.ok());
  EXPECT_TRUE(loaded->copies.Wait().ok());
  EXPECT_EQ(Lookup(Tokens(8)), 8u);
}

TEST_F(SaveTest, PagesThatTheBackendCannotReachAreNotSaved) {
  PagedKv kv = kv_;
  kv.space = {MemoryKind::kDevice, 0};
  const std::unique_ptr<PagedCache> paged = *Create(kv);
  absl::StatusOr<PagedCache::Saved> saved = paged->Save(Tokens(8), Table(0));
  ASSERT_TRUE(saved.ok());
  EXPECT_TRUE(absl::IsInvalidArgument(saved->copies.Wait())) << saved->copies.Wait();
  cache_->Drain();
  EXPECT_EQ(InUse(), 0u);
  EXPECT_EQ(Lookup(Tokens(8)), 0u);
}

TEST_F(SaveTest, NoMemoryFromTheBackendStopsIt) {
  backend_->FailNextAllocate(absl::InternalError("injected"));
  const PagedCache::Saved saved = Save(0, Tokens(8));
  EXPECT_EQ(saved.tokens, 0u);
  EXPECT_EQ(saved.stopped.code(), absl::StatusCode::kInternal) << saved.stopped;
  EXPECT_TRUE(saved.copies.Done());
  EXPECT_EQ(InUse(), 0u);
}

TEST_F(SaveTest, WhatTheEngineHasCountsAsLoaded) {
  const auto load = [this](uint32_t first_token, absl::Span<const int32_t> table) {
    return paged_->Load(Tokens(9), table, {}, first_token);
  };
  EXPECT_EQ(load(8, Table(0))->tokens, 8u);  // a miss
  EXPECT_EQ(load(8, {0})->tokens, 8u);       // no room for a block
  SaveAndWait(0, Tokens(4));
  EXPECT_EQ(load(8, Table(0))->tokens, 8u);  // not so far
  EXPECT_TRUE(load(8, Table(0))->copies.Done());
  EXPECT_TRUE(absl::IsInvalidArgument(load(12, Table(0)).status()));
}

TEST_F(SaveTest, WhatTheEngineHasStaysInUse) {
  SaveAndWait(0, Tokens(8));
  const uint64_t before = cache_->stats().counters.block_hits;
  const auto loaded = paged_->Load(Tokens(8), Table(0), {}, 8);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->copies.size(), 0u);
  EXPECT_EQ(cache_->stats().counters.block_hits, before + 2);
}

TEST_F(SaveTest, OtherImagesBehindTheSamePlaceholdersAreOtherPrompts) {
  const Prompt prompt(8, 9);
  const auto hash = [&](absl::string_view digest, uint32_t first) {
    const PromptItem item = {first, 4, digest};
    return *paged_->Hash(prompt, {.items = {&item, 1}});
  };
  Compute(0, prompt);
  const absl::StatusOr<PagedCache::Saved> saved = paged_->Save(hash("image 1", 2), Table(0));
  backend_->CompleteAll();
  ASSERT_TRUE(saved.ok() && saved->copies.Wait().ok());
  EXPECT_EQ(*paged_->Lookup(hash("image 1", 2)), 8u);
  EXPECT_EQ(*paged_->Lookup(hash("image 2", 2)), 0u);
  EXPECT_EQ(*paged_->Lookup(hash("image 1", 3)), 0u);
  EXPECT_EQ(*paged_->Lookup(hash("image 1", 5)), 0u);
  EXPECT_EQ(Lookup(prompt), 0u);
  EXPECT_EQ(paged_->Load(hash("image 2", 2), Table(1))->tokens, 0u);
  EXPECT_EQ(paged_->Load(hash("image 1", 2), Table(1))->tokens, 8u);
  backend_->CompleteAll();
  EXPECT_TRUE(absl::IsInvalidArgument(
      paged_->Hash(prompt, {.items = {PromptItem{.first_token = 1, .tokens = 1}}}).status()));
}

TEST_F(SaveTest, AnAdapterAndATenantOfARequestShareNothingWithOthers) {
  const Prompt prompt = Tokens(8);
  SaveAndWait(0, prompt);
  EXPECT_EQ(*paged_->Lookup(*paged_->Hash(prompt, {.adapter = "", .tenant = ""})), 8u);
  std::vector<PagedCache::Prompt> others;
  for (const PromptOptions& options :
       {PromptOptions{.adapter = "lora"}, PromptOptions{.tenant = "lora"},
        PromptOptions{.adapter = "lora", .tenant = "lora"}}) {
    const PagedCache::Prompt hashed = *paged_->Hash(prompt, options);
    EXPECT_EQ(*paged_->Lookup(hashed), 0u);
    const absl::StatusOr<PagedCache::Saved> saved = paged_->Save(hashed, Table(0));
    backend_->CompleteAll();
    ASSERT_TRUE(saved.ok() && saved->copies.Wait().ok());
    EXPECT_EQ(*paged_->Lookup(hashed), 8u);
    others.push_back(hashed);
  }
  EXPECT_EQ(cache_->stats().namespaces.size(), 5u);  // the default, its own, and these
  others.clear();
  cache_->Clear();
  EXPECT_EQ(cache_->stats().namespaces.size(), 2u);
}

TEST_F(SaveTest, APagedCacheMayOutliveItsCache) {
  const Prompt prompt = Tokens(8);
  SaveAndWait(0, prompt);
  const PagedCache::Prompt hashed = *paged_->Hash(prompt, {.tenant = "lora"});
  cache_.reset();
  EXPECT_EQ(*paged_->Lookup(prompt), 0u);
  EXPECT_EQ(*paged_->Lookup(hashed), 0u);
  EXPECT_EQ(paged_->Load(prompt, Table(0))->tokens, 0u);
  for (const PagedCache::Prompt& saved : {*paged_->Hash(prompt), hashed}) {
    EXPECT_EQ(paged_->Save(saved, Table(0))->stopped.code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(SaveTest, APromptThatGrowsHasTheKeysOfTheWholeOne) {
  const Prompt prompt = Tokens(14);
  const std::vector<PromptItem> items = {{1, 5, "a"}, {6, 1, "b"}, {10, 9, "c"}, {13, 1, "d"}};
  const PagedCache::Prompt whole = *paged_->Hash(prompt, {.items = items});
  ASSERT_EQ(whole.keys().size(), 4u);
  const absl::Span<const int32_t> tokens = prompt;
  for (size_t first = 1; first < 14; ++first) {
    for (size_t second = first; second < 14; ++second) {
      const auto items_in = [&items](size_t begin, size_t end) {
        std::vector<PromptItem> in;
        for (const PromptItem& item : items) {
          if (item.first_token >= begin && item.first_token < end) in.push_back(item);
        }
        return in;
      };
      PagedCache::Prompt grown =
          *paged_->Hash(tokens.subspan(0, first), {.items = items_in(0, first)});
      if (second > first) {
        ASSERT_TRUE(
            grown.Append(tokens.subspan(first, second - first), items_in(first, second)).ok());
      }
      ASSERT_TRUE(grown.Append(tokens.subspan(second), items_in(second, 14)).ok());
      EXPECT_EQ(grown.tokens(), 14u);
      EXPECT_EQ(grown.keys(), whole.keys()) << first << " " << second;
      // Items may also be said before their tokens are there.
      grown = *paged_->Hash(tokens.subspan(0, first), {.items = items});
      ASSERT_TRUE(grown.Append(tokens.subspan(first)).ok());
      EXPECT_EQ(grown.keys(), whole.keys()) << first;
    }
  }
  PagedCache::Prompt refused = whole;
  EXPECT_TRUE(absl::IsInvalidArgument(refused.Append({})));
  EXPECT_TRUE(absl::IsInvalidArgument(refused.Append(tokens, {PromptItem{13, 1, "e"}})));
  EXPECT_EQ(refused.keys(), whole.keys());
}

TEST_F(SaveTest, APromptIsHashedOnceForSaveLookupAndLoad) {
  const PagedCache::Prompt prompt = *paged_->Hash(Tokens(10));
  Compute(0, Tokens(10));
  const absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt, Table(0));
  backend_->CompleteAll();
  ASSERT_TRUE(saved.ok() && saved->copies.Wait().ok());
  EXPECT_EQ(*paged_->Lookup(prompt), 10u);
  Fill(1, std::byte{0xEE});
  const absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(prompt, Table(1));
  backend_->CompleteAll();
  ASSERT_TRUE(loaded.ok() && loaded->copies.Wait().ok());
  EXPECT_TRUE(HasOnly(1, Tokens(10), 0, 10, std::byte{0xEE}));
  const std::unique_ptr<PagedCache> other = *Create(kv_);
  EXPECT_TRUE(absl::IsInvalidArgument(other->Lookup(prompt).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(other->Load(prompt, Table(1)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(other->Save(prompt, Table(1)).status()));
}

TEST_F(SaveTest, EveryLoadIsARequestWithTheTokensThatItAsksForFindsAndLoads) {
  PagedCacheOptions options = paged_->options();
  options.short_last_block = false;
  paged_ = *PagedCache::Create(cache_.get(), kv_, options);
  SaveAndWait(0, Tokens(8));
  const auto load = [this](size_t tokens, uint32_t first_token) {
    ASSERT_TRUE(paged_->Load(Tokens(tokens), Table(1), {}, first_token).ok());
    backend_->CompleteAll();
  };
  load(3, 0);   // in no block
  load(10, 0);  // two whole blocks are there
  load(8, 8);   // the engine has them
  load(8, 5);
  const CacheCounters counters = cache_->stats().counters;
  EXPECT_EQ(counters.request_lookups, 4u);
  EXPECT_EQ(counters.request_hits, 2u);
  EXPECT_EQ(counters.tokens_looked_up, 3u + 10 + 8 + 8);
  EXPECT_EQ(counters.tokens_found, 8u + 8 + 8);
  EXPECT_EQ(counters.tokens_loaded, 8u + 0 + 3);
}

TEST_F(SaveTest, ASaveEndsWithWhatBecameOfTheBlocksThatItLeftToAnother) {
  for (const bool fails : {false, true}) {
    const Prompt prompt = Tokens(8, fails ? 50 : 1);
    const PagedCache::Saved first = Save(0, prompt);
    const PagedCache::Saved second = Save(1, prompt);
    EXPECT_EQ(second.tokens, 8u);
    EXPECT_EQ(second.copied_tokens, 0u);
    EXPECT_EQ(second.copies.size(), 2u);
    EXPECT_FALSE(second.copies.Done());
    if (fails) backend_->Fail(0, absl::InternalError("injected"));
    backend_->CompleteAll();
    EXPECT_EQ(first.copies.Wait().ok(), !fails);
    const absl::Status end = second.copies.Wait();
    EXPECT_EQ(end.code(), fails ? absl::StatusCode::kAborted : absl::StatusCode::kOk) << end;
    EXPECT_EQ(Lookup(prompt), fails ? 0u : 8u);
  }
}

TEST_F(SaveTest, ASaveCopiesWhatIsBehindTheBlocksThatItLeftToAnother) {
  const PagedCache::Saved first = Save(0, Tokens(8));
  const PagedCache::Saved second = Save(1, Tokens(12));
  EXPECT_EQ(second.copied_tokens, 4u);
  EXPECT_EQ(second.copies.size(), kLayers + 2u);
  backend_->CompleteAll();
  EXPECT_TRUE(first.copies.Wait().ok() && second.copies.Wait().ok());
  EXPECT_EQ(Lookup(Tokens(12)), 12u);
}

TEST_F(SaveTest, ErasedBlocksAreAbortedForWhoWaitsForThem) {
  const PagedCache::Saved first = Save(0, Tokens(8));
  const PagedCache::Saved second = Save(1, Tokens(8));
  cache_->Clear();
  backend_->CompleteAll();
  first.copies.Wait().IgnoreError();
  EXPECT_TRUE(absl::IsAborted(second.copies.Wait())) << second.copies.Wait();
}

TEST_F(SaveTest, ABlockThatAStrangerWritesEndsWhatIsSaved) {
  WriteLease stranger = *cache_->Reserve(Keys(Tokens(8))[0], {kBlockBytes, kLayers},
                                         {.ns = *cache_->Register(paged_->options().ns)});
  const PagedCache::Saved saved = Save(0, Tokens(8));
  EXPECT_EQ(saved.tokens, 0u);
  EXPECT_TRUE(absl::IsUnavailable(saved.stopped)) << saved.stopped;
  EXPECT_TRUE(saved.copies.Done());
}

TEST_F(SaveTest, BlocksThatAreNoBlocksOfTheCacheAreRefused) {
  MakeCache({.capacity_bytes = kBlockBytes});
  PagedKv larger = kv_;
  larger.layout.head_dim *= 2;
  larger.page_stride = 2 * larger.PageBytes();
  EXPECT_TRUE(absl::IsInvalidArgument(Create(larger).status())) << Create(larger).status();

  PagedKv layers = kv_;
  layers.layout.layers = kMostParts + 1;
  layers.layers.resize(kMostParts + 1, kv_.layers[0]);
  const absl::Status status = Create(layers).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(status.message().find("layers"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace kvcache
