// Leases and copies that outlive their cache.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_backend/fake_backend.h"
#include "kvcache/tests/fake_backend/forwarding_backend.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr BlockSize kSize = {256, 2};
constexpr size_t kPart = 128;

// Says when the backend that it stands for has been destroyed.
class WatchedBackend final : public StorageBackend {
 public:
  WatchedBackend(std::unique_ptr<StorageBackend> backend, std::shared_ptr<std::promise<void>> gone)
      : backend_(std::move(backend)), gone_(std::move(gone)) {}
  ~WatchedBackend() override {
    backend_.reset();
    gone_->set_value();
  }

  const BackendTraits& traits() const override { return backend_->traits(); }
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) override {
    return backend_->Allocate(bytes, owner);
  }
  void Free(Extent extent) override { backend_->Free(extent); }
  std::byte* Address(Extent extent) const override { return backend_->Address(extent); }
  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override {
    return backend_->Write(ops, stream);
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    return backend_->Read(ops, stream);
  }

 private:
  std::unique_ptr<StorageBackend> backend_;
  const std::shared_ptr<std::promise<void>> gone_;
};

std::vector<std::byte> Content(uint32_t key) {
  std::vector<std::byte> bytes(kSize.bytes);
  FillBlock(NumberedKey(key), kSize.parts, absl::MakeSpan(bytes));
  return bytes;
}

bool IsContent(uint32_t key, absl::Span<const std::byte> bytes) {
  return IsBlock(NumberedKey(key), kSize.parts, bytes);
}

class LifetimeTest : public ::testing::Test {
 protected:
  void Make(std::unique_ptr<StorageBackend> backend) {
    auto gone = std::make_shared<std::promise<void>>();
    gone_ = gone->get_future();
    clock_.emplace();
    CacheOptions options;
    options.clock = &*clock_;
    cache_ = *Cache::Create(options,
                            std::make_unique<WatchedBackend>(std::move(backend), std::move(gone)),
                            CreateLruPolicy());
  }
  void MakeCpuRam() { Make(*CreateCpuRamBackend({.capacity_bytes = size_t{64} << 10})); }
  void MakeFake() {
    auto fake = FakeBackend::Create(size_t{64} << 10);
    fake_ = fake.get();
    Make(std::move(fake));
  }

  void Put(uint32_t key) {
    const std::vector<std::byte> bytes = Content(key);
    if (fake_ != nullptr) fake_->set_auto_complete(true);
    ASSERT_TRUE(cache_->Put(NumberedKey(key), kSize, {ConstBytes(bytes)}).ok());
    if (fake_ != nullptr) fake_->set_auto_complete(false);
  }
  ReadLease Get(uint32_t key) { return *cache_->Get(kNs, NumberedKey(key)); }
  WriteLease Reserve(uint32_t key) { return *cache_->Reserve(NumberedKey(key), kSize); }

