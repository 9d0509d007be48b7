// The chain policy against LRU on made-up traffic, both through the real cache: prompts are
// matched, and the blocks that are missing are put with their parents.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/chain/chain.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

constexpr size_t kBlock = 64;
constexpr size_t kBlocks = 1'000;

using Prompt = std::vector<uint64_t>;  // numbers of its blocks
using Requests = std::vector<Prompt>;

BlockKey Key(uint64_t number) {
  BlockKey key;
  for (size_t at = 0; at < key.bytes.size(); at += 8) {
    number = (number + 1) * 0x9e3779b97f4a7c15;
    number ^= number >> 29;
    std::memcpy(&key.bytes[at], &number, 8);
  }
  return key;
}

// The share of all blocks asked for that were there, in unbroken prefixes.
double PrefixHitRatio(const Requests& requests, std::unique_ptr<EvictionPolicy> policy,
                      size_t blocks = kBlocks) {
  CacheOptions options;
  options.max_blocks = blocks;
  const std::unique_ptr<Cache> cache = *Cache::Create(
      options, *CreateAccountingBackend({.capacity_bytes = blocks * kBlock}), std::move(policy));
  size_t hits = 0;
  size_t asked = 0;
  for (const Prompt& prompt : requests) {
    std::vector<BlockKey> keys;
    for (uint64_t number : prompt) keys.push_back(Key(number));
    const PrefixMatch match = cache->Match({.keys = keys});
    hits += match.blocks.size();
    asked += keys.size();
    PutOptions put;
    put.chain_blocks = static_cast<uint32_t>(keys.size());
    for (size_t i = match.blocks.size(); i < keys.size(); ++i) {
      if (i > 0) put.parent = keys[i - 1];
      absl::StatusOr<WriteLease> lease = cache->Reserve(keys[i], {kBlock, 1}, put);
      if (!lease.ok() || !lease->Commit().ok()) break;
    }
  }
  return static_cast<double>(hits) / static_cast<double>(asked);
}

// Makes prompts; the same for the same seed.
class Traffic {
 public:
  explicit Traffic(uint64_t seed = 1) : random_(seed) {}

  // The same prompts over and over, `blocks` in all, after `shared` blocks that all have.
  Requests Loop(size_t blocks, int requests, size_t shared = 0) {
    constexpr size_t kPrompt = 20;
    const Prompt head = New(shared);
    Requests round;
    for (size_t i = 0; i < blocks / kPrompt; ++i) round.push_back(Extended(head, kPrompt));
    Requests all;
    for (int i = 0; i < requests; ++i) all.push_back(round[i % round.size()]);
    return all;
  }

  // Prompts that never come back.
  Requests Scan(int requests) {
    Requests all;
    for (int i = 0; i < requests; ++i) all.push_back(New(10 + Below(30)));
    return all;
  }

  // Many prompts, some far more popular than others.
  Requests Popular(int prompts, int requests) {
    Requests choice;
    std::vector<double> weights;
    for (int i = 0; i < prompts; ++i) {
      choice.push_back(New(5 + Below(35)));
      weights.push_back(1.0 / (i + 1));
    }
    std::discrete_distribution<int> any(weights.begin(), weights.end());
    Requests all;
    for (int i = 0; i < requests; ++i) all.push_back(choice[any(random_)]);
    return all;
  }

  // Conversations under a few system prompts, `at_once` of them under way; each goes on with odds
  // of 3 in 4 and then asks for all that was said before.
  Requests Conversations(int at_once, int requests, size_t system_blocks = 8) {
    Requests systems;
    for (int i = 0; i < 5; ++i) systems.push_back(New(system_blocks));
    Requests open;
    Requests all;
    for (int i = 0; i < requests; ++i) {
      if (open.size() < static_cast<size_t>(at_once)) {
        open.push_back(Extended(systems[std::min(Below(5), Below(5))], 2 + Below(18)));
      }
      Prompt& prompt = open[Below(open.size())];
      all.push_back(prompt);
      if (Below(4) > 0) {
        prompt = Extended(prompt, 1 + Below(7));
      } else {
        std::swap(prompt, open.back());
        open.pop_back();
      }
    }
    return all;
  }

  static Requests Then(Requests first, const std::vector<Requests>& later) {
    for (const Requests& part : later) first.insert(first.end(), part.begin(), part.end());
    return first;
  }
  // One of each in turn.
  static Requests Mixed(const Requests& a, const Requests& b) {
    Requests all;
    for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
      if (i < a.size()) all.push_back(a[i]);
      if (i < b.size()) all.push_back(b[i]);
    }
    return all;
  }

 private:
  size_t Below(size_t limit) { return random_() % limit; }
  Prompt New(size_t blocks) { return Extended({}, blocks); }
  Prompt Extended(Prompt prompt, size_t blocks) {
    for (size_t i = 0; i < blocks; ++i) prompt.push_back(next_block_++);
    return prompt;
  }

  std::mt19937_64 random_;
  uint64_t next_block_ = 0;
};

