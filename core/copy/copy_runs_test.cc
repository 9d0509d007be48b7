#include "kvcache/core/copy/copy_runs.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/copy/copy_routine.h"

namespace kvcache {
namespace {

using internal::CopyRoutine;

class RunCopierTest : public testing::TestWithParam<CopyRoutine> {
 protected:
  // Copies runs of these sizes between random places, in random order; bytes between them stay.
  void CheckRuns(const std::vector<size_t>& sizes, bool at_lines, uint32_t seed) {
    std::mt19937 random(seed);
    struct Run {
      size_t to, from, bytes;
    };
    std::vector<Run> runs;
    size_t to = 0, from = 0;
    for (size_t bytes : sizes) {
      to += at_lines ? -to % 64 : random() % 70;
      from += random() % 70;
      runs.push_back({to, from, bytes});
      to += bytes;
      from += bytes;
    }
    std::shuffle(runs.begin(), runs.end(), random);
    std::vector<std::byte> source(from + 1);
    for (std::byte& byte : source) byte = static_cast<std::byte>(random());
    std::vector<std::byte> memory(to + 128, std::byte{0xa5});
    std::byte* const first = memory.data() + -reinterpret_cast<uintptr_t>(memory.data()) % 64;
    std::vector<std::byte> expected = memory;
    std::byte* const first_expected = expected.data() + (first - memory.data());
    RunCopier copier(GetParam());
    for (const Run& run : runs) {
      copier.Add(first + run.to, source.data() + run.from, run.bytes);
      std::copy_n(source.data() + run.from, run.bytes, first_expected + run.to);
    }
    copier.Finish();
    ASSERT_TRUE(memory == expected) << "seed " << seed;
  }
};

TEST_P(RunCopierTest, CopiesNothing) { CheckRuns({}, false, 1); }

TEST_P(RunCopierTest, CopiesEveryShortLength) {
  std::vector<size_t> sizes(400);
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = i;
  CheckRuns(sizes, false, 1);
  CheckRuns(sizes, true, 2);
}

TEST_P(RunCopierTest, CopiesManyRunsOfOneByte) {
  CheckRuns(std::vector<size_t>(1000, 1), false, 1);
}

TEST_P(RunCopierTest, CopiesRandomLengths) {
  std::mt19937 random(1);
  for (uint32_t seed = 0; seed < 100; ++seed) {
    std::vector<size_t> sizes(random() % 100);
    const size_t most = size_t{1} << (1 + random() % 14);
    const bool lines = random() % 2 == 0;
    for (size_t& bytes : sizes) bytes = lines ? random() % most / 64 * 64 : random() % most;
    CheckRuns(sizes, random() % 2 == 0, seed);
  }
}

TEST_P(RunCopierTest, CopiesRunsLongerThanWhatIsFetchedAhead) {
  CheckRuns({300000, 64, 200001, 70000, 0, 131072}, false, 1);
}

TEST_P(RunCopierTest, FinishesWhatWaitsWhenItGoes) {
  const std::vector<std::byte> from(100, std::byte{3});
  std::vector<std::byte> to(100);
  { RunCopier(GetParam()).Add(to.data(), from.data(), 100); }
  EXPECT_EQ(to, from);
}

INSTANTIATE_TEST_SUITE_P(EveryRoutine, RunCopierTest,
                         testing::ValuesIn(internal::SupportedCopyRoutines()));

}  // namespace
}  // namespace kvcache
