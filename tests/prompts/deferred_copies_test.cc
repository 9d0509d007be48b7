// PagedCache over a backend whose copies end when the test says so, in any order, well or not.
#include "kvcache/tests/prompts/deferred_copies.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {
namespace {

TEST_F(DeferredCopiesTest, ABlockIsVisibleWhenTheLastOfItsLayersIsCopied) {
  const PagedCache::Saved saved = Save(0, Tokens(12));
  ASSERT_EQ(backend_->pending(), 6u);
  // Layer 0 of the three blocks first, then layer 1.
  for (int block = 0; block < 3; ++block) backend_->Complete(0);
  EXPECT_TRUE(saved.copies.PartDone(0));
  EXPECT_EQ(Lookup(Tokens(12)), 0u);
  backend_->Complete(1);  // of block 1, whose parent is not complete
  EXPECT_EQ(Lookup(Tokens(12)), 0u);
  backend_->Complete(0);
  EXPECT_EQ(Lookup(Tokens(12)), 8u);
  backend_->Complete(0);
  EXPECT_EQ(Lookup(Tokens(12)), 12u);
  EXPECT_TRUE(saved.copies.Wait().ok());
}

TEST_F(DeferredCopiesTest, AFailedCopyTakesItsBlockAndThoseBehindIt) {
  const PagedCache::Saved saved = Save(0, Tokens(12));
  // Block 1 fails in layer 0; the others are copied, the last one before that.
  backend_->Complete(5);
  backend_->Complete(2);
  backend_->Fail(1, absl::InternalError("injected"));
  backend_->CompleteAll();
  EXPECT_EQ(saved.copies.Wait().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Lookup(Tokens(12)), 4u);
  cache_->Drain();
  EXPECT_EQ(InUse(), kBlockBytes);
  // Who saves it again copies what is missing.
  const PagedCache::Saved again = Save(1, Tokens(12));
  EXPECT_EQ(again.copied_tokens, 8u);
  backend_->CompleteAll();
  EXPECT_EQ(Lookup(Tokens(12)), 12u);
}

TEST_F(DeferredCopiesTest, WhatSomebodyElseSavesIsNotCopiedTwice) {
  const PagedCache::Saved first = Save(0, Tokens(8));
  Prompt longer = Tokens(8);
  longer.insert(longer.end(), {50, 51, 52, 53});
  const PagedCache::Saved second = Save(1, longer);
  EXPECT_EQ(second.tokens, 12u);
  EXPECT_EQ(second.copied_tokens, 4u);
  EXPECT_EQ(backend_->pending(), 6u);
  // The end is there before its beginning.
  backend_->Complete(4);
  backend_->Complete(4);
  EXPECT_FALSE(second.copies.Done());
  EXPECT_EQ(Lookup(longer), 0u);
  backend_->CompleteAll();
  EXPECT_TRUE(first.copies.Wait().ok());
  EXPECT_TRUE(second.copies.Wait().ok());
  EXPECT_EQ(Lookup(longer), 12u);
}

TEST_F(DeferredCopiesTest, TheEndOfAPromptGoesWhenSomebodyElseFailsItsBeginning) {
  const PagedCache::Saved first = Save(0, Tokens(4));
  const PagedCache::Saved second = Save(1, Tokens(8));
  EXPECT_EQ(second.copied_tokens, 4u);
  backend_->Complete(2);
  backend_->Complete(2);
  backend_->Fail(0, absl::InternalError("injected"));
  backend_->CompleteAll();
  EXPECT_FALSE(first.copies.Wait().ok());
  EXPECT_EQ(Lookup(Tokens(8)), 0u);
  cache_->Drain();
  EXPECT_EQ(InUse(), 0u);
}

TEST_F(DeferredCopiesTest, LayersAreLoadedOneByOne) {
  SaveAndWait(0, Tokens(10));
  Fill(1, std::byte{0xEE});
  absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(Tokens(10), Table(1));
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->tokens, 10u);
  ASSERT_EQ(backend_->pending(), 6u);
  for (int block = 0; block < 3; ++block) {
    EXPECT_FALSE(loaded->copies.PartDone(0));
    backend_->Complete(0);
  }
  EXPECT_TRUE(loaded->copies.WaitPart(0).ok());
  EXPECT_FALSE(loaded->copies.PartDone(1));
  backend_->CompleteAll();
  EXPECT_TRUE(loaded->copies.Wait().ok());
  EXPECT_TRUE(HasOnly(1, Tokens(10), 0, 10, std::byte{0xEE}));
}

