// Caches in pinned host memory and in device memory, used by an engine that orders everything by
// its streams, on a GPU that runs work in every order that it may. KVCACHE_SEED=n runs one scenario
// alone.
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

constexpr uint32_t kKeys = 8;
constexpr uint32_t kParts = 3;
constexpr size_t kPartBytes = 512;
constexpr size_t kBlockBytes = kParts * kPartBytes;
constexpr BlockSize kSize = {kBlockBytes, kParts};
constexpr std::byte kPoison{0xEE};
constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr MemorySpace kDevice = {MemoryKind::kDevice, 0};

enum class Where { kPinnedHost, kDevice };
enum class Faults { kNone, kRefusedCalls, kLostDevice };

uint64_t right_parts = 0;
uint64_t failed_ops = 0;

class Scenario {
 public:
  Scenario(Where where, Faults faults, uint64_t seed)
      : where_(where),
        faults_(faults),
        random_(seed),
        gpu_(std::make_shared<FakeGpuRuntime>(
            FakeGpuRuntime::Options{.device_bytes = size_t{4} << 20,
                                    .seed = static_cast<uint32_t>(seed),
                                    .run_when_waited_for = false})) {
    const DeviceLinkOptions link = {.kernel_below_bytes = random_.Chance(50) ? 0u : 600u,
                                    .threads = 1 + random_.Below(2)};
    const size_t capacity = (3 + random_.Below(4)) * kBlockBytes;
    absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
        where == Where::kDevice
            ? CreateCudaDeviceBackend({.capacity_bytes = capacity, .link = link}, gpu_)
            : CreatePinnedHostBackend({.capacity_bytes = capacity, .link = link}, gpu_);
    EXPECT_TRUE(backend.ok()) << backend.status();
    auto cache = Cache::Create({}, *std::move(backend), CreateLruPolicy());
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    for (Stream& stream : streams_) stream = gpu_->EngineStream();
    for (Buffer& buffer : buffers_) buffer.data = *gpu_->AllocateDevice(0, kBlockBytes);
  }

  void Run() {
    const uint32_t steps = 20 + random_.Below(20);
    const uint32_t fault_at = random_.Below(steps);
    for (uint32_t i = 0; i < steps; ++i) {
      if (i == fault_at) Fault();
      Act();
      for (uint32_t run = random_.Below(12); run > 0; --run) gpu_->Step();
      // However slow the threads of the backend are, now and then they have caught up.
      if (random_.Chance(25)) Settle();
      Collect();
    }
    End();
  }

 private:
  struct Buffer {
    std::byte* data = nullptr;
    std::atomic<bool> busy = false;
    MutableBytes part(uint32_t part) const { return {data + part * kPartBytes, kPartBytes}; }
  };
  // A load under way: whether the engine's kernels saw what they should have.
  struct Load {
    Transfer transfer;
    Buffer* buffer;
    std::array<std::atomic<int>, kParts> seen = {};  // 1: right, -1: wrong
    std::atomic<bool> ran = false;                   // the last kernel
  };

  Stream& AnyStream() { return streams_[random_.Below(streams_.size())]; }
  BlockKey AnyKey() { return NumberedKey(random_.Below(kKeys)); }
  Buffer* FreeBuffer() {
    for (Buffer& buffer : buffers_) {
      if (!buffer.busy.exchange(true)) return &buffer;
    }
    return nullptr;
  }

  void Fault() {
    if (faults_ == Faults::kLostDevice) gpu_->LoseDevice(0, random_.Below(40));
    if (faults_ != Faults::kRefusedCalls) return;
    static constexpr std::array<const char*, 5> kCalls = {"CopyBatch", "CopyByKernel", "MakeWait",
                                                          "CreateEvent", "RegisterHost"};
    gpu_->FailCall(kCalls[random_.Below(kCalls.size())], absl::ResourceExhaustedError("injected"),
                   random_.Below(3));
  }

  void Act() {
    switch (random_.Below(8)) {
      case 0:
      case 1:
        return Save();
      case 2:
      case 3:
        return LoadOne();
      case 4:
        return ReadInPlace();
      case 5:
        return WriteInPlace();
      case 6:
        return SaveMany();
      default:
        if (random_.Chance(70)) {
          cache_->Erase(AnyKey());
        } else {
          cache_->Clear();
        }
    }
  }

  // Behind whatever was enqueued on the stream before.
  void PoisonAndFree(Stream stream, Buffer* buffer) {
    gpu_->Enqueue(stream, [buffer] {
      std::memset(buffer->data, static_cast<int>(kPoison), kBlockBytes);
      buffer->busy = false;
    });
  }