  // Nothing asks its clock any more.
  void End() {
    cache_.reset();
    clock_.reset();
  }
  bool Gone() { return gone_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
  void WaitUntilGone() { gone_.wait(); }

  std::optional<ManualClock> clock_;
  std::unique_ptr<Cache> cache_;
  FakeBackend* fake_ = nullptr;
  std::future<void> gone_;
};

TEST_F(LifetimeTest, ACacheWithoutLeasesGoesAtOnce) {
  MakeCpuRam();
  Put(1);
  End();
  EXPECT_TRUE(Gone());
}

TEST_F(LifetimeTest, AReadLeaseKeepsItsBytesWhenTheCacheHasEnded) {
  MakeCpuRam();
  for (uint32_t key = 0; key < 8; ++key) Put(key);
  ReadLease block = Get(3);
  ReadLease part = *cache_->GetPart(kNs, NumberedKey(5), 1);
  End();
  EXPECT_FALSE(Gone());

  EXPECT_TRUE(IsContent(3, {block.data(), block.size()}));
  std::vector<std::byte> copy(block.size());
  EXPECT_TRUE(block.Read({absl::MakeSpan(copy)}).Wait().ok());
  EXPECT_TRUE(IsContent(3, copy));
  EXPECT_TRUE(block.Verify().ok());
  EXPECT_TRUE(part.Verify().ok());
  EXPECT_TRUE(IsPart(NumberedKey(5), 1, {part.data(), part.size()}));

  block.Release();
  EXPECT_FALSE(Gone());
  EXPECT_TRUE(part.ReleaseAfter(Stream::None()).ok());
  EXPECT_TRUE(Gone());
}

TEST_F(LifetimeTest, ALeaseOfAnEndedCacheFindsChangedBytes) {
  MakeCpuRam();
  Put(1);
  ReadLease lease = Get(1);
  End();
  *const_cast<std::byte*>(lease.data()) ^= std::byte{1};
  EXPECT_TRUE(absl::IsDataLoss(lease.Verify()));
  lease.Release();
  EXPECT_TRUE(Gone());
}

TEST_F(LifetimeTest, CommitsAreAbortedWhenTheCacheHasEnded) {
  using Step = std::function<void(WriteLease&)>;
  const std::pair<const char*, Step> steps[] = {
      {"dropped", [](WriteLease& lease) { lease.Abort(); }},
      {"committed", [](WriteLease& lease) { EXPECT_TRUE(absl::IsAborted(lease.Commit())); }},
      {"suspended", [](WriteLease& lease) { EXPECT_TRUE(absl::IsAborted(lease.Suspend())); }},
      {"a part committed",
       [](WriteLease& lease) {
         EXPECT_TRUE(absl::IsAborted(lease.CommitPart(0)));
         EXPECT_FALSE(lease.committed(0));
         lease.Abort();
       }},
      {"written and committed",
       [](WriteLease& lease) {
         const std::vector<std::byte> bytes = Content(1);
         EXPECT_TRUE(lease.Write({ConstBytes(bytes)}).Wait().ok());
         EXPECT_TRUE(absl::IsAborted(lease.CommitAfter(1, Transfer())));
         EXPECT_TRUE(absl::IsAborted(lease.Commit()));
       }},
  };
  for (const auto& [name, step] : steps) {
    SCOPED_TRACE(name);
    MakeCpuRam();
    WriteLease lease = Reserve(1);
    std::memset(lease.data(), 1, lease.size());
    End();
    EXPECT_FALSE(Gone());
    step(lease);
    EXPECT_FALSE(lease.holds());
    EXPECT_TRUE(Gone());
  }
}

TEST_F(LifetimeTest, APartialOrDetachedBlockIsKeptByItsLeaseToo) {
  MakeCpuRam();
  WriteLease write = Reserve(1);
  FillPart(NumberedKey(1), 0, {write.part(0), kPart});
  ASSERT_TRUE(write.CommitPart(0).ok());
  ReadLease part = *cache_->GetPart(kNs, NumberedKey(1), 0);
  ASSERT_TRUE(write.Suspend().ok());
  Put(2);
  ReadLease erased = Get(2);
  ASSERT_TRUE(cache_->Erase(NumberedKey(2)));
  End();
  EXPECT_TRUE(IsPart(NumberedKey(1), 0, {part.data(), part.size()}));
  EXPECT_TRUE(IsContent(2, {erased.data(), erased.size()}));
  part.Release();
  erased.Release();
  EXPECT_TRUE(Gone());
}

// A chain of all blocks, so that what the end removes hangs below what is leased.
TEST_F(LifetimeTest, LeasesOfABatchMayGoInAnyOrder) {
  constexpr uint32_t kBlocks = 6;
  Random random(1);
  for (uint32_t round = 0; round < 200; ++round) {
    MakeCpuRam();
    std::vector<BlockKey> keys;
    for (uint32_t key = 0; key < kBlocks; ++key) {
      PutOptions options;
      if (key > 0) options.parent = keys.back();
      keys.push_back(NumberedKey(key));
      const std::vector<std::byte> bytes = Content(key);
      ASSERT_TRUE(cache_->Put(keys.back(), kSize, {ConstBytes(bytes)}, options).ok());
    }
    std::vector<ReadLease> reads = std::move(cache_->Match({.ns = kNs, .keys = keys}).blocks);
    ASSERT_EQ(reads.size(), kBlocks);
    std::vector<WriteLease> writes;
    for (uint32_t key = kBlocks; key < 2 * kBlocks; ++key) writes.push_back(Reserve(key));
    const uint32_t end_at = random.Below(2 * kBlocks);
    for (uint32_t left = 2 * kBlocks; left > 0; --left) {
      if (2 * kBlocks - left == end_at) End();
      const uint32_t i = random.Below(left);
      if (i < reads.size()) {
        std::swap(reads[i], reads.back());
        reads.pop_back();
      } else {
        std::swap(writes[i - reads.size()], writes.back());
        writes.pop_back();
      }
      EXPECT_EQ(Gone(), left == 1);
    }
  }
}

TEST_F(LifetimeTest, ThreadsMayDropLeasesWhileTheCacheEnds) {
  constexpr uint32_t kThreads = 4;
  constexpr uint32_t kLeases = 16;
  for (uint32_t round = 0; round < 50; ++round) {
    MakeCpuRam();
    std::vector<std::vector<ReadLease>> reads(kThreads);
    std::vector<std::vector<WriteLease>> writes(kThreads);
    for (uint32_t i = 0; i < kThreads * kLeases; ++i) {
      Put(i);
      reads[i % kThreads].push_back(Get(i));
      writes[i % kThreads].push_back(Reserve(1000 + i));
    }
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&reads, &writes, t] {
        for (ReadLease& lease : reads[t]) {
          EXPECT_TRUE(lease.Verify().ok());
          lease.Release();
        }
        for (WriteLease& lease : writes[t]) lease.Abort();
      });
    }
    cache_.reset();
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(Gone());
  }
}

