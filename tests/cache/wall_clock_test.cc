// The cache with its default clock while somebody sets the system's wall clock.
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/eviction/ttl/ttl.h"

namespace {

std::atomic<int64_t> wall_clock_is_ahead_by{0};  // seconds
std::atomic<int64_t> monotonic_is_ahead_by{0};

}  // namespace

// Takes the place of the C library's for this whole program.
extern "C" int clock_gettime(clockid_t id, timespec* now) noexcept {
  const long result = syscall(SYS_clock_gettime, id, now);
  const bool wall = id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE;
  now->tv_sec += wall ? wall_clock_is_ahead_by : monotonic_is_ahead_by;
  return static_cast<int>(result);
}

namespace kvcache {
namespace {

class WallClockTest : public testing::Test {
 protected:
  ~WallClockTest() override { wall_clock_is_ahead_by = monotonic_is_ahead_by = 0; }

  // Lives for ten minutes.
  BlockKey Put(uint8_t id) {
    BlockKey key;
    key.bytes[0] = id;
    absl::StatusOr<WriteLease> lease =
        cache_->Reserve(key, {.bytes = 64, .parts = 1}, {.ttl = absl::Minutes(10)});
    EXPECT_TRUE(lease.ok() && lease->Commit().ok());
    return key;
  }

  const std::unique_ptr<Cache> cache_ =
      *Cache::Create({}, *CreateCpuRamBackend({.capacity_bytes = 4096}), CreateTtlPolicy());
};

TEST_F(WallClockTest, BlocksLiveAsLongHoweverTheWallClockIsSet) {
  const BlockKey key = Put(1);
  wall_clock_is_ahead_by += 24 * 60 * 60;
  EXPECT_EQ(cache_->Lookup(key), LookupResult::kHit) << "a day forward";
  wall_clock_is_ahead_by -= 48 * 60 * 60;
  monotonic_is_ahead_by += 9 * 60;
  EXPECT_EQ(cache_->Lookup(key), LookupResult::kHit) << "a day back, nine minutes old";
  monotonic_is_ahead_by += 2 * 60;
  EXPECT_EQ(cache_->Lookup(key), LookupResult::kMiss) << "eleven minutes old";
}

TEST_F(WallClockTest, NothingIsPinnedForLessThanNoTime) {
  const BlockKey key = Put(1);
  const absl::StatusOr<ReadLease> lease = cache_->Get(NamespaceId::kDefault, key);
  ASSERT_TRUE(lease.ok());
  wall_clock_is_ahead_by -= 60 * 60;
  EXPECT_GE(cache_->stats().longest_pinned, absl::ZeroDuration());
  monotonic_is_ahead_by += 60;
  EXPECT_GE(cache_->stats().longest_pinned, absl::Minutes(1));
  EXPECT_LE(cache_->stats().longest_pinned, absl::Minutes(2));
}

}  // namespace
}  // namespace kvcache
