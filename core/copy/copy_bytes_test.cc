#include "kvcache/core/copy/copy_bytes.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/copy/copy_routine.h"

namespace kvcache {
namespace {

using internal::CopyRoutine;

constexpr std::byte kGuard{0xa5};
constexpr size_t kGuardBytes = 128;

std::vector<std::byte> RandomBytes(size_t size) {
  std::mt19937_64 random(size);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

bool AllGuard(const std::byte* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    if (from[i] != kGuard) return false;
  }
  return true;
}

class CopyBytesTest : public testing::TestWithParam<CopyRoutine> {
 protected:
  static constexpr size_t kMaxBytes = 80 << 10;

  // Both directions, from and to the given offsets of page-aligned buffers.
  void CheckCopy(size_t to_offset, size_t from_offset, size_t bytes) {
    CheckCopy(&internal::CopyPastCache, to_offset, from_offset, bytes);
    CheckCopy(&internal::CopyKeepingInCache, to_offset, from_offset, bytes);
  }

 private:
  void CheckCopy(internal::CopyFunction copy, size_t to_offset, size_t from_offset, size_t bytes) {
    std::byte* const to = to_ + kGuardBytes + to_offset;
    const std::byte* const from = source_.data() + from_offset;
    std::memset(to - kGuardBytes, static_cast<int>(kGuard), bytes + 2 * kGuardBytes);
    copy(GetParam(), to, from, bytes);
    ASSERT_TRUE(bytes == 0 || std::memcmp(to, from, bytes) == 0)
        << bytes << " bytes from offset " << from_offset << " to offset " << to_offset;
    ASSERT_TRUE(AllGuard(to - kGuardBytes, kGuardBytes) && AllGuard(to + bytes, kGuardBytes))
        << bytes << " bytes to offset " << to_offset << " wrote outside of their destination";
  }

  const std::vector<std::byte> source_ = RandomBytes(kMaxBytes + 64);
  std::vector<std::byte> destination_ =
      std::vector<std::byte>(kMaxBytes + 2 * kGuardBytes + 2 * 64);
  // Aligned to a line, so that offsets are alignments.
  std::byte* const to_ =
      destination_.data() + (-reinterpret_cast<uintptr_t>(destination_.data()) % 64);
};

TEST_P(CopyBytesTest, CopiesEveryShortLength) {
  for (size_t bytes = 0; bytes <= 600; ++bytes) CheckCopy(bytes % 64, bytes / 7 % 64, bytes);
}

TEST_P(CopyBytesTest, CopiesBetweenAllAlignments) {
  for (size_t to = 0; to < 64; ++to) {
    for (size_t from = 0; from < 64; from += to % 8 == 0 ? 1 : 7) {
      CheckCopy(to, from, internal::kStreamFromBytes + to + 3 * from);
    }
  }
}

TEST_P(CopyBytesTest, CopiesRandomLengthsAroundTheThresholds) {
  std::mt19937 random(1);
  for (const size_t around : {size_t{512}, internal::kStreamFromBytes, kMaxBytes - 200}) {
    for (int i = 0; i < 100; ++i) {
      CheckCopy(random() % 64, random() % 64, around - 200 + random() % 400);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryRoutine, CopyBytesTest,
                         testing::ValuesIn(internal::SupportedCopyRoutines()));

TEST(CopyBytesPublicTest, CopiesForBothReaders) {
  const std::vector<std::byte> from = RandomBytes(100'000);
  for (const NextRead next_read : {NextRead::kSoon, NextRead::kLater}) {
    std::vector<std::byte> to(from.size());
    CopyBytes(to.data(), from, next_read);
    EXPECT_EQ(to, from);
    CopyBytes(nullptr, {}, next_read);
  }
}

TEST(CopyBytesPublicTest, AnotherThreadSeesTheBytesAfterAJoin) {
  const std::vector<std::byte> from = RandomBytes(100'000);
  std::vector<std::byte> to(from.size());
  std::thread([&] { CopyBytes(to.data(), from, NextRead::kLater); }).join();
  EXPECT_EQ(to, from);
}

#if defined(__SANITIZE_ADDRESS__)

TEST(CopyBytesPublicTest, TheAddressSanitizerSeesWhatTheKernelsTouch) {
  std::vector<std::byte> small(50'000), large(50'001);
  for (const NextRead next_read : {NextRead::kSoon, NextRead::kLater}) {
    // Kernels say where the first bad byte is; memcpy, where the processor copies no faster by
    // itself, says all that it was to copy.
    EXPECT_DEATH(CopyBytes(small.data(), large, next_read), "WRITE of size (1|50001) ");
    EXPECT_DEATH(CopyBytes(large.data(), {small.data(), large.size()}, next_read),
                 "READ of size (1|50001) ");
  }
}

#endif

}  // namespace
}  // namespace kvcache
