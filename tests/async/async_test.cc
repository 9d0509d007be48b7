// A cache over a backend whose copies end when the test says so: in any order, badly, or after the
// caller let go of everything. 10,000 seeds; KVCACHE_SEED=N runs one of them.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/core/cache.h"
#include "kvcache/core/manual_clock.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr uint32_t kParts = 2;
constexpr size_t kPartBytes = 64;
constexpr size_t kBytes = kParts * kPartBytes;
constexpr size_t kCapacity = 6 * kBytes;
constexpr uint8_t kKeys = 10;

BlockKey Key(uint8_t number) { return {{number, 7}}; }

std::byte ByteOf(uint8_t number, size_t offset) {
  return static_cast<std::byte>(number * 37 + offset * 11 + 1);
}

// Hands everything to a backend that outlives the cache.
class Borrowed final : public StorageBackend {
 public:
  explicit Borrowed(StorageBackend& backend) : backend_(backend) {}
  const BackendTraits& traits() const override { return backend_.traits(); }
  absl::StatusOr<Extent> Allocate(size_t bytes) override { return backend_.Allocate(bytes); }
  void Free(Extent extent) override { backend_.Free(extent); }
  std::byte* Address(Extent extent) const override { return backend_.Address(extent); }
  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override {
    return backend_.Write(ops, stream);
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    return backend_.Read(ops, stream);
  }

 private:
  StorageBackend& backend_;
};

class Scenario {
 public:
  explicit Scenario(uint64_t seed) : random_(seed), backend_(FakeBackend::Create(kCapacity)) {
    CacheOptions options;
    options.clock = &clock_;
    options.max_blocks = 16;
    cache_ = *Cache::Create(options, std::make_unique<Borrowed>(*backend_), CreateLruPolicy());
  }

