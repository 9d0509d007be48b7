// Cache over copies that end late, in any order, badly, or when nobody is there any more.
// KVCACHE_SEED=n runs one scenario alone.
#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

constexpr uint64_t kSeeds = 10000;
constexpr uint32_t kKeys = 9;
constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr std::byte kPoison{0xEE};

uint32_t PartsOf(uint32_t key) { return 1 + key % 3; }
size_t PartBytes(uint32_t key) { return 64 + 32 * (key % 2); }
BlockSize SizeOf(uint32_t key) { return {PartsOf(key) * PartBytes(key), PartsOf(key)}; }

// Memory of a copy. Sources are poisoned when their copy has ended, destinations before it begins.
struct Buffer {
  uint32_t key = 0;
  std::optional<uint32_t> part;  // none: the whole block
  std::vector<std::byte> bytes;
  MutableBytes piece;
};

// Copies that were started together. The transfer's callbacks fill in what became of them.
struct Flight {
  enum class Kind { kRead, kWrite, kPut };

  Kind kind;
  std::vector<Buffer> buffers;  // one for each op
  Transfer transfer;            // unless it was given to CommitAfter
  bool done = false;
};

uint64_t right_reads = 0;

class Scenario {
 public:
  explicit Scenario(uint64_t seed) : random_(seed) {
    auto backend = FakeBackend::Create(2048);
    fake_ = backend.get();
    CacheOptions options;
    options.capacity_bytes = 512 + 64 * random_.Below(20);
    options.max_blocks = 16;
    options.clock = &clock_;
    if (random_.Chance(30)) options.default_ttl = absl::Milliseconds(50);
    auto cache = Cache::Create(options, std::move(backend), CreateLruPolicy());
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    for (uint32_t key = 0; key < kKeys; ++key) keys_.push_back(NumberedKey(key));
  }

  void Run() {
    const uint32_t steps = 30 + random_.Below(31);
    for (uint32_t i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
      Step();
      const CacheStats stats = cache_->stats();
      EXPECT_LE(stats.usage.bytes_in_use, stats.capacity_bytes);
      std::erase_if(flights_, [](const Flight& flight) { return flight.done; });
    }
    End();
  }

 private:
  struct Open {
    // Of a part: nothing, a copy under way, a copy that succeeded, given to a commit.
    enum class Part { kNothing, kWriting, kWritten, kClaimed };
    WriteLease lease;
    uint32_t key;
    int instance;
    std::vector<Part> parts;
  };

  uint32_t AnyKey() { return random_.Below(kKeys); }
  PutOptions OptionsOf(uint32_t key) {
    PutOptions options;
    if (key % 3 > 0) options.parent = keys_[key - 1];
    if (random_.Chance(20)) options.ttl = absl::Milliseconds(1 + random_.Below(60));
    return options;
  }

  void Step() {
    const uint32_t kind = random_.Below(100);
    if (kind < 12) return Reserve();
    if (kind < 28) return WritePart();
    if (kind < 36) return EndWrite();
    if (kind < 42) return PutMany();
    if (kind < 46) return Put();
    if (kind < 58) return Read();
    if (kind < 64) return ReadInto();
    if (kind < 68) return Match();
    if (kind < 84) return EndCopy();
    if (kind < 87) return Cancel();
    if (kind < 91) return DropRead();
    if (kind < 95) return Remove();
    if (kind < 96 && random_.Chance(50)) {
      return fake_->FlipBit(random_.Below(fake_->traits().capacity_bytes), random_.Below(8));
    }
    if (kind < 96) return fake_->FailNextAllocate(absl::InternalError("test"));
    if (kind < 97 && fake_->pending() == 0) return cache_->Drain();
    clock_.Advance(absl::Milliseconds(random_.Below(20)));
  }

  // --- Copies

  Buffer MakeBuffer(uint32_t key, std::optional<uint32_t> part, bool source) {
    Buffer buffer = {.key = key, .part = part, .bytes = {}, .piece = {}};
    buffer.bytes.assign(part.has_value() ? PartBytes(key) : SizeOf(key).bytes, kPoison);
    buffer.piece = absl::MakeSpan(buffer.bytes);
    if (source && part.has_value()) FillPart(keys_[key], *part, buffer.piece);
    if (source && !part.has_value()) FillBlock(keys_[key], PartsOf(key), buffer.piece);
    return buffer;
  }

  // Call it with the transfer just started, before anybody else adds callbacks to it.
  void Watch(Flight& flight, Transfer transfer) {
    flight.transfer = std::move(transfer);
    EXPECT_EQ(flight.transfer.size(), flight.buffers.size());
    internal::OnOpDone(flight.transfer, [this, &flight](size_t op, const absl::Status& status) {
      OpDone(flight, op, status);
    });
    internal::OnDone(flight.transfer, [&flight](const absl::Status&) { flight.done = true; });
  }

