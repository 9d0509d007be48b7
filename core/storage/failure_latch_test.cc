#include "kvcache/core/storage/failure_latch.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

const absl::Status kFirst = absl::UnavailableError("first");
const absl::Status kSecond = absl::InternalError("second");

class FailureLatchTest : public testing::Test {
 protected:
  void Listen(const char* name = "") {
    latch_.OnFailure([this, name](const absl::Status& status) {
      told_.push_back(name + std::string(status.message()));
    });
  }
  FailureLatch latch_;
  std::vector<std::string> told_;
};

TEST_F(FailureLatchTest, TheFirstErrorIsKeptAndToldOnce) {
  EXPECT_TRUE(latch_.status().ok());
  Listen();
  EXPECT_TRUE(latch_.Set(kFirst));
  EXPECT_EQ(latch_.status(), kFirst);
  EXPECT_TRUE(told_.empty()) << "told before Tell()";
  EXPECT_FALSE(latch_.Set(kSecond));
  latch_.Tell();
  latch_.Tell();
  EXPECT_EQ(latch_.status(), kFirst);
  EXPECT_EQ(told_, std::vector<std::string>{"first"});
}

TEST_F(FailureLatchTest, WhoListensAfterwardsIsToldAtOnce) {
  latch_.Set(kFirst);
  Listen("a ");
  EXPECT_EQ(told_, std::vector<std::string>{"a first"});
  latch_.Tell();
  Listen("b ");
  EXPECT_EQ(told_, (std::vector<std::string>{"a first", "b first"}));
}

TEST_F(FailureLatchTest, WhoListensNoMoreIsNotTold) {
  Listen("a ");
  Listen("b ");
  latch_.OnFailure(nullptr);
  latch_.Set(kFirst);
  latch_.Tell();
  EXPECT_TRUE(told_.empty());
}

TEST_F(FailureLatchTest, TheCallbackIsNotRunningWhenItHasBeenReplaced) {
  std::atomic<bool> running = false;
  std::atomic<bool> finish = false;
  std::atomic<bool> replaced = false;
  latch_.OnFailure([&](const absl::Status&) {
    running = true;
    while (!finish) std::this_thread::yield();
    EXPECT_FALSE(replaced);
    running = false;
  });
  latch_.Set(kFirst);
  std::thread teller([&] { latch_.Tell(); });
  while (!running) std::this_thread::yield();
  std::thread replacer([&] {
    latch_.OnFailure(nullptr);
    replaced = true;
    EXPECT_FALSE(running);
  });
  finish = true;
  teller.join();
  replacer.join();
}

}  // namespace
}  // namespace kvcache
