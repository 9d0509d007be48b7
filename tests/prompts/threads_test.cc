// PagedCache used by several threads, while another one ends the copies.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/tests/prompts/deferred_copies.h"

namespace kvcache {
namespace {

class ThreadsTest : public DeferredCopiesTest {
 protected:
  static constexpr uint32_t kThreads = 4;  // each has pages of its own
  static constexpr std::byte kBefore{0xEE};

  ThreadsTest() : DeferredCopiesTest(/*capacity_blocks=*/20, /*places=*/kThreads) {}

  // Saves and loads prompts that begin alike; counts the tokens that were loaded.
  void Serve(uint32_t place, int steps) {
    std::mt19937 random(place);
    for (int step = 0; step < steps; ++step) {
      Prompt prompt = Tokens(1 + random() % (kPagesEach * kPageTokens));
      for (size_t t = random() % 16; t < prompt.size(); ++t) prompt[t] = random() % 2;
      Fill(place, kBefore);
      absl::StatusOr<PagedCache::Loaded> loaded = paged_->Load(prompt, Table(place));
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      if (loaded->copies.Wait().ok()) {
        EXPECT_TRUE(HasOnly(place, prompt, 0, loaded->tokens, kBefore));
        loaded_tokens_ += loaded->tokens;
      }
      PagedCache::Saved saved = Save(place, prompt);
      saved.copies.Wait().IgnoreError();
      if (step % 16 == 0) cache_->Clear();
    }
  }

  std::atomic<size_t> loaded_tokens_ = 0;
};

TEST_F(ThreadsTest, WhatIsLoadedIsRight) {
  std::atomic<uint32_t> working = kThreads;
  std::vector<std::thread> threads;
  for (uint32_t place = 0; place < kThreads; ++place) {
    threads.emplace_back([&, place] {
      Serve(place, 150);
      --working;
    });
  }
  std::mt19937 random(7);
  while (working > 0) {
    const size_t pending = backend_->pending();
    if (pending == 0) {
      std::this_thread::yield();
    } else if (random() % 32 == 0) {
      backend_->Fail(random() % pending, absl::InternalError("injected"));
    } else {
      backend_->Complete(random() % pending);
    }
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(loaded_tokens_, 0u);
  cache_->Clear();
  cache_->Drain();
  EXPECT_EQ(InUse(), 0u);
}

}  // namespace
}  // namespace kvcache