  void OpDone(Flight& flight, size_t op, const absl::Status& status) {
    Buffer& buffer = flight.buffers[op];
    if (flight.kind == Flight::Kind::kRead) {
      if (!status.ok()) return;
      ++right_reads;
      EXPECT_TRUE(buffer.part.has_value()
                      ? IsPart(keys_[buffer.key], *buffer.part, buffer.piece)
                      : IsBlock(keys_[buffer.key], PartsOf(buffer.key), buffer.piece))
          << "key " << buffer.key;
      return;
    }
    std::fill(buffer.bytes.begin(), buffer.bytes.end(), kPoison);
    if (flight.kind == Flight::Kind::kPut && cache_alive_) {
      const bool hit = cache_->Lookup(keys_[buffer.key]) == LookupResult::kHit;
      EXPECT_TRUE(hit || !status.ok()) << "key " << buffer.key << " was put";
    }
  }

  void EndCopy() {
    const size_t pending = fake_->pending();
    if (pending == 0) return;
    const uint32_t how = random_.Below(100);
    if (how < 70) return fake_->Complete(random_.Below(pending));
    if (how < 75) return fake_->CompleteAll();
    fake_->Fail(random_.Below(pending), absl::InternalError("test"));
  }

  void Cancel() {
    if (flights_.empty()) return;
    std::next(flights_.begin(), random_.Below(flights_.size()))->transfer.Cancel();
  }

  // --- Writing

  void Reserve() {
    if (writes_.size() > 2) return;
    uint32_t key = AnyKey();
    for (uint32_t partial = 0; partial < kKeys; ++partial) {
      const bool resumable = cache_->Lookup(keys_[partial]) == LookupResult::kPartial;
      if (resumable && random_.Chance(50)) key = partial;
    }
    auto lease = cache_->Reserve(keys_[key], SizeOf(key), OptionsOf(key));
    if (!lease.ok()) {
      EXPECT_TRUE(IsRefusal(lease.status())) << lease.status();
      return;
    }
    Open open = {.lease = *std::move(lease), .key = key, .instance = ++instances_, .parts = {}};
    for (uint32_t part = 0; part < PartsOf(key); ++part) {
      open.parts.push_back(open.lease.committed(part) ? Open::Part::kClaimed
                                                      : Open::Part::kNothing);
    }
    writes_.push_back(std::make_unique<Open>(std::move(open)));
  }

  static bool IsRefusal(const absl::Status& status) {
    return absl::IsAlreadyExists(status) || absl::IsUnavailable(status) ||
           absl::IsFailedPrecondition(status) || absl::IsNotFound(status) ||
           absl::IsPermissionDenied(status) || absl::IsResourceExhausted(status) ||
           absl::IsInternal(status);
  }
  // Writes a part and commits it now, after the copy, or not yet.
  void WritePart() {
    if (writes_.empty()) return;
    Open& open = *writes_[random_.Below(writes_.size())];
    const uint32_t part = random_.Below(open.parts.size());
    if (open.parts[part] == Open::Part::kWritten) {
      open.parts[part] = Open::Part::kClaimed;
      const absl::Status status = open.lease.CommitPart(part);
      EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
    }
    if (open.parts[part] != Open::Part::kNothing) return;
    Flight& flight = flights_.emplace_back();
    flight.kind = Flight::Kind::kWrite;
    flight.buffers.push_back(MakeBuffer(open.key, part, /*source=*/true));
    const ConstBytes source = flight.buffers[0].piece;
    Transfer copy = open.lease.WritePart(part, {&source, 1});
    if (random_.Chance(30)) {
      open.parts[part] = Open::Part::kWriting;
      internal::OnDone(copy, [this, instance = open.instance, part](const absl::Status& status) {
        for (const auto& open : writes_) {
          if (open->instance != instance) continue;
          open->parts[part] = status.ok() ? Open::Part::kWritten : Open::Part::kNothing;
        }
      });
      return Watch(flight, std::move(copy));
    }
    open.parts[part] = Open::Part::kClaimed;
    Watch(flight, std::move(copy));
    if (random_.Chance(5)) flight.transfer.Cancel();
    const absl::Status status =
        open.lease.CommitAfter(part, std::exchange(flight.transfer, Transfer()));
    EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
  }

