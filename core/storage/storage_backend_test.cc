#include "kvcache/core/storage/storage_backend.h"

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/storage/extent.h"

namespace kvcache {
namespace {

constexpr size_t kMax = std::numeric_limits<size_t>::max();
constexpr Extent kExtent = {.offset = 128, .size = 64};

class ValidateOpTest : public testing::Test {
 protected:
  // What is said of a write and of a read of pieces of these sizes, which are never touched.
  absl::Status Validate(size_t offset, const std::vector<size_t>& sizes) {
    std::vector<ConstBytes> source;
    std::vector<MutableBytes> destination;
    for (const size_t size : sizes) {
      source.emplace_back(bytes_.data(), size);
      destination.emplace_back(bytes_.data(), size);
    }
    const absl::Status write = ValidateOp(WriteOp{kExtent, offset, source, {}, 0});
    const absl::Status read = ValidateOp(ReadOp{kExtent, offset, destination, {}, 0});
    EXPECT_EQ(write.code(), read.code()) << write << " " << read;
    if (!write.ok()) {
      EXPECT_EQ(write.message().substr(5), read.message().substr(4));
    }
    return write;
  }

  std::array<std::byte, 1> bytes_ = {};
};

TEST_F(ValidateOpTest, WhatFitsIsFine) {
  EXPECT_TRUE(Validate(0, {64}).ok());
  EXPECT_TRUE(Validate(0, {1, 0, 62, 1}).ok());
  EXPECT_TRUE(Validate(63, {1}).ok());
  EXPECT_TRUE(Validate(0, {}).ok());
  EXPECT_TRUE(Validate(64, {}).ok());
  EXPECT_TRUE(Validate(64, {0}).ok());
}

TEST_F(ValidateOpTest, BytesBehindTheExtentAreRefusedWithTheValues) {
  EXPECT_EQ(Validate(65, {}).message(), "write: offset 65 is behind an extent of 64 bytes");
  EXPECT_EQ(Validate(60, {3, 2}).message(),
            "write: a piece of 2 bytes, but 1 left of an extent of 64 bytes");
  for (const absl::Status& status : {Validate(65, {}), Validate(60, {3, 2}), Validate(0, {65}),
                                     Validate(64, {1}), Validate(1, {64})}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

TEST_F(ValidateOpTest, SumsThatOverflowAreRefused) {
  for (const absl::Status& status :
       {Validate(kMax, {1}), Validate(kMax, {}), Validate(1, {kMax}), Validate(0, {32, kMax}),
        Validate(0, {kMax / 2 + 1, kMax / 2 + 1}), Validate(32, {kMax - 31})}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

TEST_F(ValidateOpTest, NullPiecesAreRefusedUnlessTheyAreEmpty) {
  const ConstBytes null_sources[] = {ConstBytes(), ConstBytes(nullptr, 2)};
  const MutableBytes null_destinations[] = {MutableBytes(), MutableBytes(nullptr, 2)};
  const absl::Span<const ConstBytes> sources = null_sources;
  const absl::Span<const MutableBytes> destinations = null_destinations;
  EXPECT_TRUE(ValidateOp(WriteOp{kExtent, 0, sources.subspan(0, 1), {}, 0}).ok());
  EXPECT_TRUE(ValidateOp(ReadOp{kExtent, 0, destinations.subspan(0, 1), {}, 0}).ok());
  EXPECT_EQ(ValidateOp(WriteOp{kExtent, 0, sources, {}, 0}),
            absl::InvalidArgumentError("write: null data with a size of 2 bytes"));
  EXPECT_EQ(ValidateOp(ReadOp{kExtent, 0, destinations, {}, 0}),
            absl::InvalidArgumentError("read: null data with a size of 2 bytes"));
}

}  // namespace
}  // namespace kvcache