// The backend aborts when an extent is freed, or used again, before its copies have ended.
TEST_F(DeferredCopiesTest, BlocksStayWhileTheyAreLoadedWhateverBecomesOfThem) {
  SaveAndWait(0, Tokens(12));
  Fill(1, std::byte{0xEE});
  {
    absl::StatusOr<PagedCache::Loaded> dropped = paged_->Load(Tokens(12), Table(1));
    ASSERT_TRUE(dropped.ok());
  }
  cache_->Clear();
  EXPECT_EQ(cache_->stats().usage.bytes_detached, 3 * kBlockBytes);
  backend_->CompleteAll();
  EXPECT_TRUE(HasOnly(1, Tokens(12), 0, 12, std::byte{0xEE}));
  cache_->Drain();
  EXPECT_EQ(InUse(), 0u);
}

TEST_F(DeferredCopiesTest, AnErasedPromptMayBeSavedAgainWhileTheOldCopiesAreUnderWay) {
  PagedCache::Saved first = Save(0, Tokens(8));
  cache_->Clear();
  PagedCache::Saved second = Save(1, Tokens(8));
  EXPECT_EQ(second.copied_tokens, 8u);
  backend_->CompleteAll();
  EXPECT_TRUE(first.copies.Done());
  EXPECT_TRUE(second.copies.Wait().ok());
  EXPECT_EQ(Lookup(Tokens(8)), 8u);
  cache_->Drain();
  EXPECT_EQ(InUse(), 2 * kBlockBytes);
}

TEST_F(DeferredCopiesTest, CorruptBlocksAreDroppedAndMayBeSavedAgain) {
  SaveAndWait(0, Tokens(12));
  backend_->FlipBit(kBlockBytes + 3, 2);  // in block 1
  Fill(1, std::byte{0xEE});
  absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(Tokens(12), Table(1));
  ASSERT_TRUE(loaded.ok());
  backend_->CompleteAll();
  EXPECT_TRUE(absl::IsDataLoss(loaded->copies.Wait()));
  EXPECT_TRUE(absl::IsDataLoss(loaded->copies.WaitPart(0)));
  EXPECT_TRUE(loaded->copies.WaitPart(1).ok());
  EXPECT_EQ(Lookup(Tokens(12)), 4u);
  SaveAndWait(0, Tokens(12));
  EXPECT_EQ(Lookup(Tokens(12)), 12u);
}

TEST_F(DeferredCopiesTest, BlocksThatCannotBeReadAreDroppedUnlessTheReaderIsToBlame) {
  for (const auto& [code, tokens_left] :
       {std::pair(absl::StatusCode::kInternal, 4u), std::pair(absl::StatusCode::kUnavailable, 4u),
        std::pair(absl::StatusCode::kUnknown, 4u),
        std::pair(absl::StatusCode::kFailedPrecondition, 12u),
        std::pair(absl::StatusCode::kCancelled, 12u)}) {
    SaveAndWait(0, Tokens(12));
    absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(Tokens(12), Table(1));
    ASSERT_TRUE(loaded.ok());
    backend_->Fail(4, absl::Status(code, "bad sector"));  // layer 1 of block 1
    backend_->CompleteAll();
    EXPECT_EQ(loaded->copies.Wait().code(), code);
    EXPECT_EQ(Lookup(Tokens(12)), tokens_left) << loaded->copies.Wait();
  }
}

TEST_F(DeferredCopiesTest, CancelledCopiesLeaveNothingBehind) {
  const PagedCache::Saved saved = Save(0, Tokens(12));
  backend_->Complete(0);
  saved.copies.Cancel();
  EXPECT_TRUE(absl::IsCancelled(saved.copies.Wait()));
  cache_->Drain();
  EXPECT_EQ(Lookup(Tokens(12)), 0u);
  EXPECT_EQ(InUse(), 0u);
}

