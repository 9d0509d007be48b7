#include "kvcache/tests/backend_conformance/backend_conformance.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <utility>

#include "absl/numeric/bits.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/tests/gpu/require_gpu.h"

namespace kvcache {
namespace {

ConstBytes AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

MutableBytes AsBytes(std::string& text) {
  return {reinterpret_cast<std::byte*>(text.data()), text.size()};
}

// Different for each seed, and in no place like another near it.
std::string Pattern(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string pattern(size, '\0');
  for (char& c : pattern) c = static_cast<char>(random());
  return pattern;
}

WriteOp MakeWrite(const Extent& extent, size_t offset, absl::Span<const ConstBytes> source,
                  uint32_t part = 0) {
  return {
      .destination = extent, .offset = offset, .source = source, .source_space = {}, .part = part};
}

ReadOp MakeRead(const Extent& extent, size_t offset, absl::Span<const MutableBytes> destination,
                uint32_t part = 0) {
  return {.source = extent,
          .offset = offset,
          .destination = destination,
          .destination_space = {},
          .part = part};
}

absl::Status WriteAll(StorageBackend& backend, const Extent& extent, absl::string_view bytes,
                      size_t offset) {
  const ConstBytes source[] = {AsBytes(bytes)};
  const WriteOp op = MakeWrite(extent, offset, source);
  return backend.Write({&op, 1}, Stream::None()).Wait();
}

std::string ReadAll(StorageBackend& backend, const Extent& extent) {
  std::string contents(extent.size, '?');
  const MutableBytes destination[] = {AsBytes(contents)};
  const ReadOp op = MakeRead(extent, 0, destination);
  EXPECT_TRUE(backend.Read({&op, 1}, Stream::None()).Wait().ok());
  return contents;
}

}  // namespace

void BackendConformanceTest::SetUp() {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend = GetParam().create(kCapacity);
  if (absl::IsUnavailable(backend.status())) {
    ASSERT_FALSE(GpuIsRequired()) << backend.status();
    GTEST_SKIP() << backend.status();
  }
  backend_ = *std::move(backend);
}

void BackendConformanceTest::TearDown() {
  for (const Extent& extent : extents_) backend_->Free(extent);
}

void BackendConformanceTest::Destroy() {
  extents_.clear();
  backend_.reset();
}

Extent BackendConformanceTest::Allocate(size_t bytes) {
  extents_.push_back(backend_->Allocate(bytes).value());
  return extents_.back();
}

void BackendConformanceTest::Free(const Extent& extent) {
  extents_.erase(std::find(extents_.begin(), extents_.end(), extent));
  backend_->Free(extent);
}

absl::Status BackendConformanceTest::Write(const Extent& extent, const std::string& bytes,
                                           size_t offset) {
  return WriteAll(*backend_, extent, bytes, offset);
}

std::string BackendConformanceTest::Contents(const Extent& extent) {
  return ReadAll(*backend_, extent);
}

TEST_P(BackendConformanceTest, TraitsMakeSense) {
  EXPECT_FALSE(traits().name.empty());
  EXPECT_TRUE(absl::has_single_bit(traits().alignment)) << traits().alignment;
  EXPECT_LE(traits().capacity_bytes, kCapacity) << "takes more than it was given";
  EXPECT_GT(traits().capacity_bytes, kCapacity - traits().alignment);
  EXPECT_TRUE(traits().stores_bytes || !traits().addressable);
}

TEST_P(BackendConformanceTest, SizesAndOffsetsAreAligned) {
  const size_t alignment = traits().alignment;
  for (const size_t bytes : {size_t{1}, alignment - 1, alignment, alignment + 1, 10 * alignment}) {
    if (bytes == 0) continue;
    const Extent extent = Allocate(bytes);
    EXPECT_EQ(extent.offset % alignment, 0u);
    EXPECT_EQ(extent.size, (bytes + alignment - 1) / alignment * alignment) << bytes;
    if (traits().addressable) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(backend().Address(extent)) % alignment, 0u);
    }
  }
}