struct Ratios {
  double chain;
  double lru;
};
Ratios Replay(const Requests& requests) {
  const Ratios ratios = {PrefixHitRatio(requests, CreateChainPolicy()),
                         PrefixHitRatio(requests, CreateLruPolicy())};
  testing::Test::RecordProperty("chain", std::to_string(ratios.chain));
  testing::Test::RecordProperty("lru", std::to_string(ratios.lru));
  return ratios;
}

TEST(WorkloadsTest, ALoopThatDoesNotFitIsKeptAsFarAsItFits) {
  for (size_t blocks : {kBlocks * 11 / 10, kBlocks * 2, kBlocks * 5}) {
    const int rounds = 40;
    const Ratios ratios = Replay(Traffic().Loop(blocks, rounds * static_cast<int>(blocks) / 20));
    EXPECT_EQ(ratios.lru, 0) << blocks;
    EXPECT_GT(ratios.chain, 0.9 * kBlocks / static_cast<double>(blocks)) << blocks;
  }
}

TEST(WorkloadsTest, ALoopThatFitsIsKept) {
  const Ratios ratios = Replay(Traffic().Loop(kBlocks * 9 / 10, 2'000));
  EXPECT_EQ(ratios.chain, ratios.lru);
}

TEST(WorkloadsTest, ASystemPromptOverALoopIsKept) {
  const Ratios ratios = Replay(Traffic().Loop(2 * kBlocks, 4'000, /*shared=*/10));
  EXPECT_GT(ratios.chain, ratios.lru + 0.2);
}

TEST(WorkloadsTest, PopularPromptsAreKeptThroughAScan) {
  Traffic traffic;
  const Ratios ratios = Replay(Traffic::Mixed(traffic.Popular(500, 4'000), traffic.Scan(4'000)));
  EXPECT_GT(ratios.chain, ratios.lru + 0.1);
}

TEST(WorkloadsTest, PopularPrompts) {
  const Ratios ratios = Replay(Traffic().Popular(1'000, 6'000));
  EXPECT_GT(ratios.chain, ratios.lru + 0.1);
}

// LRU is hard to beat here: who has just asked asks again. With another seed the difference is
// another one, of up to 0.005 in either direction.
TEST(WorkloadsTest, ConversationsAreServedAsWellAsByLru) {
  for (int at_once : {10, 30, 100, 300}) {
    const Ratios ratios = Replay(Traffic().Conversations(at_once, 6'000));
    EXPECT_GT(ratios.chain, ratios.lru - 0.01) << at_once;
  }
}

TEST(WorkloadsTest, LongSystemPromptsAreServedAsWellAsByLru) {
  const Ratios ratios = Replay(Traffic().Conversations(30, 6'000, /*system_blocks=*/60));
  EXPECT_GT(ratios.chain, ratios.lru - 0.005);
}

TEST(WorkloadsTest, AfterAChangeOfPhaseItLearnsAnew) {
  Traffic traffic;
  const Requests first = traffic.Popular(300, 3'000);
  const Ratios popular = Replay(Traffic::Then(first, {traffic.Popular(300, 3'000)}));
  EXPECT_GT(popular.chain, popular.lru);
  const Ratios to_loop = Replay(Traffic::Then(first, {traffic.Loop(kBlocks * 3 / 2, 3'000)}));
  EXPECT_GT(to_loop.chain, to_loop.lru + 0.1);
  const Ratios to_talk = Replay(
      Traffic::Then(traffic.Loop(kBlocks * 3 / 2, 3'000), {traffic.Conversations(30, 3'000)}));
  EXPECT_GT(to_talk.chain, to_talk.lru + 0.1);
}

TEST(WorkloadsTest, NothingIsGainedOrLostWhereNothingReturns) {
  const Ratios ratios = Replay(Traffic().Scan(2'000));
  EXPECT_EQ(ratios.chain, 0);
}

// Blocks of a quarter of the size, so four times as many of everything.
TEST(WorkloadsTest, TheSizeOfBlocksMattersLittle) {
  const Requests coarse = Traffic().Popular(500, 5'000);
  Requests fine;
  for (const Prompt& prompt : coarse) {
    Prompt& blocks = fine.emplace_back();
    for (uint64_t number : prompt) {
      for (uint64_t quarter = 0; quarter < 4; ++quarter) blocks.push_back(4 * number + quarter);
    }
  }
  EXPECT_NEAR(PrefixHitRatio(coarse, CreateChainPolicy()),
              PrefixHitRatio(fine, CreateChainPolicy(), 4 * kBlocks), 0.02);
}

}  // namespace
}  // namespace kvcache