  void Run() {
    const int steps = 30 + Random(40);
    for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
      Step();
      const CacheStats stats = cache_->stats();
      EXPECT_LE(stats.usage.bytes_in_use, kCapacity);
      EXPECT_LE(stats.peak_bytes, kCapacity);
    }
    readers_.clear();
    writers_.clear();
    if (Random(2) == 0) {
      // The destructor waits for the copies.
      std::thread destroyer([this] { cache_.reset(); });
      EndSome(/*all=*/true);
      destroyer.join();
    } else {
      EndSome(/*all=*/true);
      CheckIdle();
      cache_.reset();
    }
    EXPECT_EQ(open_copies_, 0);
    // Nothing was lost: one extent can have all there is.
    EXPECT_TRUE(backend_->Allocate(kCapacity).ok());
  }

 private:
  struct Writer {
    uint8_t number;
    WriteLease lease;
    std::vector<bool> given;  // to CommitAfter
  };

  // A caller's memory for a copy, alive until the copy has ended.
  struct Buffer {
    std::vector<std::byte> bytes;
    ConstBytes source;
    MutableBytes destination;
  };

  static std::shared_ptr<Buffer> MakeBuffer(size_t bytes) {
    auto buffer = std::make_shared<Buffer>();
    buffer->bytes.assign(bytes, std::byte{0xEE});
    buffer->source = buffer->bytes;
    buffer->destination = absl::MakeSpan(buffer->bytes);
    return buffer;
  }
  static std::shared_ptr<Buffer> MakeContent(uint8_t number, size_t offset, size_t bytes) {
    auto buffer = MakeBuffer(bytes);
    for (size_t i = 0; i < bytes; ++i) buffer->bytes[i] = ByteOf(number, offset + i);
    return buffer;
  }

  uint32_t Random(uint32_t below) { return static_cast<uint32_t>(random_() % below); }

  // Checks, when the op has ended, what arrived: all of it or nothing.
  void Expect(const Transfer& copy, size_t op, std::shared_ptr<Buffer> buffer, uint8_t number,
              size_t offset) {
    ++open_copies_;
    copy.OnOpDone([=, this](size_t ended, const absl::Status& status) {
      if (ended != op) return;
      --open_copies_;
      for (size_t i = 0; i < buffer->bytes.size(); ++i) {
        ASSERT_EQ(buffer->bytes[i], status.ok() ? ByteOf(number, offset + i) : std::byte{0xEE})
            << "block " << int{number} << " byte " << offset + i << ": " << status;
      }
    });
    if (Random(8) == 0) copy.Cancel();
  }

  void Step() {
    switch (Random(14)) {
      case 0:
      case 1:
        return Reserve();
      case 2:
      case 3:
        return WriteSomething();
      case 4:
        return EndWriter();
      case 5:
        return Get();
      case 6:
        return ReadSomething();
      case 7:
        return ReadMany();
      case 8:
        return PutMany();
      case 9:
        if (!readers_.empty()) readers_.erase(readers_.begin() + Random(readers_.size()));
        return;
      case 10:
        return Remove();
      default:
        return EndSome(/*all=*/Random(10) == 0);
    }
  }

  void Reserve() {
    const uint8_t number = Random(kKeys);
    PutOptions options;
    if (Random(2) == 0) options.parent = Key((number + 1) % kKeys);
    if (Random(4) == 0) options.ttl = absl::Seconds(1 + Random(5));
    absl::StatusOr<WriteLease> lease = cache_->Reserve(Key(number), {kBytes, kParts}, options);
    if (!lease.ok()) return;
    Writer writer = {number, *std::move(lease), std::vector<bool>(kParts)};
    for (uint32_t part = 0; part < kParts; ++part) {
      writer.given[part] = writer.lease.committed(part);
    }
    writers_.push_back(std::move(writer));
  }

  void WriteSomething() {
    if (writers_.empty()) return;
    Writer& writer = writers_[Random(writers_.size())];
    const uint32_t part = Random(kParts);
    if (writer.given[part]) return;
    auto buffer = MakeContent(writer.number, part * kPartBytes, kPartBytes);
    Transfer copy = writer.lease.WritePart(part, {&buffer->source, 1});
    copy.OnDone([buffer](const absl::Status&) {});
    if (copy.Done() && !copy.Wait().ok()) return;  // refused: a copy failed meanwhile
    const absl::Status status = writer.lease.CommitAfter(part, std::move(copy));
    EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
    writer.given[part] = true;
  }

  void EndWriter() {
    if (writers_.empty()) return;
    const size_t index = Random(writers_.size());
    Writer& writer = writers_[index];
    bool all_given = true;
    for (bool given : writer.given) all_given = all_given && given;
    const uint32_t how = Random(3);
    absl::Status status;
    if (how == 0 && all_given) {
      status = writer.lease.Commit();
    } else if (how == 1) {
      status = writer.lease.Suspend();
    }
    EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
    writers_.erase(writers_.begin() + index);
  }

  void Get() {
    const uint8_t number = Random(kKeys);
    absl::StatusOr<ReadLease> lease = cache_->Get(kNs, Key(number));
    if (lease.ok()) readers_.push_back({number, *std::move(lease)});
  }

  void ReadSomething() {
    const uint32_t part = Random(kParts);
    if (!readers_.empty() && Random(2) == 0) {
      const auto& [number, lease] = readers_[Random(readers_.size())];
      auto buffer = MakeBuffer(kBytes);
      Expect(lease.Read({&buffer->destination, 1}), 0, buffer, number, 0);
      return;
    }
    const uint8_t number = Random(kKeys);
    absl::StatusOr<ReadLease> lease = cache_->GetPart(kNs, Key(number), part);
    if (!lease.ok()) return;
    auto buffer = MakeBuffer(kPartBytes);
    Expect(lease->Read({&buffer->destination, 1}), 0, buffer, number, part * kPartBytes);
  }

  void ReadMany() {
    std::vector<ReadRequest> requests(1 + Random(4));
    std::vector<uint8_t> numbers;
    std::vector<std::shared_ptr<Buffer>> buffers;
    for (ReadRequest& request : requests) {
      numbers.push_back(Random(kKeys));
      if (Random(3) == 0) request.part = Random(kParts);
      buffers.push_back(MakeBuffer(request.part.has_value() ? kPartBytes : kBytes));
      request.key = Key(numbers.back());
      request.destination = {&buffers.back()->destination, 1};
    }
    const Transfer copies = cache_->ReadInto(requests);
    ASSERT_EQ(copies.size(), requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      Expect(copies, i, buffers[i], numbers[i], requests[i].part.value_or(0) * kPartBytes);
    }
  }

  void PutMany() {
    std::vector<PutRequest> requests(1 + Random(3));
    std::vector<std::shared_ptr<Buffer>> buffers;
    for (PutRequest& request : requests) {
      const uint8_t number = Random(kKeys);
      buffers.push_back(MakeContent(number, 0, kBytes));
      request.key = Key(number);
      request.size = {kBytes, kParts};
      request.source = {&buffers.back()->source, 1};
      if (Random(3) == 0) request.options.parent = Key((number + 1) % kKeys);
    }
    const Transfer copies = cache_->PutMany(requests);
    ASSERT_EQ(copies.size(), requests.size());
    copies.OnDone([buffers](const absl::Status&) {});
    if (Random(8) == 0) copies.Cancel();
  }

  void Remove() {
    switch (Random(6)) {
      case 0:
        cache_->Clear();
        break;
      case 1:
        clock_.Advance(absl::Seconds(Random(4)));
        break;
      case 2:
        cache_->Resize(kBytes * (1 + Random(6))).IgnoreError();
        cache_->Resize(kCapacity).IgnoreError();
        break;
      default:
        cache_->Erase(Key(Random(kKeys)));
    }
  }

  void EndSome(bool all) {
    do {
      const size_t pending = backend_->pending();
      if (pending == 0) return;
      const size_t index = Random(pending);
      if (Random(4) == 0) {
        backend_->Fail(index, absl::DataLossError("injected"));
      } else {
        backend_->Complete(index);
      }
    } while (all);
  }

  void CheckIdle() {
    CacheStats stats = cache_->stats();
    EXPECT_EQ(stats.leases, 0);
    EXPECT_EQ(stats.usage.bytes_detached, 0);
    for (uint8_t number = 0; number < kKeys; ++number) {
      EXPECT_NE(cache_->Lookup(Key(number)), LookupResult::kPending);
    }
    cache_->Clear();
    EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0);
    EXPECT_EQ(cache_->stats().usage.blocks, 0);
  }

  std::mt19937_64 random_;
  ManualClock clock_;
  std::unique_ptr<FakeBackend> backend_;
  std::unique_ptr<Cache> cache_;
  std::vector<std::pair<uint8_t, ReadLease>> readers_;
  std::vector<Writer> writers_;
  int open_copies_ = 0;
};

TEST(AsyncTest, NoOrderOfCopiesFailuresAndRemovalsBreaksAnything) {
  const char* only = std::getenv("KVCACHE_SEED");
  const uint64_t first = only == nullptr ? 1 : std::strtoull(only, nullptr, 10);
  const uint64_t last = only == nullptr ? 10'000 : first;
  for (uint64_t seed = first; seed <= last; ++seed) {
    SCOPED_TRACE("KVCACHE_SEED=" + std::to_string(seed));
    Scenario(seed).Run();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvcache
