// Children of fork() that exit, or destroy caches and leases, whatever the parent's threads were
// doing.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/clock.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/prompts/prefix_cache.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/fake_backend/fake_backend.h"

namespace kvcache {
namespace {

constexpr NamespaceId kNs = NamespaceId::kDefault;
constexpr BlockSize kSize = {256, 2};

// What the destructors of the process find.
std::unique_ptr<Cache> static_cache;
std::unique_ptr<PrefixCache> static_prefix_cache;
std::vector<ReadLease> static_reads;
std::vector<WriteLease> static_writes;
std::optional<Transfer> static_transfer;
std::optional<CachedKv> static_kv;

// Whether a child that does this, and then exits as a program does, comes to its end in time.
::testing::AssertionResult ChildEnds(const std::function<void()>& child) {
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(20);
    child();
    std::exit(0);
  }
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return ::testing::AssertionFailure() << "no fork";
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << (WIFSIGNALED(status) ? "killed by signal " + std::to_string(WTERMSIG(status))
                                 : "exit code " + std::to_string(WEXITSTATUS(status)));
}

// Can be stopped: then whoever asks for the time, which is done under the cache's lock, waits.
class StoppableClock final : public Clock {
 public:
  Nanos Now() const override {
    MutexLock lock(mu_);
    if (stopped_) ++waiting_;
    changed_.NotifyAll();
    while (stopped_) changed_.Wait(mu_);
    return 1'000'000'000;
  }
  void Stop() {
    MutexLock lock(mu_);
    stopped_ = true;
  }
  void WaitUntilAsked() {
    MutexLock lock(mu_);
    while (waiting_ == 0) changed_.Wait(mu_);
  }
  void Resume() {
    MutexLock lock(mu_);
    stopped_ = false;
    changed_.NotifyAll();
  }

 private:
  mutable Mutex mu_;
  mutable CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  mutable int waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

class ForkTest : public ::testing::Test {
 protected:
#if defined(__SANITIZE_ADDRESS__)
  void SetUp() override { GTEST_SKIP() << "a thread may hold the sanitizer's allocator at a fork"; }
#endif
  ~ForkTest() override {
    static_transfer.reset();
    static_reads.clear();
    static_writes.clear();
    static_kv.reset();
    static_cache.reset();
    static_prefix_cache.reset();
  }

  void Fill() {
    for (uint32_t key = 0; key < 4; ++key) {
      std::vector<std::byte> bytes(kSize.bytes);
      FillBlock(NumberedKey(key), kSize.parts, absl::MakeSpan(bytes));
      ASSERT_TRUE(static_cache->Put(NumberedKey(key), kSize, {ConstBytes(bytes)}).ok());
      static_reads.push_back(*static_cache->Get(kNs, NumberedKey(key)));
      static_writes.push_back(*static_cache->Reserve(NumberedKey(10 + key), kSize));
    }
  }

  static CacheOptions WithThreads() {
    CacheOptions options;
    options.scrub_bytes_per_second = 1 << 20;
    options.advice.capacities = {0.5, 2};
    return options;
  }
  static std::unique_ptr<StorageBackend> FaultedInInBackground() {
    return *CreateCpuRamBackend(
        {.capacity_bytes = size_t{64} << 20, .fault_in = CpuRamOptions::FaultIn::kBackground});
  }
};

TEST_F(ForkTest, AChildMayExitWithACacheThatHasThreads) {
  static_cache = *Cache::Create(WithThreads(), FaultedInInBackground(), CreateLruPolicy());
  Fill();
  EXPECT_TRUE(ChildEnds([] {}));
  for (const ReadLease& lease : static_reads) EXPECT_TRUE(lease.Verify().ok());
  EXPECT_TRUE(static_writes[0].Commit().ok());
}

TEST_F(ForkTest, AChildMayDestroyCachesAndLeasesInAnyOrder) {
  static_cache = *Cache::Create(WithThreads(), FaultedInInBackground(), CreateLruPolicy());
  Fill();
  EXPECT_TRUE(ChildEnds([] {
    static_reads.pop_back();
    static_cache->Release(absl::MakeSpan(static_reads).subspan(0, 2));
    if (static_reads[0].holds()) std::abort();
    static_writes.back().Abort();
    static_cache.reset();
    static_reads.clear();
    static_writes.clear();
  }));
  EXPECT_EQ(static_cache->stats().leases, 8);
}

TEST_F(ForkTest, AChildMayExitWithACacheWhoseLockAThreadHeld) {
  StoppableClock clock;
  CacheOptions options;
  options.clock = &clock;
  static_cache = *Cache::Create(options, FaultedInInBackground(), CreateLruPolicy());
  Fill();
  clock.Stop();
  std::thread holder([] { static_cache->Lookup(NumberedKey(1)); });
  clock.WaitUntilAsked();
  EXPECT_TRUE(ChildEnds([] {
    static_reads.clear();
    static_writes.clear();
    static_cache.reset();
  }));
  EXPECT_TRUE(ChildEnds([] {}));
  clock.Resume();
  holder.join();
  static_reads.clear();
  static_writes.clear();
  static_cache.reset();
}

TEST_F(ForkTest, AChildMayExitWhileCopiesAreUnderWay) {
  auto backend = FakeBackend::Create(size_t{64} << 10);
  FakeBackend* fake = backend.get();
  fake->set_auto_complete(true);
  static_cache = *Cache::Create({}, std::move(backend), CreateLruPolicy());
  Fill();
  fake->set_auto_complete(false);
  std::vector<std::byte> copy(kSize.bytes);
  static_transfer = static_reads[0].Read({absl::MakeSpan(copy)});
  EXPECT_TRUE(ChildEnds([] {}));
  EXPECT_TRUE(ChildEnds([] {
    static_transfer.reset();
    static_reads.clear();
    static_cache.reset();
  }));
  fake->CompleteAll();
  EXPECT_TRUE(static_transfer->Wait().ok());
}

TEST_F(ForkTest, AChildMayExitWithAPrefixCache) {
  PrefixCacheOptions options;
  options.layers = 1;
  options.cache = WithThreads();
  static_prefix_cache = *PrefixCache::Create(options, FaultedInInBackground(), CreateLruPolicy());
  const std::vector<float> data(8, 1.5f);
  const KvTensor tensor = {data.data(), DType::kF32, 1, 2, 4};
  ASSERT_TRUE(static_prefix_cache->CacheKv("prompt", 0, tensor, tensor).ok());
  static_kv = *static_prefix_cache->GetAllLayers("prompt");
  EXPECT_TRUE(ChildEnds([] {}));
}

TEST_F(ForkTest, AChildMayExitWithLeasesThatOutliveTheirCache) {
  static_cache = *Cache::Create(WithThreads(), FaultedInInBackground(), CreateLruPolicy());
  Fill();
  static_cache.reset();
  EXPECT_TRUE(ChildEnds([] {
    static_reads.clear();
    static_writes.clear();
  }));
  EXPECT_TRUE(static_reads[0].Verify().ok());
}

}  // namespace
}  // namespace kvcache