// Many prompts that share beginnings in a cache that is too small, with copies that end in random
// order or fail. What is loaded well is right, and nothing else is written.
class RandomCopiesTest : public DeferredCopiesTest, public testing::WithParamInterface<int> {
 protected:
  RandomCopiesTest() : DeferredCopiesTest(/*capacity_blocks=*/14) {}

  struct Copying {
    uint32_t place;
    Prompt prompt;
    bool load;
    uint32_t first;
    uint32_t tokens;
    Transfer copies;
  };

  Prompt RandomPrompt() {
    Prompt prompt = Tokens(1 + random_() % (kPagesEach * kPageTokens), 1);
    for (size_t t = random_() % 16; t < prompt.size(); ++t) prompt[t] = random_() % 2;
    return prompt;
  }
  void Start(uint32_t place) {
    const Prompt prompt = RandomPrompt();
    if (random_() % 2 == 0) {
      Compute(place, prompt);
      absl::StatusOr<PagedCache::Saved> saved = paged_->Save(prompt, Table(place));
      ASSERT_TRUE(saved.ok()) << saved.status();
      ASSERT_LE(saved->copied_tokens, saved->tokens);
      ASSERT_EQ(saved->tokens == prompt.size(), saved->stopped.ok()) << saved->stopped;
      under_way_.push_back({place, prompt, false, 0, saved->tokens, std::move(saved->copies)});
      return;
    }
    Fill(place, kBefore);
    const uint32_t most = static_cast<uint32_t>(prompt.size()) / kBlockTokens;
    const uint32_t first = random_() % (kBlockTokens * std::min(most, 2u) + 1);
    absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(prompt, Table(place), {}, first);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    under_way_.push_back({place, prompt, true, first, loaded->tokens, std::move(loaded->copies)});
  }
  // Ends what has ended: the place is free, and full of other things.
  void Collect() {
    for (size_t i = 0; i < under_way_.size();) {
      Copying& copying = under_way_[i];
      if (!copying.copies.Done()) {
        ++i;
        continue;
      }
      if (copying.load && copying.copies.Wait().ok()) {
        ASSERT_TRUE(HasOnly(copying.place, copying.prompt, copying.first, copying.tokens, kBefore));
        loaded_tokens_ += copying.tokens - copying.first;
      }
      Fill(copying.place, std::byte{0x99});
      free_.push_back(copying.place);
      std::swap(copying, under_way_.back());
      under_way_.pop_back();
    }
  }

  static constexpr std::byte kBefore{0xEE};
  std::mt19937 random_{static_cast<uint32_t>(GetParam())};
  std::vector<uint32_t> free_;
  std::vector<Copying> under_way_;
  size_t loaded_tokens_ = 0;
};

TEST_P(RandomCopiesTest, WhatIsLoadedIsRight) {
  for (uint32_t place = 0; place < places_; ++place) free_.push_back(place);
  for (int step = 0; step < 600; ++step) {
    const uint32_t choice = random_() % 12;
    if (choice < 4 && !free_.empty()) {
      const uint32_t place = free_.back();
      free_.pop_back();
      ASSERT_NO_FATAL_FAILURE(Start(place));
    } else if (choice == 11 && step % 5 == 0) {
      cache_->Clear();
    } else if (choice == 10 && backend_->pending() > 0 && random_() % 4 == 0) {
      backend_->Fail(random_() % backend_->pending(), absl::InternalError("injected"));
    } else {
      for (int i = 0; i < 3 && backend_->pending() > 0; ++i) {
        backend_->Complete(random_() % backend_->pending());
      }
    }
    ASSERT_NO_FATAL_FAILURE(Collect());
  }
  backend_->CompleteAll();
  ASSERT_NO_FATAL_FAILURE(Collect());
  EXPECT_TRUE(under_way_.empty());
  EXPECT_GT(loaded_tokens_, 0u);
  cache_->Clear();
  cache_->Drain();
  EXPECT_EQ(InUse(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomCopiesTest, testing::Range(0, 100));

}  // namespace
}  // namespace kvcache