  // Whether what is enqueued on the stream from now on comes after the copies.
  bool Order(Stream stream, const Transfer& copies) {
    const absl::Status ordered = copies.WaitOn(stream);
    const bool comes_after = ordered.ok() || copies.Done();
    EXPECT_TRUE(comes_after || faults_ != Faults::kNone) << ordered;
    return comes_after;
  }

  void Save() {
    Buffer* const buffer = FreeBuffer();
    if (buffer == nullptr) return;
    const Stream stream = AnyStream();
    const BlockKey key = AnyKey();
    gpu_->Enqueue(stream, [=] { FillBlock(key, kParts, {buffer->data, kBlockBytes}); });
    absl::StatusOr<WriteLease> lease = cache_->Reserve(key, kSize);
    if (!lease.ok()) return PoisonAndFree(stream, buffer);
    bool ordered = true;
    for (uint32_t part = 0; part < kParts; ++part) {
      Transfer copy = lease->WritePart(part, {buffer->part(part)}, kDevice, stream);
      ordered &= Order(stream, copy);
      lease->CommitAfter(part, std::move(copy)).IgnoreError();
    }
    lease->Commit().IgnoreError();
    if (ordered) PoisonAndFree(stream, buffer);
  }

  void SaveMany() {
    Buffer* const a = FreeBuffer();
    Buffer* const b = FreeBuffer();
    if (a == nullptr || b == nullptr) {
      if (a != nullptr) a->busy = false;
      return;
    }
    const Stream stream = AnyStream();
    const uint32_t number = random_.Below(kKeys - 1);
    const BlockKey first = NumberedKey(number);
    const BlockKey second = NumberedKey(number + 1);
    gpu_->Enqueue(stream, [=] {
      FillBlock(first, kParts, {a->data, kBlockBytes});
      FillBlock(second, kParts, {b->data, kBlockBytes});
    });
    const ConstBytes sources[] = {{a->data, kBlockBytes}, {b->data, kBlockBytes}};
    const PutRequest requests[] = {{first, kSize, {&sources[0], 1}, kDevice, {}},
                                   {second, kSize, {&sources[1], 1}, kDevice, {}}};
    const Transfer copies = cache_->PutMany(requests, stream);
    if (!Order(stream, copies)) return;
    PoisonAndFree(stream, a);
    PoisonAndFree(stream, b);
  }

  void LoadOne() {
    const BlockKey key = AnyKey();
    absl::StatusOr<ReadLease> lease = cache_->Get(kNs, key);
    if (!lease.ok()) return;
    Buffer* const buffer = FreeBuffer();
    if (buffer == nullptr) return;
    const Stream stream = AnyStream();
    Load& load = loads_.emplace_back();
    load.buffer = buffer;
    std::array<MutableBytes, kParts> pieces;
    std::array<absl::Span<const MutableBytes>, kParts> destinations;
    for (uint32_t part = 0; part < kParts; ++part) {
      pieces[part] = buffer->part(part);
      destinations[part] = {&pieces[part], 1};
    }
    load.transfer = lease->ReadParts(destinations, kDevice, stream);
    for (uint32_t part = 0; part < kParts; ++part) {
      const absl::Status ordered = load.transfer.WaitPartOn(stream, part);
      EXPECT_TRUE(ordered.ok() || faults_ != Faults::kNone) << ordered;
      // Without the wait nobody knows what the kernel sees.
      gpu_->Enqueue(stream, [&load, buffer, key, part, known = ordered.ok()] {
        load.seen[part] = !known || IsPart(key, part, buffer->part(part)) ? 1 : -1;
        if (part == kParts - 1) load.ran = true;
      });
    }
  }

  void ReadInPlace() {
    const BlockKey key = AnyKey();
    absl::StatusOr<ReadLease> lease = cache_->Get(kNs, key);
    if (!lease.ok()) return;
    const Stream stream = AnyStream();
    gpu_->Enqueue(stream, [key, data = lease->data()] {
      EXPECT_TRUE(IsBlock(key, kParts, {data, kBlockBytes})) << "read in place";
    });
    const absl::Status status = lease->ReleaseAfter(stream);
    EXPECT_EQ(lease->holds(), !status.ok());
    EXPECT_TRUE(status.ok() || faults_ != Faults::kNone) << status;
    // The engine cannot know when its kernel has run.
    if (!status.ok()) stuck_.push_back(*std::move(lease));
  }