TEST_F(LifetimeTest, TheEndWaitsForCopiesUnderWay) {
  MakeFake();
  Put(1);
  ReadLease lease = Get(1);
  std::vector<std::byte> copy(kSize.bytes);
  const MutableBytes destination = absl::MakeSpan(copy);
  const Transfer read = lease.Read({destination});
  lease.Release();
  std::thread end([this] { End(); });
  EXPECT_FALSE(Gone());
  fake_->Complete(0);
  end.join();
  EXPECT_TRUE(read.Done());
  EXPECT_TRUE(IsContent(1, copy));
  EXPECT_TRUE(Gone());
}

TEST_F(LifetimeTest, ACopyThatALeaseStartsAfterTheEndKeepsItsBlock) {
  MakeFake();
  Put(1);
  ReadLease read = Get(1);
  WriteLease write = Reserve(2);
  End();
  std::vector<std::byte> copy(kSize.bytes);
  const Transfer reading = read.Read({absl::MakeSpan(copy)});
  const std::vector<std::byte> source = Content(2);
  const Transfer writing = write.Write({ConstBytes(source)});
  read.Release();
  EXPECT_TRUE(absl::IsAborted(write.Commit()));
  EXPECT_FALSE(Gone());
  fake_->Complete(1);
  EXPECT_TRUE(writing.Wait().ok());
  EXPECT_FALSE(Gone());
  fake_->Complete(0);  // ends on this thread, in a callback: the cache goes on another
  EXPECT_TRUE(reading.Wait().ok());
  EXPECT_TRUE(IsContent(1, copy));
  WaitUntilGone();
}