  void EndWrite() {
    if (writes_.empty()) return;
    const size_t i = random_.Below(writes_.size());
    // Its callbacks look for it in writes_.
    const std::unique_ptr<Open> open = std::move(writes_[i]);
    writes_.erase(writes_.begin() + i);
    const bool any_written = std::any_of(open->parts.begin(), open->parts.end(), [](auto part) {
      return part == Open::Part::kWriting || part == Open::Part::kClaimed;
    });
    const bool all_written = std::all_of(open->parts.begin(), open->parts.end(), [](auto part) {
      return part == Open::Part::kWritten || part == Open::Part::kClaimed;
    });
    absl::Status status;
    if (all_written && random_.Chance(80)) {
      status = open->lease.Commit();
    } else if (random_.Chance(any_written ? 80 : 30)) {
      status = open->lease.Suspend();
    } else {
      open->lease.Abort();
    }
    EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
  }

  void PutMany() {
    const uint32_t first = AnyKey() / 3 * 3;
    const uint32_t count = 1 + random_.Below(3);
    Flight& flight = flights_.emplace_back();
    flight.kind = Flight::Kind::kPut;
    std::vector<ConstBytes> sources;
    std::vector<PutRequest> requests;
    for (uint32_t key = first; key < first + count; ++key) {
      flight.buffers.push_back(MakeBuffer(key, std::nullopt, /*source=*/true));
      sources.push_back(flight.buffers.back().piece);
    }
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t key = first + i;
      requests.push_back({.key = keys_[key],
                          .size = SizeOf(key),
                          .source = {&sources[i], 1},
                          .options = OptionsOf(key)});
    }
    Watch(flight, cache_->PutMany(requests));
  }

  void Put() {
    const uint32_t key = AnyKey();
    const Buffer buffer = MakeBuffer(key, std::nullopt, /*source=*/true);
    fake_->set_auto_complete(true);
    const absl::Status status =
        cache_->Put(keys_[key], SizeOf(key), {buffer.piece}, OptionsOf(key));
    fake_->set_auto_complete(false);
    EXPECT_TRUE(status.ok() || IsRefusal(status)) << status;
    EXPECT_TRUE(!status.ok() || cache_->Lookup(keys_[key]) == LookupResult::kHit);
  }

  // --- Reading

  void StartRead(const ReadLease& lease, uint32_t key, std::optional<uint32_t> part) {
    const bool by_parts = !part.has_value() && random_.Chance(50);
    Flight& flight = flights_.emplace_back();
    flight.kind = Flight::Kind::kRead;
    if (!by_parts) {
      flight.buffers.push_back(MakeBuffer(key, part, /*source=*/false));
      return Watch(flight, lease.Read({&flight.buffers[0].piece, 1}));
    }
    for (uint32_t i = 0; i < PartsOf(key); ++i) {
      flight.buffers.push_back(MakeBuffer(key, i, /*source=*/false));
    }
    std::vector<absl::Span<const MutableBytes>> destinations;
    for (const Buffer& buffer : flight.buffers) destinations.push_back({&buffer.piece, 1});
    Watch(flight, lease.ReadParts(destinations));
  }

  void Hold(ReadLease lease, uint32_t key, std::optional<uint32_t> part) {
    StartRead(lease, key, part);
    if (random_.Chance(40)) reads_.push_back(std::move(lease));
  }

  void Read() {
    const uint32_t key = AnyKey();
    std::optional<uint32_t> part;
    if (random_.Chance(50)) part = random_.Below(PartsOf(key));
    auto lease =
        part.has_value() ? cache_->GetPart(kNs, keys_[key], *part) : cache_->Get(kNs, keys_[key]);
    if (lease.ok()) return Hold(*std::move(lease), key, part);
    EXPECT_TRUE(absl::IsNotFound(lease.status()) || absl::IsUnavailable(lease.status()))
        << lease.status();
  }

  void Match() {
    const uint32_t first = AnyKey() / 3 * 3;
    PrefixMatch match = cache_->Match({.keys = {&keys_[first], 3}});
    for (size_t i = 0; i < match.blocks.size(); ++i) {
      Hold(std::move(match.blocks[i]), first + i, std::nullopt);
    }
  }

  void ReadInto() {
    Flight& flight = flights_.emplace_back();
    flight.kind = Flight::Kind::kRead;
    const uint32_t count = 1 + random_.Below(4);
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t key = AnyKey();
      std::optional<uint32_t> part;
      if (random_.Chance(40)) part = random_.Below(PartsOf(key));
      flight.buffers.push_back(MakeBuffer(key, part, /*source=*/false));
    }
    std::vector<ReadRequest> requests;
    for (const Buffer& buffer : flight.buffers) {
      requests.push_back(
          {.key = keys_[buffer.key], .destination = {&buffer.piece, 1}, .part = buffer.part});
    }
    Watch(flight, cache_->ReadInto(requests));
  }

  void DropRead() {
    if (!reads_.empty()) reads_.erase(reads_.begin() + random_.Below(reads_.size()));
  }

  void Remove() {
    const uint32_t how = random_.Below(10);
    if (how < 7) {
      cache_->Erase(keys_[AnyKey()]);
    } else if (how < 9) {
      cache_->EraseNamespace(kNs);
    } else {
      cache_->Clear();
    }
  }

  // --- The end: in half of the scenarios the cache goes while copies are under way.

  void End() {
    writes_.clear();
    reads_.clear();
    const size_t pending = fake_->pending();
    if (random_.Chance(50)) {
      fake_->CompleteAll();
      EXPECT_EQ(fake_->pending(), 0);
      EXPECT_EQ(cache_->stats().leases, 0);
      cache_->Clear();
      EXPECT_EQ(cache_->stats().usage.bytes_in_use, 0);
      EXPECT_EQ(cache_->stats().usage.blocks, 0);
    } else if (pending > 0) {
      cache_alive_ = false;
      std::thread completer([fake = fake_, pending, random = random_]() mutable {
        for (size_t left = pending; left > 0; --left) {
          if (random.Chance(70)) {
            fake->Complete(random.Below(left));
          } else {
            fake->Fail(random.Below(left), absl::InternalError("test"));
          }
        }
      });
      cache_.reset();
      completer.join();
    }
    cache_.reset();
    for (const Flight& flight : flights_) EXPECT_TRUE(flight.done);
  }

  Random random_;
  ManualClock clock_;
  std::vector<BlockKey> keys_;
  FakeBackend* fake_;
  bool cache_alive_ = true;
  int instances_ = 0;
  std::list<Flight> flights_;
  std::unique_ptr<Cache> cache_;
  std::vector<ReadLease> reads_;
  std::vector<std::unique_ptr<Open>> writes_;
};