TEST_P(BackendConformanceTest, AllOfTheCapacityCanBeUsedAndNoMore) {
  const Extent all = Allocate(traits().capacity_bytes);
  EXPECT_EQ(all.size, traits().capacity_bytes);
  EXPECT_EQ(backend().Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
  Free(all);
  for (size_t used = 0; used < traits().capacity_bytes; used += traits().alignment) Allocate(1);
  EXPECT_EQ(backend().Allocate(1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_P(BackendConformanceTest, ExtentsAreDisjointAndInsideTheCapacity) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes, no places";
  std::vector<Extent> extents;
  size_t left = traits().capacity_bytes;
  for (size_t bytes = traits().alignment; bytes <= left; bytes += traits().alignment) {
    extents.push_back(Allocate(bytes));
    left -= bytes;
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < extents.size(); ++i) {
    EXPECT_LE(extents[i - 1].offset + extents[i - 1].size, extents[i].offset);
  }
  EXPECT_LE(extents.back().offset + extents.back().size, traits().capacity_bytes);
}

TEST_P(BackendConformanceTest, ZeroBytesAndMoreThanTheCapacityAreInvalid) {
  for (const size_t bytes :
       {size_t{0}, traits().capacity_bytes + 1, std::numeric_limits<size_t>::max()}) {
    EXPECT_EQ(backend().Allocate(bytes).status().code(), absl::StatusCode::kInvalidArgument)
        << bytes;
  }
  EXPECT_EQ(Allocate(traits().capacity_bytes).size, traits().capacity_bytes)
      << "a refusal took room";
}

TEST_P(BackendConformanceTest, WhenFullNothingChangesUntilSomethingIsFreed) {
  const size_t quarter = traits().capacity_bytes / 4 / traits().alignment * traits().alignment;
  std::vector<Extent> extents;
  for (uint32_t i = 0; i < 4; ++i) {
    extents.push_back(Allocate(quarter));
    ASSERT_TRUE(Write(extents[i], Pattern(quarter, i)).ok());
  }
  for (int i = 0; i < 3; ++i) {
    const absl::Status status = backend().Allocate(quarter).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_FALSE(status.message().empty());
  }
  Free(extents[2]);
  extents[2] = Allocate(quarter);
  ASSERT_TRUE(Write(extents[2], Pattern(quarter, 2)).ok());
  if (!traits().stores_bytes) return;
  for (uint32_t i = 0; i < 4; ++i) EXPECT_EQ(Contents(extents[i]), Pattern(quarter, i)) << i;
}

TEST_P(BackendConformanceTest, WithoutStoredBytesWritesSucceedAndReadsFail) {
  if (traits().stores_bytes) GTEST_SKIP() << "stores bytes";
  const Extent extent = Allocate(100);
  EXPECT_TRUE(Write(extent, Pattern(100, 1)).ok());
  std::string to(100, 'x');
  const MutableBytes destination[] = {AsBytes(to)};
  const ReadOp op = MakeRead(extent, 0, destination);
  EXPECT_EQ(backend().Read({&op, 1}, Stream::None()).Wait().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(to, std::string(100, 'x'));
}

TEST_P(BackendConformanceTest, WritesGatherAndReadsScatter) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes to compare";
  const Extent extent = Allocate(1000);
  const std::string bytes = Pattern(extent.size, 5);
  const absl::string_view from = bytes;
  const ConstBytes source[] = {AsBytes(from.substr(0, 1)), ConstBytes(),
                               AsBytes(from.substr(1, 500)), AsBytes(from.substr(501))};
  const WriteOp write = MakeWrite(extent, 0, source);
  ASSERT_TRUE(backend().Write({&write, 1}, Stream::None()).Wait().ok());
  std::string first(700, '?'), second(1, '?'), third(extent.size - 701, '?');
  const MutableBytes destination[] = {AsBytes(first), MutableBytes(), AsBytes(second),
                                      AsBytes(third)};
  const ReadOp read = MakeRead(extent, 0, destination);
  ASSERT_TRUE(backend().Read({&read, 1}, Stream::None()).Wait().ok());
  EXPECT_EQ(first + second + third, bytes);
}

TEST_P(BackendConformanceTest, OpsWriteAndReadAtTheirOffsetsInTheirParts) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes to compare";
  const Extent extents[] = {Allocate(3000), Allocate(3000)};
  std::vector<std::string> bytes;
  std::vector<ConstBytes> sources;
  for (uint32_t i = 0; i < 6; ++i) bytes.push_back(Pattern(1000, i));
  for (const std::string& b : bytes) sources.push_back(AsBytes(b));
  // Three parts of each extent, one after the other.
  std::vector<WriteOp> writes;
  for (uint32_t i = 0; i < 6; ++i) {
    writes.push_back(MakeWrite(extents[i / 3], i % 3 * 1000, {&sources[i], 1}, i % 3));
  }
  const Transfer written = backend().Write(writes, Stream::None());
  EXPECT_TRUE(written.Done() || !traits().copies_in_call);
  EXPECT_EQ(written.size(), 6u);
  for (uint32_t part = 0; part < 3; ++part) {
    EXPECT_TRUE(written.WaitPart(part).ok());
    EXPECT_TRUE(written.PartDone(part));
  }
  EXPECT_TRUE(written.Wait().ok());
  EXPECT_TRUE(written.Done());

  EXPECT_EQ(Contents(extents[0]).substr(0, 3000), bytes[0] + bytes[1] + bytes[2]);
  EXPECT_EQ(Contents(extents[1]).substr(0, 3000), bytes[3] + bytes[4] + bytes[5]);
  std::vector<std::string> copies(6, std::string(100, '?'));
  std::vector<MutableBytes> destinations;
  for (std::string& copy : copies) destinations.push_back(AsBytes(copy));
  std::vector<ReadOp> reads;
  for (uint32_t i = 0; i < 6; ++i) {
    reads.push_back(MakeRead(extents[i / 3], i % 3 * 1000 + 77, {&destinations[i], 1}, i % 3));
  }
  const Transfer read = backend().Read(reads, Stream::None());
  EXPECT_TRUE(read.Done() || !traits().copies_in_call);
  EXPECT_TRUE(read.WaitPart(2).ok());
  EXPECT_TRUE(read.Wait().ok());
  for (int i = 0; i < 6; ++i) EXPECT_EQ(copies[i], bytes[i].substr(77, 100)) << i;
}

TEST_P(BackendConformanceTest, AWriteChangesItsOwnBytesOnly) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes to compare";
  const size_t size = 10 * traits().alignment;
  std::vector<Extent> extents;
  for (uint32_t i = 0; i < 3; ++i) {
    extents.push_back(Allocate(size));
    ASSERT_TRUE(Write(extents[i], Pattern(size, i)).ok());
  }
  const std::string bytes = Pattern(size / 2, 9);
  ASSERT_TRUE(Write(extents[1], bytes, 3).ok());
  std::string expected = Pattern(size, 1);
  expected.replace(3, bytes.size(), bytes);
  EXPECT_EQ(Contents(extents[0]), Pattern(size, 0));
  EXPECT_EQ(Contents(extents[1]), expected);
  EXPECT_EQ(Contents(extents[2]), Pattern(size, 2));
}

TEST_P(BackendConformanceTest, WritesThatDoNotFitAreRefusedAloneWithTheirPart) {
  const Extent extent = Allocate(128);
  const size_t size = extent.size;
  const std::string bytes = Pattern(size, 1);
  ASSERT_TRUE(Write(extent, bytes).ok());
  const std::string good = "good";
  const std::string large = Pattern(size + 1, 2);
  const ConstBytes good_source[] = {AsBytes(good)};
  const ConstBytes large_source[] = {AsBytes(large)};
  const ConstBytes pieces_too_many[] = {AsBytes(large).first(size), AsBytes(good)};
  const ConstBytes null_source[] = {AsBytes(good), ConstBytes(nullptr, 1)};
  constexpr size_t kMax = std::numeric_limits<size_t>::max();
  const WriteOp ops[] = {
      MakeWrite(extent, 0, large_source, 1),       MakeWrite(extent, 0, good_source),
      MakeWrite(extent, size - 3, good_source, 1), MakeWrite(extent, size + 1, {}, 1),
      MakeWrite(extent, kMax - 1, good_source, 1), MakeWrite(extent, 0, pieces_too_many, 1),
      MakeWrite(extent, 0, null_source, 1),        MakeWrite(extent, size - 4, good_source),
  };
  const Transfer transfer = backend().Write(ops, Stream::None());
  EXPECT_EQ(transfer.Wait().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(transfer.WaitPart(0).ok());
  EXPECT_EQ(transfer.WaitPart(1).code(), absl::StatusCode::kInvalidArgument);
  for (size_t op = 0; op < transfer.size(); ++op) {
    EXPECT_EQ(transfer.result(op).code(),
              ops[op].part == 0 ? absl::StatusCode::kOk : absl::StatusCode::kInvalidArgument)
        << "op " << op;
  }
  if (!traits().stores_bytes) return;
  EXPECT_EQ(Contents(extent), good + bytes.substr(4, size - 8) + good);
}

TEST_P(BackendConformanceTest, ReadsThatDoNotFitAreRefusedAloneWithTheirPart) {
  if (!traits().stores_bytes) GTEST_SKIP() << "refuses all reads";
  const Extent extent = Allocate(128);
  const size_t size = extent.size;
  const std::string bytes = Pattern(size, 1);
  ASSERT_TRUE(Write(extent, bytes).ok());
  std::string good(4, '?'), last(4, '?'), bad(4, '?'), large(size + 1, '?');
  const MutableBytes good_destination[] = {AsBytes(good)};
  const MutableBytes last_destination[] = {AsBytes(last)};
  const MutableBytes bad_destination[] = {AsBytes(bad)};
  const MutableBytes large_destination[] = {AsBytes(large)};
  const MutableBytes null_destination[] = {AsBytes(bad), MutableBytes(nullptr, 1)};
  constexpr size_t kMax = std::numeric_limits<size_t>::max();
  const ReadOp ops[] = {
      MakeRead(extent, 0, large_destination, 1),      MakeRead(extent, 0, good_destination),
      MakeRead(extent, size - 3, bad_destination, 1), MakeRead(extent, size + 1, {}, 1),
      MakeRead(extent, kMax - 1, bad_destination, 1), MakeRead(extent, 0, null_destination, 1),
      MakeRead(extent, size - 4, last_destination),
  };
  const Transfer transfer = backend().Read(ops, Stream::None());
  EXPECT_EQ(transfer.WaitPart(1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(transfer.WaitPart(0).ok());
  for (size_t op = 0; op < transfer.size(); ++op) {
    EXPECT_EQ(transfer.result(op).code(),
              ops[op].part == 0 ? absl::StatusCode::kOk : absl::StatusCode::kInvalidArgument)
        << "op " << op;
  }
  EXPECT_EQ(good, bytes.substr(0, 4));
  EXPECT_EQ(last, bytes.substr(size - 4));
  EXPECT_EQ(bad + large, std::string(size + 5, '?')) << "a refused op copied";
}

absl::StatusCode BackendConformanceTest::RefusalOf(MemorySpace space, Stream stream) {
  const Extent extent = Allocate(128);
  const std::string bytes = Pattern(extent.size, 1);
  EXPECT_TRUE(Write(extent, bytes).ok());
  const std::string from = Pattern(64, 2);
  std::string to(64, '?');
  const ConstBytes source[] = {AsBytes(from)};
  const MutableBytes destination[] = {AsBytes(to)};
  WriteOp write = MakeWrite(extent, 0, source);
  ReadOp read = MakeRead(extent, 64, destination);
  write.source_space = read.destination_space = space;
  const absl::Status written = backend().Write({&write, 1}, stream).Wait();
  const absl::Status was_read = backend().Read({&read, 1}, stream).Wait();
  EXPECT_EQ(written.code(), was_read.code()) << written << "; " << was_read;
  EXPECT_EQ(to, std::string(64, '?')) << "a refused op copied";
  EXPECT_EQ(Contents(extent), bytes) << "a refused op copied";
  return written.code();
}

TEST_P(BackendConformanceTest, AStreamThatItDoesNotKnowIsRefused) {
  if (!traits().stores_bytes) GTEST_SKIP() << "copies nothing that could have an order";
  int nobodys_queue = 0;
  const Stream stream{{}, &nobodys_queue};
  EXPECT_EQ(RefusalOf({}, stream), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend().After(stream).Wait().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(BackendConformanceTest, MemoryOfADeviceThatIsNotThereIsRefused) {
  if (!traits().stores_bytes) GTEST_SKIP() << "touches no memory";
  EXPECT_EQ(RefusalOf({MemoryKind::kDevice, 4242}, Stream::None()),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(BackendConformanceTest, TheDestructorEndsWhatIsUnderWay) {
  if (!traits().stores_bytes) GTEST_SKIP() << "copies nothing";
  constexpr uint32_t kCopies = 16;
  const size_t size = kCapacity / (2 * kCopies);
  std::vector<std::string> bytes;
  std::vector<std::string> copies(kCopies, std::string(size, '?'));
  std::vector<ConstBytes> sources;
  std::vector<MutableBytes> destinations;
  std::vector<WriteOp> writes;
  std::vector<ReadOp> reads;
  for (uint32_t i = 0; i < kCopies; ++i) bytes.push_back(Pattern(size, i));
  for (uint32_t i = 0; i < kCopies; ++i) {
    sources.push_back(AsBytes(bytes[i]));
    destinations.push_back(AsBytes(copies[i]));
  }
  for (uint32_t i = 0; i < kCopies; ++i) {
    const Extent written_before = Allocate(size);
    ASSERT_TRUE(Write(written_before, bytes[i]).ok());
    reads.push_back(MakeRead(written_before, 0, {&destinations[i], 1}, i));
    writes.push_back(MakeWrite(Allocate(size), 0, {&sources[i], 1}, i));
  }
  const Transfer written = backend().Write(writes, Stream::None());
  const Transfer read = backend().Read(reads, Stream::None());
  Destroy();
  EXPECT_TRUE(written.Done());
  ASSERT_TRUE(read.Done());
  for (uint32_t i = 0; i < kCopies; ++i) {
    if (read.result(i).ok()) {
      EXPECT_TRUE(copies[i] == bytes[i]) << i;
    }
  }
  read.Cancel();
}

TEST_P(BackendConformanceTest, AFailureForGoodIsToldOnceAndEndsEverything) {
  if (GetParam().fail == nullptr) GTEST_SKIP() << "never fails";
  const Extent extent = Allocate(128);
  std::atomic<int> told = 0;
  absl::Status failure;
  backend().OnFailure([&](const absl::Status& status) {
    failure = status;
    ++told;
  });
  GetParam().fail();
  EXPECT_FALSE(Write(extent, "bytes").ok());
  while (told == 0) std::this_thread::yield();
  EXPECT_FALSE(failure.ok());
  EXPECT_FALSE(failure.message().empty());
  std::string to(5, '?');
  const MutableBytes destination[] = {AsBytes(to)};
  const ReadOp read = MakeRead(extent, 0, destination);
  EXPECT_EQ(backend().Read({&read, 1}, Stream::None()).Wait(), failure);
  EXPECT_EQ(Write(extent, "bytes"), failure);
  EXPECT_EQ(backend().Allocate(1).status(), failure);
  backend().OnFailure(nullptr);
  EXPECT_EQ(told, 1);
}

TEST_P(BackendConformanceTest, AFailureThatNobodyListenedToIsToldAtOnce) {
  if (GetParam().fail == nullptr) GTEST_SKIP() << "never fails";
  const Extent extent = Allocate(128);
  GetParam().fail();
  const absl::Status failure = Write(extent, "bytes");
  for (int listeners = 0; listeners < 2; ++listeners) {
    absl::Status heard;
    backend().OnFailure([&](const absl::Status& status) { heard = status; });
    EXPECT_EQ(heard, failure);
  }
  backend().OnFailure(nullptr);
}

TEST_P(BackendConformanceTest, NothingToCopyIsDone) {
  const Extent extent = Allocate(64);
  EXPECT_TRUE(backend().Write({}, Stream::None()).Done());
  EXPECT_TRUE(backend().Read({}, Stream::None()).Done());
  EXPECT_EQ(backend().Read({}, Stream::None()).size(), 0u);
  // Also at the very end of the extent.
  const WriteOp write = MakeWrite(extent, extent.size, {});
  EXPECT_TRUE(backend().Write({&write, 1}, Stream::None()).Wait().ok());
  const ConstBytes empty[] = {ConstBytes()};
  const WriteOp empty_piece = MakeWrite(extent, extent.size, empty);
  EXPECT_TRUE(backend().Write({&empty_piece, 1}, Stream::None()).Wait().ok());
}

TEST_P(BackendConformanceTest, OpListsMayGoWhenTheCallReturns) {
  if (!traits().stores_bytes) GTEST_SKIP() << "no bytes to compare";
  const Extent extent = Allocate(64);
  const std::string bytes = Pattern(64, 3);
  auto source = std::make_unique<ConstBytes>(AsBytes(bytes));
  auto op = std::make_unique<WriteOp>(MakeWrite(extent, 0, {source.get(), 1}));
  const Transfer transfer = backend().Write({op.get(), 1}, Stream::None());
  op.reset();
  source.reset();
  ASSERT_TRUE(transfer.Wait().ok());
  EXPECT_EQ(Contents(extent).substr(0, 64), bytes);
}

TEST_P(BackendConformanceTest, AddressesAreStableDistinctOrNull) {
  if (!traits().addressable) {
    EXPECT_EQ(backend().Address(Allocate(64)), nullptr);
    return;
  }
  const Extent first = Allocate(64);
  std::byte* const address = backend().Address(first);
  ASSERT_NE(address, nullptr);
  for (int i = 0; i < 100; ++i) {
    const Extent other = Allocate(64);
    const std::byte* const other_address = backend().Address(other);
    EXPECT_TRUE(other_address >= address + first.size || other_address + other.size <= address);
    if (i % 2 == 0) Free(other);
  }
  EXPECT_EQ(backend().Address(first), address);
}

TEST_P(BackendConformanceTest, AddressesAndCopiesSeeTheSameBytes) {
  if (!traits().addressable || traits().memory_space.kind == MemoryKind::kDevice) {
    GTEST_SKIP() << "no pointers for this processor";
  }
  const Extent extent = Allocate(1000);
  const std::string bytes = Pattern(1000, 1);
  ASSERT_TRUE(Write(extent, bytes).ok());
  char* const address = reinterpret_cast<char*>(backend().Address(extent));
  EXPECT_EQ(absl::string_view(address, 1000), bytes);
  address[500] = static_cast<char>(~bytes[500]);
  EXPECT_EQ(Contents(extent)[500], address[500]);
}

TEST_P(BackendConformanceTest, FourThreadsNeverSeeEachOthersBytes) {
  constexpr int kThreads = 4;
  constexpr int kSteps = 500;
  struct Held {
    Extent extent;
    std::string bytes;
  };
  const auto work = [this](uint32_t seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937 random(seed);
    std::vector<Held> all;
    const auto check = [&](const Held& held) {
      if (!traits().stores_bytes) return;
      EXPECT_TRUE(ReadAll(backend(), held.extent) == held.bytes) << "bytes changed";
    };
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t choice = random() % 4;
      if (all.empty() || choice == 0) {
        const absl::StatusOr<Extent> extent = backend().Allocate(1 + random() % (kCapacity / 64));
        if (!extent.ok()) {
          EXPECT_EQ(extent.status().code(), absl::StatusCode::kResourceExhausted);
          if (all.empty()) continue;
          check(all.back());
          backend().Free(all.back().extent);
          all.pop_back();
          continue;
        }
        all.push_back({*extent, Pattern(extent->size, random())});
        EXPECT_TRUE(WriteAll(backend(), *extent, all.back().bytes, 0).ok());
        continue;
      }
      std::swap(all[random() % all.size()], all.back());
      Held& held = all.back();
      check(held);
      if (choice == 1) {
        backend().Free(held.extent);
        all.pop_back();
      } else if (choice == 2) {
        const size_t offset = random() % held.extent.size;
        const std::string bytes = Pattern(1 + random() % (held.extent.size - offset), random());
        EXPECT_TRUE(WriteAll(backend(), held.extent, bytes, offset).ok());
        held.bytes.replace(offset, bytes.size(), bytes);
      }
    }
    for (const Held& held : all) {
      check(held);
      backend().Free(held.extent);
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t seed = 1; seed <= kThreads; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Allocate(traits().capacity_bytes).size, traits().capacity_bytes) << "room was lost";
}

}  // namespace kvcache
