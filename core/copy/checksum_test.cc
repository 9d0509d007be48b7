#include "kvcache/core/copy/checksum.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kvcache/core/copy/copy_routine.h"

#define XXH_INLINE_ALL
#include "xxhash.h"

namespace kvcache {
namespace {

using internal::CopyRoutine;

constexpr std::byte kGuard{0xa5};
constexpr size_t kGuardBytes = 64;
constexpr size_t kMaxBytes = 160 << 10;

enum class Use { kUpdate, kCopySoon, kCopyLater, kAnyOfThem };

class ChecksumTest : public testing::TestWithParam<CopyRoutine> {
 protected:
  ChecksumTest() : source_(kMaxBytes + 64), destination_(kMaxBytes + 2 * kGuardBytes + 64) {
    for (std::byte& byte : source_) byte = static_cast<std::byte>(random_());
  }

  size_t Random(size_t below) { return random_() % below; }

  // Appends pieces that cover `bytes` from `from_offset`, each of up to max_piece bytes, and checks
  // the checksum and, after copies to a buffer with guards, the copy.
  void Check(Use use, size_t to_offset, size_t from_offset, size_t bytes, size_t max_piece) {
    destination_.assign(2 * kGuardBytes + to_offset + bytes, kGuard);
    const std::byte* const from = source_.data() + from_offset;
    std::byte* const to = destination_.data() + kGuardBytes + to_offset;
    std::vector<std::byte> expected = destination_;
    Checksum sum(GetParam());
    for (size_t done = 0; done < bytes;) {
      const size_t size =
          std::min(bytes - done, max_piece == kMaxBytes ? bytes : Random(max_piece + 1));
      const Use now = use == Use::kAnyOfThem ? static_cast<Use>(Random(3)) : use;
      const ConstBytes piece(from + done, size);
      if (now == Use::kUpdate) {
        sum.Update(piece);
      } else {
        sum.Copy(to + done, piece, now == Use::kCopySoon ? NextRead::kSoon : NextRead::kLater);
        std::copy(piece.begin(), piece.end(), expected.begin() + kGuardBytes + to_offset + done);
      }
      done += size;
    }
    ASSERT_EQ(sum.Value(), XXH3_64bits(from, bytes))
        << bytes << " bytes from offset " << from_offset << " in pieces of up to " << max_piece;
    ASSERT_TRUE(destination_ == expected) << bytes << " bytes to offset " << to_offset;
  }

  std::mt19937_64 random_{7};
  std::vector<std::byte> source_;
  std::vector<std::byte> destination_;
};

TEST_P(ChecksumTest, EqualsTheLibrarysForEveryLengthToTwoBlocks) {
  for (size_t bytes = 0; bytes <= 2 * 1024 + 65; ++bytes) {
    Checksum sum(GetParam());
    sum.Update({source_.data() + bytes % 64, bytes});
    ASSERT_EQ(sum.Value(), XXH3_64bits(source_.data() + bytes % 64, bytes)) << bytes;
  }
}

TEST_P(ChecksumTest, EqualsTheLibrarysForPiecesCutAnywhere) {
  for (int i = 0; i < 800; ++i) {
    const size_t bytes = Random(3000);
    const std::byte* const from = source_.data() + Random(64);
    Checksum sum(GetParam());
    for (size_t done = 0; done < bytes;) {
      const size_t size = std::min(bytes - done, Random(i % 2 == 0 ? 70 : 700));
      sum.Update({from + done, size});
      done += size;
    }
    ASSERT_EQ(sum.Value(), XXH3_64bits(from, bytes)) << bytes;
  }
}

TEST_P(ChecksumTest, CopiesAndSumsPiecesOfAnySizeAndAlignment) {
  for (const Use use : {Use::kCopySoon, Use::kCopyLater, Use::kAnyOfThem}) {
    for (const size_t max_piece : {size_t{300}, size_t{9000}, size_t{40'000}, kMaxBytes}) {
      for (int i = 0; i < 2; ++i) {
        Check(use, Random(64), Random(64), kMaxBytes - Random(20'000), max_piece);
      }
    }
  }
}

TEST_P(ChecksumTest, CopiesAndSumsAroundTheThresholds) {
  for (const size_t around : {size_t{1024}, size_t{4096}, internal::kStreamFromBytes}) {
    for (size_t bytes = around - 2; bytes <= around + 2; ++bytes) {
      for (const Use use : {Use::kCopySoon, Use::kCopyLater}) {
        Check(use, 0, 0, bytes, kMaxBytes);
        Check(use, 1, 63, bytes, kMaxBytes);
      }
    }
  }
}

TEST_P(ChecksumTest, KeyPieceThenValuePieceIsOneInput) {
  constexpr size_t kPiece = 32 << 10;
  Checksum sum(GetParam());
  sum.Copy(destination_.data(), {source_.data(), kPiece}, NextRead::kLater);
  sum.Copy(destination_.data() + kPiece, {source_.data() + kPiece, kPiece}, NextRead::kLater);
  EXPECT_EQ(sum.Value(), XXH3_64bits(source_.data(), 2 * kPiece));
  EXPECT_EQ(sum.Value(), XXH3_64bits(destination_.data(), 2 * kPiece));
}

INSTANTIATE_TEST_SUITE_P(EveryRoutine, ChecksumTest,
                         testing::ValuesIn(internal::SupportedCopyRoutines()));

TEST(ChecksumPublicTest, ValueMayBeTakenBetweenPiecesAndAfterAReset) {
  const std::vector<std::byte> bytes(5000, std::byte{3});
  Checksum sum;
  EXPECT_EQ(sum.Value(), ChecksumOf({}));
  for (size_t i = 1; i <= 5; ++i) {
    sum.Update({bytes.data(), 1000});
    EXPECT_EQ(sum.Value(), ChecksumOf({bytes.data(), 1000 * i}));
  }
  sum.Reset();
  EXPECT_EQ(sum.Value(), ChecksumOf({}));
}

TEST(ChecksumPublicTest, NoticesOneFlippedBitAnywhere) {
  std::vector<std::byte> bytes(3000);
  const uint64_t before = ChecksumOf(bytes);
  for (std::byte& byte : bytes) {
    byte ^= std::byte{16};
    EXPECT_NE(ChecksumOf(bytes), before);
    byte ^= std::byte{16};
  }
}

// Published by the library, so that stored checksums outlive it.
TEST(ChecksumPublicTest, OfNothingIsXxh3sKnownValue) {
  EXPECT_EQ(ChecksumOf({}), 0x2D06800538D394C2);
}

}  // namespace
}  // namespace kvcache
