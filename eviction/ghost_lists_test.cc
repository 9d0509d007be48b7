#include "kvcache/eviction/ghost_lists.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvcache {
namespace {

TEST(GhostListsTest, FindsWhatWasAddedUntilItIsErased) {
  GhostLists<2> ghosts;
  ghosts.SetMaxGhosts(4);
  EXPECT_EQ(ghosts.Find(7), kNoGhost);
  ghosts.Add(1, 7, 100);
  const Ghost ghost = ghosts.Find(7);
  ASSERT_NE(ghost, kNoGhost);
  EXPECT_EQ(ghosts.ListOf(ghost), 1u);
  EXPECT_EQ(ghosts.BytesOf(ghost), 100u);
  EXPECT_EQ(ghosts.bytes(1), 100u);
  ghosts.Erase(ghost);
  EXPECT_EQ(ghosts.Find(7), kNoGhost);
  EXPECT_EQ(ghosts.bytes(1), 0u);
}

TEST(GhostListsTest, WhenThereAreTooManyTheOldestOfTheListGoes) {
  GhostLists<2> ghosts;
  ghosts.SetMaxGhosts(2);
  ghosts.Add(0, 1, 10);
  ghosts.Add(1, 2, 10);
  ghosts.Add(1, 3, 10);
  EXPECT_NE(ghosts.Find(1), kNoGhost);
  EXPECT_EQ(ghosts.Find(2), kNoGhost);
  ghosts.Erase(ghosts.Find(1));
  ghosts.Add(1, 4, 10);
  ghosts.Add(0, 5, 10);  // its list is empty: another one's oldest
  EXPECT_EQ(ghosts.Find(3), kNoGhost);
  EXPECT_NE(ghosts.Find(5), kNoGhost);
}

TEST(GhostListsTest, AgreesWithTheModelAlsoWhenItGrows) {
  struct Known {
    uint64_t key_hash;
    size_t bytes;
  };
  std::mt19937_64 random(1);
  GhostLists<2> ghosts;
  size_t limit = 10;
  ghosts.SetMaxGhosts(limit);
  std::vector<Known> model[2];
  const auto forget = [&model](uint64_t key_hash) {
    for (std::vector<Known>& list : model) {
      list.erase(std::remove_if(list.begin(), list.end(),
                                [=](const Known& k) { return k.key_hash == key_hash; }),
                 list.end());
    }
  };
  for (int i = 0; i < 100'000; ++i) {
    if (i % 10'000 == 9'999) ghosts.SetMaxGhosts(limit += 7);
    const uint64_t key_hash = random() % 150;
    const size_t list = random() % 2;
    if (random() % 3 == 0) {
      const Ghost ghost = ghosts.Find(key_hash);
      if (ghost != kNoGhost) ghosts.Erase(ghost);
      forget(key_hash);
    } else {
      const size_t bytes = random() % 1000;
      ghosts.Add(list, key_hash, bytes);
      forget(key_hash);
      if (model[0].size() + model[1].size() == limit) {
        std::vector<Known>& shorter = model[model[list].empty() ? 1 - list : list];
        shorter.erase(shorter.begin());
      }
      model[list].push_back({key_hash, bytes});
    }
    for (size_t l : {0, 1}) {
      size_t bytes = 0;
      for (const Known& k : model[l]) {
        bytes += k.bytes;
        ASSERT_NE(ghosts.Find(k.key_hash), kNoGhost) << "call " << i;
        ASSERT_EQ(ghosts.ListOf(ghosts.Find(k.key_hash)), l) << "call " << i;
      }
      ASSERT_EQ(ghosts.bytes(l), bytes) << "call " << i;
      ASSERT_EQ(ghosts.oldest(l) == kNoGhost, model[l].empty()) << "call " << i;
      if (!model[l].empty()) {
        ASSERT_EQ(ghosts.oldest(l), ghosts.Find(model[l].front().key_hash)) << "call " << i;
      }
    }
  }
}

}  // namespace
}  // namespace kvcache
