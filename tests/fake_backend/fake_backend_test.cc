#include "kvcache/tests/fake_backend/fake_backend.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {
namespace {

using Buffer = std::vector<std::byte>;

Buffer Filled(size_t size, int value) { return Buffer(size, static_cast<std::byte>(value)); }

Transfer Write(StorageBackend& backend, Extent extent, const Buffer& from, size_t offset = 0) {
  const ConstBytes source[] = {from};
  const WriteOp op = {
      .destination = extent, .offset = offset, .source = source, .source_space = {}};
  return backend.Write({&op, 1}, Stream::None());
}

Transfer Read(StorageBackend& backend, Extent extent, Buffer& to, size_t offset = 0) {
  const MutableBytes destination[] = {absl::MakeSpan(to)};
  const ReadOp op = {
      .source = extent, .offset = offset, .destination = destination, .destination_space = {}};
  return backend.Read({&op, 1}, Stream::None());
}

// What is in the extent now.
Buffer Contents(FakeBackend& backend, Extent extent) {
  Buffer contents(extent.size);
  backend.set_auto_complete(true);
  EXPECT_TRUE(Read(backend, extent, contents).Wait().ok());
  backend.set_auto_complete(false);
  return contents;
}

TEST(FakeBackendTest, IsNotAddressable) {
  const auto backend = FakeBackend::Create(1000);
  EXPECT_FALSE(backend->traits().addressable);
  EXPECT_TRUE(backend->traits().stores_bytes);
  EXPECT_EQ(backend->traits().capacity_bytes, 960u);
  EXPECT_EQ(backend->Address(backend->Allocate(64).value()), nullptr);
}

TEST(FakeBackendTest, NewExtentsAreFullOfFreshBytesAlsoWhenUsedBefore) {
  const auto backend = FakeBackend::Create(64);
  const Extent first = backend->Allocate(64).value();
  backend->set_auto_complete(true);
  EXPECT_TRUE(Write(*backend, first, Filled(64, 2)).Wait().ok());
  backend->Free(first);
  const Extent second = backend->Allocate(64).value();
  EXPECT_EQ(Contents(*backend, second), Buffer(64, FakeBackend::kFreshByte));
}

TEST(FakeBackendTest, BytesAreCopiedWhenTheTestSaysSo) {
  const auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(64).value();
  Buffer from = Filled(64, 1);
  const Transfer transfer = Write(*backend, extent, from);
  EXPECT_FALSE(transfer.Done());
  EXPECT_EQ(backend->pending(), 1u);
  std::fill(from.begin(), from.end(), std::byte{2});
  backend->Complete(0);
  EXPECT_TRUE(transfer.Done());
  EXPECT_TRUE(transfer.Wait().ok());
  EXPECT_EQ(backend->pending(), 0u);
  EXPECT_EQ(Contents(*backend, extent), Filled(64, 2));
}

TEST(FakeBackendTest, OpsEndInAnyOrder) {
  const auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(192).value();
  const Buffer buffers[] = {Filled(64, 1), Filled(64, 2), Filled(64, 3)};
  std::vector<Transfer> transfers;
  for (int i = 0; i < 3; ++i) transfers.push_back(Write(*backend, extent, buffers[i], 64 * i));
  backend->Complete(1);
  EXPECT_TRUE(transfers[1].Done());
  EXPECT_FALSE(transfers[0].Done());
  backend->Fail(1, absl::DataLossError("bad sector"));
  EXPECT_EQ(transfers[2].Wait().code(), absl::StatusCode::kDataLoss);
  backend->CompleteAll();
  EXPECT_TRUE(transfers[0].Wait().ok());
  Buffer expected = Filled(64, 1);
  const Buffer second = Filled(64, 2);
  expected.insert(expected.end(), second.begin(), second.end());
  expected.insert(expected.end(), 64, FakeBackend::kFreshByte);
  EXPECT_EQ(Contents(*backend, extent), expected);
}

TEST(FakeBackendTest, CancelEndsTheOpsOfThatTransfer) {
  const auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(128).value();
  const Buffer from = Filled(64, 1);
  const Transfer kept = Write(*backend, extent, from);
  const Transfer cancelled = Write(*backend, extent, from, 64);
  cancelled.Cancel();
  EXPECT_EQ(cancelled.Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(kept.Done());
  EXPECT_EQ(backend->pending(), 1u);
  backend->CompleteAll();
  EXPECT_TRUE(kept.Wait().ok());
  cancelled.Cancel();
  EXPECT_EQ(cancelled.Wait().code(), absl::StatusCode::kCancelled);
}

TEST(FakeBackendTest, ATransferCanBeCancelledWhenTheBackendIsGone) {
  auto backend = FakeBackend::Create(4096);
  const Buffer from = Filled(64, 1);
  const Transfer transfer = Write(*backend, backend->Allocate(64).value(), from);
  backend->CompleteAll();
  backend.reset();
  transfer.Cancel();
  EXPECT_TRUE(transfer.Wait().ok());
}

TEST(FakeBackendTest, RefusedOpsAreNeverPending) {
  const auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(64).value();
  const Buffer large(65);
  const Buffer fits(64);
  EXPECT_EQ(Write(*backend, extent, large).Wait().code(), absl::StatusCode::kInvalidArgument);
  const ConstBytes source[] = {fits};
  const WriteOp device = {
      .destination = extent, .source = source, .source_space = {MemoryKind::kDevice, 1}};
  EXPECT_EQ(backend->Write({&device, 1}, Stream::None()).Wait().code(),
            absl::StatusCode::kInvalidArgument);
  const WriteOp host = {.destination = extent, .source = source, .source_space = {}};
  int queue = 0;
  EXPECT_EQ(backend->Write({&host, 1}, Stream{{}, &queue}).Wait().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->pending(), 0u);
}

TEST(FakeBackendTest, OnlyTheNextAllocateFails) {
  const auto backend = FakeBackend::Create(4096);
  backend->FailNextAllocate(absl::UnavailableError("the medium is away"));
  EXPECT_EQ(backend->Allocate(64).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(backend->Allocate(64).ok());
}

TEST(FakeBackendTest, CallbacksMayUseTheBackend) {
  const auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(64).value();
  const Buffer from = Filled(64, 1);
  Buffer to(64);
  std::optional<Transfer> read;
  internal::OnDone(Write(*backend, extent, from),
                   [&](const absl::Status&) { read.emplace(Read(*backend, extent, to)); });
  backend->CompleteAll();
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(backend->pending(), 1u) << "what began meanwhile stays pending";
  backend->CompleteAll();
  EXPECT_TRUE(read->Wait().ok());
  EXPECT_EQ(to, from);
}

TEST(FakeBackendTest, OneThreadEndsWhatAnotherStarts) {
  const auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(64).value();
  const Buffer from = Filled(64, 7);
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(Write(*backend, extent, from).Wait().ok());
  });
  for (int i = 0; i < 100; ++i) {
    backend->WaitForPending(1);
    backend->Complete(0);
  }
  writer.join();
  EXPECT_EQ(Contents(*backend, extent), from);
}

TEST(FakeBackendDeathTest, BreachesOfTheContractAbort) {
  auto backend = FakeBackend::Create(4096);
  const Extent extent = backend->Allocate(128).value();
  const Extent freed = backend->Allocate(64).value();
  backend->Free(freed);
  Buffer buffer = Filled(64, 1);
  EXPECT_DEATH(backend->Free(freed), "no extent of 64 bytes at 128 is allocated");
  EXPECT_DEATH(Write(*backend, freed, buffer), "no extent of 64 bytes at 128 is allocated");
  EXPECT_DEATH(backend->Complete(0), "op 0 of 0 pending");
  const Transfer write = Write(*backend, extent, buffer);
  EXPECT_DEATH(backend->Free(extent), "freed while an op is pending there");
  EXPECT_DEATH(backend.reset(), "destroyed while 1 ops are pending");
  EXPECT_DEATH(Write(*backend, extent, buffer), "written while an op that writes");
  EXPECT_DEATH(Read(*backend, extent, buffer), "read while an op that writes");
  Buffer other(64);
  const Transfer read = Read(*backend, extent, other, 64);
  const Transfer second_read = Read(*backend, extent, other, 64);
  EXPECT_DEATH(Write(*backend, extent, buffer, 64), "written while an op that reads");
  backend->CompleteAll();
  EXPECT_TRUE(second_read.Wait().ok());
}

}  // namespace
}  // namespace kvcache
