#include "kvcache/backends/accounting/accounting.h"

#include <array>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;

TEST(AccountingTest, TraitsSayThatNothingIsStored) {
  const auto backend = CreateAccountingBackend({.capacity_bytes = 1000}).value();
  EXPECT_EQ(backend->traits().name, "accounting");
  EXPECT_FALSE(backend->traits().addressable);
  EXPECT_FALSE(backend->traits().stores_bytes);
  EXPECT_EQ(backend->traits().capacity_bytes, 960u);
  EXPECT_EQ(backend->traits().alignment, 64u);
}

TEST(AccountingTest, CountsMoreThanAnyMachineHas) {
  const size_t pebibyte = size_t{1} << 50;
  const auto backend = CreateAccountingBackend({.capacity_bytes = 4 * pebibyte}).value();
  for (int i = 0; i < 4; ++i) EXPECT_EQ(backend->Allocate(pebibyte).value().size, pebibyte);
  const absl::Status status = backend->Allocate(1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "no room for 64 bytes: 4503599627370496 of 4503599627370496 used");
}

TEST(AccountingTest, AnAlignmentOfOneCountsExactly) {
  const auto backend = CreateAccountingBackend({.capacity_bytes = 1001, .alignment = 1}).value();
  const Extent extent = backend->Allocate(1000).value();
  EXPECT_EQ(extent.size, 1000u);
  EXPECT_TRUE(backend->Allocate(1).ok());
  EXPECT_FALSE(backend->Allocate(1).ok());
  backend->Free(extent);
  EXPECT_TRUE(backend->Allocate(1000).ok());
}

TEST(AccountingTest, WritesSucceedAndReadsSayThatNothingIsStored) {
  const auto backend = CreateAccountingBackend({.capacity_bytes = 4096}).value();
  const Extent extent = backend->Allocate(128).value();
  std::array<std::byte, 128> bytes = {};
  const ConstBytes source[] = {bytes};
  const MutableBytes destination[] = {absl::MakeSpan(bytes)};
  const MemorySpace device = {MemoryKind::kDevice, 1};
  const WriteOp writes[] = {{extent, 0, source, device, 0}, {extent, 1, source, {}, 1}};
  const Transfer written = backend->Write(writes, Stream::None());
  EXPECT_TRUE(written.Done());
  EXPECT_TRUE(written.WaitPart(0).ok());
  EXPECT_EQ(written.WaitPart(1).code(), absl::StatusCode::kInvalidArgument) << "a byte too many";
  const ReadOp reads[] = {{extent, 0, destination, {}, 0}, {extent, 1, destination, {}, 1}};
  const Transfer read = backend->Read(reads, Stream::None());
  EXPECT_EQ(read.WaitPart(0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(read.WaitPart(1).code(), absl::StatusCode::kInvalidArgument);
}

TEST(AccountingTest, OptionsThatCannotBeAreInvalid) {
  for (const AccountingOptions& options :
       {AccountingOptions{}, AccountingOptions{.capacity_bytes = 63},
        AccountingOptions{.capacity_bytes = 100, .alignment = 0},
        AccountingOptions{.capacity_bytes = 100, .alignment = 3}}) {
    EXPECT_EQ(CreateAccountingBackend(options).status().code(), absl::StatusCode::kInvalidArgument)
        << options.capacity_bytes << " " << options.alignment;
  }
}

TEST(AccountingDeathTest, FreeingMoreThanIsInUseAborts) {
  const auto backend = CreateAccountingBackend({.capacity_bytes = 4096}).value();
  const Extent extent = backend->Allocate(128).value();
  backend->Free(extent);
  EXPECT_DEATH(backend->Free(extent), "freed 128 bytes, but only 0 are in use");
}

TEST(AccountingRegistryTest, IsMadeByNameWithItsSetting) {
  EXPECT_EQ(MakeBackend("accounting", 4096).value()->traits().alignment, 64u);
  EXPECT_EQ(MakeBackend("accounting", 4096, {{"alignment", "1"}}).value()->traits().alignment, 1u);
  for (const Settings& settings : {Settings{{"alignment", "one"}}, Settings{{"alignment", "-64"}},
                                   Settings{{"alignment", "3"}}, Settings{{"align", "64"}}}) {
    const absl::Status status = MakeBackend("accounting", 4096, settings).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("align"));
  }
}

}  // namespace
}  // namespace kvcache
