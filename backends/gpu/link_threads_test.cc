#include "kvcache/backends/gpu/link_threads.h"

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kvcache/backends/gpu/event_pool.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {
namespace {

// Events that fire when the test says so.
class LinkThreadsTest : public testing::Test {
 protected:
  void Make(std::chrono::nanoseconds linger) {
    threads_ = std::make_unique<LinkThreads>(
        LinkThreads::Options{.workers = 2,
                             .begin =
                                 [this] {
                                   MutexLock lock(mu_);
                                   begun_.insert(std::this_thread::get_id());
                                   ++threads_begun_;
                                 },
                             .wait = [this](const PooledEvent& event) { return Wait(event); },
                             .linger = linger});
    ASSERT_TRUE(threads_->Start().ok());
  }

  // Refers to nothing: only its handle counts here.
  static EventRef Event(size_t number) {
    return std::make_shared<const PooledEvent>(PooledEvent{0, reinterpret_cast<GpuEvent>(number)});
  }
  static GpuStream StreamNumber(size_t number) { return reinterpret_cast<GpuStream>(number); }

  void Fire(size_t number, absl::Status status = absl::OkStatus()) {
    MutexLock lock(mu_);
    fired_[reinterpret_cast<GpuEvent>(number)] = std::move(status);
    changed_.NotifyAll();
  }
  absl::Status Wait(const PooledEvent& event) {
    MutexLock lock(mu_);
    EXPECT_EQ(begun_.count(std::this_thread::get_id()), 1u);
    while (fired_.count(event.handle) == 0) changed_.Wait(mu_);
    return fired_[event.handle];
  }

  void RunAfter(size_t stream, size_t event) {
    threads_->RunAfter(StreamNumber(stream), Event(event),
                       [this, event](const absl::Status& fired) {
                         MutexLock lock(mu_);
                         ended_.push_back({event, fired});
                         changed_.NotifyAll();
                       });
  }
  struct Ended {
    size_t event;
    absl::Status fired;
  };
  std::vector<Ended> WaitForEnded(size_t count) {
    MutexLock lock(mu_);
    while (ended_.size() < count) changed_.Wait(mu_);
    return ended_;
  }
  int threads_begun() {
    MutexLock lock(mu_);
    return threads_begun_;
  }

  Mutex mu_;
  CondVar changed_;
  std::map<GpuEvent, absl::Status> fired_ ABSL_GUARDED_BY(mu_);
  std::vector<Ended> ended_ ABSL_GUARDED_BY(mu_);
  std::set<std::thread::id> begun_ ABSL_GUARDED_BY(mu_);
  int threads_begun_ ABSL_GUARDED_BY(mu_) = 0;
  std::unique_ptr<LinkThreads> threads_;
};

TEST_F(LinkThreadsTest, AStreamsWorkRunsAsItsEventsFire) {
  Make(std::chrono::hours(1));
  RunAfter(1, 11);
  RunAfter(1, 12);
  RunAfter(2, 21);
  Fire(21);
  EXPECT_EQ(WaitForEnded(1)[0].event, 21u) << "a stalled stream holds up another";
  Fire(11, absl::InternalError("lost"));
  EXPECT_EQ(WaitForEnded(2)[1].event, 11u);
  EXPECT_TRUE(absl::IsInternal(WaitForEnded(2)[1].fired));
  Fire(12);
  EXPECT_EQ(WaitForEnded(3)[2].event, 12u);
}

TEST_F(LinkThreadsTest, AThreadThatLingersIsWokenAndEndsWithTheOthers) {
  Make(std::chrono::hours(1));
  for (size_t event = 1; event <= 20; ++event) {
    RunAfter(1, event);
    Fire(event);
    WaitForEnded(event);
  }
  EXPECT_LE(threads_begun(), 3) << "two workers and one that waits";
  threads_.reset();  // without an hour's wait
}

TEST_F(LinkThreadsTest, AThreadThatDoesNotLingerIsReplaced) {
  Make(std::chrono::nanoseconds(0));
  for (size_t event = 1; event <= 20; ++event) {
    RunAfter(1, event);
    Fire(event);
    WaitForEnded(event);
  }
  threads_.reset();
}

TEST_F(LinkThreadsTest, EndsEverythingAlsoWhatWorkStillAsksFor) {
  Make(std::chrono::hours(1));
  LinkThreads* const threads = threads_.get();
  std::atomic<int> ran = 0;
  std::atomic<bool> destroying = false;
  threads->RunAfter(StreamNumber(1), Event(1), [&](const absl::Status&) {
    while (!destroying) std::this_thread::yield();
    threads->RunAfter(StreamNumber(2), Event(2), [&](const absl::Status&) { ++ran; });
    threads->Run(
        [&] { threads->RunAfter(StreamNumber(1), Event(3), [&](const absl::Status&) { ++ran; }); });
  });
  for (size_t event : {1, 2, 3}) Fire(event);
  destroying = true;
  threads_.reset();
  EXPECT_EQ(ran, 2);
}

TEST_F(LinkThreadsTest, WorkNeedsNoStream) {
  Make(std::chrono::hours(1));
  std::atomic<int> ran = 0;
  for (int i = 0; i < 1000; ++i) threads_->Run([&] { ++ran; });
  threads_.reset();
  EXPECT_EQ(ran, 1000);
}

}  // namespace
}  // namespace kvcache