// For checks that abort. What it calls is no worse than the abort.
uint64_t current_seed;
void PrintSeed(int) { std::fprintf(stderr, "KVCACHE_SEED=%llu\n", 0ULL + current_seed); }

TEST(AsyncTest, CopiesThatEndLateBreakNothing) {
  std::signal(SIGABRT, PrintSeed);
  const std::optional<uint64_t> only = SeedFromEnvironment();
  for (uint64_t seed = only.value_or(0); seed < only.value_or(kSeeds - 1) + 1; ++seed) {
    SCOPED_TRACE(absl::StrCat("KVCACHE_SEED=", seed));
    current_seed = seed;
    Scenario(seed).Run();
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(right_reads, only.has_value() ? 0 : kSeeds / 2);  // a failed one drops its block
}

// The copy of a CommitAfter() fails into a block that stays, since it was partial before.
TEST(AsyncTest, ACommitLeavesOutThePartsWhoseCopiesFailed) {
  auto owned = FakeBackend::Create(4096);
  FakeBackend* fake = owned.get();
  const auto cache = *Cache::Create({}, std::move(owned), CreateLruPolicy());
  const BlockKey key = NumberedKey(1);
  std::vector<std::byte> bytes(64);
  const ConstBytes source = bytes;
  absl::StatusOr<WriteLease> lease = cache->Reserve(key, {192, 3});
  fake->set_auto_complete(true);
  ASSERT_TRUE(lease->WritePart(0, {source}).Wait().ok());
  ASSERT_TRUE(lease->CommitPart(0).ok());
  ASSERT_TRUE(lease->Suspend().ok());
  lease = cache->Reserve(key, {192, 3});
  ASSERT_TRUE(lease->WritePart(2, {source}).Wait().ok());
  fake->set_auto_complete(false);
  ASSERT_TRUE(lease->CommitAfter(1, lease->WritePart(1, {source})).ok());
  fake->Fail(0, absl::InternalError("test"));
  EXPECT_EQ(lease->Commit(), absl::AbortedError("the copy into part 1 failed"));
  EXPECT_EQ(cache->Lookup(key), LookupResult::kPartial);
  EXPECT_TRUE(cache->GetPart(kNs, key, 0).ok());
  EXPECT_TRUE(absl::IsNotFound(cache->GetPart(kNs, key, 1).status()));
  EXPECT_TRUE(cache->GetPart(kNs, key, 2).ok());

  lease = cache->Reserve(key, {192, 3});
  fake->set_auto_complete(true);
  ASSERT_TRUE(lease->WritePart(1, {source}).Wait().ok());
  EXPECT_TRUE(lease->Commit().ok()) << "a new lease starts anew";
  EXPECT_TRUE(cache->Get(kNs, key).ok());
}

}  // namespace
}  // namespace kvcache