  void WriteInPlace() {
    const BlockKey key = AnyKey();
    absl::StatusOr<WriteLease> lease = cache_->Reserve(key, kSize);
    if (!lease.ok()) return;
    const Stream stream = AnyStream();
    gpu_->Enqueue(stream, [key, data = lease->data()] {
      FillBlock(key, kParts, {data, kBlockBytes});
    });
    std::array<Transfer, kParts> written;
    for (Transfer& part : written) {
      part = cache_->After(stream);
      if (!part.Done() || part.Wait().ok()) continue;
      EXPECT_NE(faults_, Faults::kNone) << part.Wait();
      // The engine cannot know when its kernel has run.
      stuck_writes_.push_back(*std::move(lease));
      return;
    }
    for (uint32_t part = 0; part < kParts; ++part) {
      lease->CommitAfter(part, std::move(written[part])).IgnoreError();
    }
    lease->Commit().IgnoreError();
  }

  void Settle() {
    gpu_->RunAll();
    cache_->Drain();
  }

  // Looks at the loads that have ended.
  void Collect() {
    for (auto load = loads_.begin(); load != loads_.end();) {
      if (!load->ran || !load->transfer.Done()) {
        ++load;
        continue;
      }
      for (uint32_t part = 0; part < kParts; ++part) {
        if (load->transfer.result(part).ok()) {
          EXPECT_EQ(load->seen[part], 1) << "part " << part;
          ++right_parts;
        } else {
          EXPECT_NE(faults_, Faults::kNone) << load->transfer.result(part);
          ++failed_ops;
        }
      }
      load->buffer->busy = false;
      load = loads_.erase(load);
    }
  }

  void End() {
    if (faults_ == Faults::kLostDevice) gpu_->LoseDevice(0);
    gpu_->RunAll();
    for (Load& load : loads_) load.transfer.Wait().IgnoreError();
    Collect();
    EXPECT_TRUE(loads_.empty() || faults_ == Faults::kLostDevice);
    loads_.clear();
    stuck_.clear();
    stuck_writes_.clear();
    cache_->Drain();
    if (faults_ == Faults::kLostDevice && where_ == Where::kDevice) {
      // Told by a thread of the backend, once anything was asked of the device.
      cache_->After(streams_[0]).Wait().IgnoreError();
      while (cache_->stats().usage.blocks > 0) std::this_thread::yield();
      for (uint32_t key = 0; key < kKeys; ++key) {
        EXPECT_TRUE(absl::IsNotFound(cache_->Get(kNs, NumberedKey(key)).status()));
        const absl::Status refused = cache_->Reserve(NumberedKey(key), kSize).status();
        EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
      }
    }
    cache_.reset();
    for (Buffer& buffer : buffers_) gpu_->FreeDevice(0, buffer.data).IgnoreError();
    EXPECT_TRUE(gpu_->violations().empty()) << absl::StrJoin(gpu_->violations(), "\n");
  }

  const Where where_;
  const Faults faults_;
  Random random_;
  const std::shared_ptr<FakeGpuRuntime> gpu_;
  std::unique_ptr<Cache> cache_;
  std::array<Stream, 2> streams_;
  std::array<Buffer, 5> buffers_;
  std::list<Load> loads_;
  std::vector<ReadLease> stuck_;
  std::vector<WriteLease> stuck_writes_;
};

void RunScenarios(Where where, Faults faults) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  uint64_t seeds = 1000;
#else
  uint64_t seeds = 10000;
#endif
  uint64_t first = 1;
  if (const std::optional<uint64_t> seed = SeedFromEnvironment()) {
    first = *seed;
    seeds = 1;
  }
  right_parts = failed_ops = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    Scenario(where, faults, seed).Run();
    ASSERT_FALSE(testing::Test::HasFailure()) << "KVCACHE_SEED=" << seed;
  }
  if (seeds == 1) return;
  EXPECT_GT(right_parts, seeds / 2);
  EXPECT_EQ(failed_ops > 0, faults != Faults::kNone);
}

TEST(EngineTest, PinnedHost) { RunScenarios(Where::kPinnedHost, Faults::kNone); }
TEST(EngineTest, Device) { RunScenarios(Where::kDevice, Faults::kNone); }
TEST(EngineTest, PinnedHostWithRefusedCalls) {
  RunScenarios(Where::kPinnedHost, Faults::kRefusedCalls);
}
TEST(EngineTest, DeviceWithRefusedCalls) { RunScenarios(Where::kDevice, Faults::kRefusedCalls); }
TEST(EngineTest, PinnedHostWhoseDeviceIsLost) {
  RunScenarios(Where::kPinnedHost, Faults::kLostDevice);
}
TEST(EngineTest, DeviceThatIsLost) { RunScenarios(Where::kDevice, Faults::kLostDevice); }

}  // namespace
}  // namespace kvcache