TEST_F(LifetimeTest, DeferredCopiesAndLeasesMayEndInAnyOrder) {
  Random random(2);
  for (uint32_t round = 0; round < 300; ++round) {
    MakeFake();
    std::vector<ReadLease> reads;
    std::vector<WriteLease> writes;
    for (uint32_t key = 0; key < 3; ++key) {
      Put(key);
      reads.push_back(Get(key));
      writes.push_back(Reserve(10 + key));
    }
    End();
    std::vector<std::vector<std::byte>> buffers;
    std::vector<Transfer> transfers;
    buffers.reserve(100);
    const auto under_way = [&transfers] {
      return std::count_if(transfers.begin(), transfers.end(),
                           [](const Transfer& transfer) { return !transfer.Done(); });
    };
    while (!reads.empty() || !writes.empty() || under_way() > 0) {
      EXPECT_FALSE(Gone());
      const uint32_t what = random.Below(5);
      if (what == 0 && !reads.empty() && buffers.size() < 20) {
        buffers.emplace_back(kSize.bytes);
        transfers.push_back(reads.back().Read({absl::MakeSpan(buffers.back())}));
      } else if (what == 1 && !writes.empty() && buffers.size() < 20) {
        buffers.emplace_back(kPart);
        transfers.push_back(writes.back().WritePart(0, {ConstBytes(buffers.back())}));
        if (random.Chance(50)) {
          EXPECT_TRUE(absl::IsAborted(writes.back().Commit()));
        }
        writes.pop_back();
      } else if (what == 2 && !reads.empty()) {
        reads.pop_back();
      } else if (what == 3 && !writes.empty()) {
        writes.pop_back();
      } else if (under_way() > 0) {
        const size_t op = random.Below(under_way());
        if (random.Chance(80)) {
          fake_->Complete(op);
        } else {
          fake_->Fail(op, absl::InternalError("test"));
        }
      }
    }
    WaitUntilGone();
    for (const Transfer& transfer : transfers) EXPECT_TRUE(transfer.Done());
  }
}

TEST_F(LifetimeTest, ATransferMayOutliveTheCache) {
  MakeFake();
  Put(1);
  std::vector<std::byte> copy(kSize.bytes);
  const MutableBytes destination = absl::MakeSpan(copy);
  const ReadRequest requests[] = {{.key = NumberedKey(1), .destination = {&destination, 1}},
                                  {.key = NumberedKey(2), .destination = {&destination, 1}}};
  Transfer read = cache_->ReadInto(requests);
  const std::vector<std::byte> source = Content(3);
  const ConstBytes bytes(source);
  const PutRequest put = {.key = NumberedKey(3), .size = kSize, .source = {&bytes, 1}};
  Transfer write = cache_->PutMany({&put, 1});
  fake_->CompleteAll();
  End();
  EXPECT_TRUE(Gone());
  EXPECT_TRUE(read.result(0).ok());
  EXPECT_TRUE(absl::IsNotFound(read.result(1)));
  EXPECT_TRUE(write.Wait().ok());
  read.Cancel();
}

TEST_F(LifetimeTest, ACacheMayEndInACallbackOfItsOwnTransfer) {
  MakeFake();
  Put(1);
  ReadLease lease = Get(1);
  std::vector<std::byte> copies[2] = {Content(0), Content(0)};
  const Transfer first = lease.Read({absl::MakeSpan(copies[0])});
  const Transfer second = lease.Read({absl::MakeSpan(copies[1])});
  lease.Release();
  internal::OnOpDone(first, [this](size_t, const absl::Status&) { End(); });
  fake_->Complete(0);
  EXPECT_TRUE(first.Done());
  EXPECT_FALSE(Gone());  // one copy is under way
  fake_->Complete(0);
  WaitUntilGone();
  EXPECT_TRUE(IsContent(1, copies[0]));
  EXPECT_TRUE(IsContent(1, copies[1]));
}

TEST_F(LifetimeTest, TheLastLeaseMayGoInACallback) {
  MakeFake();
  Put(1);
  Put(2);
  ReadLease lease = Get(1);
  auto kept = std::make_shared<ReadLease>(Get(2));
  End();
  std::vector<std::byte> copy(kSize.bytes);
  const Transfer read = lease.Read({absl::MakeSpan(copy)});
  internal::OnDone(read, [kept = std::move(kept)](const absl::Status&) mutable { kept.reset(); });
  lease.Release();
  EXPECT_FALSE(Gone());
  fake_->Complete(0);
  WaitUntilGone();
}

TEST_F(LifetimeTest, ACommitMayWaitForACopyThatEndsAfterTheCache) {
  MakeCpuRam();
  WriteLease lease = Reserve(1);
  TransferSource source({0u});
  ASSERT_TRUE(lease.CommitAfter(0, source.transfer()).ok());
  std::thread end([this] { cache_.reset(); });
  source.Complete(0, absl::OkStatus());
  end.join();
  EXPECT_FALSE(Gone());
  EXPECT_TRUE(absl::IsAborted(lease.Commit()));
  EXPECT_TRUE(Gone());
}

TEST(PrefixLifetimeTest, CachedKvMayOutliveItsPrefixCache) {
  PrefixCacheOptions options;
  options.layers = 2;
  auto cache = *PrefixCache::Create(
      options, *CreateCpuRamBackend({.capacity_bytes = size_t{64} << 10}), CreateLruPolicy());
  const std::vector<float> data(3 * 8, 1.5f);
  const KvTensor tensor = {data.data(), DType::kF32, 3, 2, 4};
  const LayerKv layers[] = {{tensor, tensor}, {tensor, tensor}};
  ASSERT_TRUE(cache->CacheAllLayers("prompt", layers).ok());
  std::optional<CachedKv> kv = *cache->GetAllLayers("prompt");
  cache.reset();
  const auto* v = static_cast<const float*>(kv->layer(1).v.data);
  EXPECT_EQ(std::vector<float>(v, v + data.size()), data);
  std::vector<float> out(4 * data.size());
  std::vector<LayerDestination> destinations;
  for (size_t layer = 0; layer < 2; ++layer) {
    auto* at = reinterpret_cast<std::byte*>(out.data() + 2 * layer * data.size());
    destinations.push_back({{at, tensor.bytes()}, {at + tensor.bytes(), tensor.bytes()}});
  }
  EXPECT_TRUE(kv->CopyTo(destinations).Wait().ok());
  EXPECT_EQ(out, std::vector<float>(4 * data.size(), 1.5f));
  kv.reset();
}

// Its streams end when a test says so, though its copies end in the call.
class LateStreams final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  Transfer After(Stream) override { return stream.transfer(); }
  const TransferSource stream{std::vector<uint32_t>(1)};
};

TEST(ReleaseAfterTest, TheStreamHoldsTheBlockAndItsFailureIsNotThatOfTheBlock) {
  for (const absl::Status& ended :
       {absl::OkStatus(), absl::InternalError("the stream has failed")}) {
    auto owned =
        std::make_unique<LateStreams>(*CreateCpuRamBackend({.capacity_bytes = kSize.bytes}));
    const TransferSource stream = owned->stream;
    auto cache = *Cache::Create({}, std::move(owned), CreateLruPolicy());
    const std::vector<std::byte> bytes = Content(1);
    ASSERT_TRUE(cache->Put(NumberedKey(1), kSize, {ConstBytes(bytes)}).ok());
    ReadLease lease = *cache->Get(kNs, NumberedKey(1));
    ASSERT_TRUE(lease.ReleaseAfter({}).ok());
    EXPECT_FALSE(lease.holds());
    EXPECT_TRUE(absl::IsResourceExhausted(cache->Reserve(NumberedKey(2), kSize).status()));
    stream.Complete(0, ended);
    EXPECT_EQ(cache->stats().leases, 0u);
    EXPECT_EQ(cache->Lookup(NumberedKey(1)), LookupResult::kHit);
    EXPECT_EQ(cache->stats().counters.corrupted, 0u);
    EXPECT_TRUE(cache->Reserve(NumberedKey(2), kSize).ok());
  }
}

}  // namespace
}  // namespace kvcache
