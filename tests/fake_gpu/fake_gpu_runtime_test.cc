#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

using testing::_;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class FakeGpuTest : public testing::Test {
 protected:
  explicit FakeGpuTest(bool run_when_waited_for = false)
      : gpu_({.devices = 2, .run_when_waited_for = run_when_waited_for}) {
    device_ = *gpu_.AllocateDevice(0, kBytes);
    EXPECT_TRUE(gpu_.RegisterHost(0, {host_.data(), kBytes}).ok());
    EXPECT_TRUE(gpu_.RegisterHost(0, {host_.data() + kBytes, kBytes}).ok());
    a_ = *gpu_.CreateStream(0);
    b_ = *gpu_.CreateStream(0);
    event_ = *gpu_.CreateEvent(0);
  }
  ~FakeGpuTest() override {
    gpu_.RunAll();
    if (device_ != nullptr) gpu_.FreeDevice(0, device_).IgnoreError();
    gpu_.UnregisterHost(0, host_.data()).IgnoreError();
    gpu_.UnregisterHost(0, host_.data() + kBytes).IgnoreError();
    for (GpuStream stream : {a_, b_}) gpu_.DestroyStream(0, stream).IgnoreError();
    gpu_.DestroyEvent(0, event_).IgnoreError();
  }

  absl::Status ToDevice(GpuStream stream, const std::byte* from, size_t bytes = 64) {
    return gpu_.CopyBatch(0, {{device_, from, bytes}}, CopyDirection::kToDevice, stream);
  }
  void Refuses(const absl::Status& status, const char* why) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    ASSERT_FALSE(gpu_.violations().empty());
    EXPECT_THAT(gpu_.violations().back(), HasSubstr(why));
  }

  // A list of pieces in memory that is registered.
  CopyPiece* PutList(std::initializer_list<CopyPiece> pieces) {
    auto* const list = reinterpret_cast<CopyPiece*>(host_.data() + kBytes);
    std::copy(pieces.begin(), pieces.end(), list);
    return list;
  }

  static constexpr size_t kBytes = 4096;
  FakeGpuRuntime gpu_;
  alignas(64) std::array<std::byte, 3 * kBytes> host_ = {};
  std::byte* device_ = nullptr;
  GpuStream a_, b_;
  GpuEvent event_;
};

TEST_F(FakeGpuTest, RefusesTheNullStreamAndOnesOfOtherDevices) {
  Refuses(ToDevice(nullptr, host_.data()), "the null stream");
  Refuses(gpu_.CopyBatch(1, {{device_, host_.data(), 64}}, CopyDirection::kToDevice, a_),
          "a stream of another device");
}

TEST_F(FakeGpuTest, RefusesMemoryThatIsNotRegistered) {
  Refuses(ToDevice(a_, host_.data() + 2 * kBytes), "neither registered as one");
}

// So does a driver, and who called it may try again: no violation.
TEST_F(FakeGpuTest, RefusesCopiesOverTheEndOfWhatOneCallRegistered) {
  EXPECT_TRUE(absl::IsInvalidArgument(ToDevice(a_, host_.data() + kBytes - 32)));
  EXPECT_EQ(gpu_.refused_over_an_end(), 1);
  // To a kernel they are addresses.
  CopyPiece* const list = PutList({{device_, host_.data() + kBytes - 32, 64}});
  EXPECT_TRUE(gpu_.CopyByKernel(0, {list, 1}, a_).ok());
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations(), IsEmpty());
}

TEST_F(FakeGpuTest, AllocationsAreOftenSideBySideAndNoCopyGoesOverTheirEnds) {
  std::vector<std::byte*> memory;
  std::byte* first = nullptr;
  for (int i = 0; i < 30; ++i) {
    memory.push_back(*gpu_.AllocateDevice(0, 256));
    if (i > 0 && memory[i] == memory[i - 1] + 256) first = memory[i - 1];
  }
  ASSERT_NE(first, nullptr);
  const auto copy = [&](size_t begin) {
    return gpu_.CopyBatch(0, {{first + begin, host_.data(), 64}}, CopyDirection::kToDevice, a_);
  };
  EXPECT_TRUE(copy(192).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(copy(224)));
  EXPECT_TRUE(copy(256).ok());
  EXPECT_EQ(gpu_.refused_over_an_end(), 1);
  EXPECT_TRUE(gpu_.CopyByKernel(0, {PutList({{first + 224, host_.data(), 64}}), 1}, a_).ok());
  gpu_.RunAll();
  EXPECT_EQ(first[256 + 31], std::byte{0});
  for (std::byte* at : memory) EXPECT_TRUE(gpu_.FreeDevice(0, at).ok());
  EXPECT_THAT(gpu_.violations(), IsEmpty());
}

TEST_F(FakeGpuTest, RefusesPiecesThatOverlap) {
  Refuses(gpu_.CopyBatch(0, {{device_, host_.data(), 64}, {device_ + 32, host_.data() + 64, 64}},
                         CopyDirection::kToDevice, a_),
          "destinations overlap");
  Refuses(gpu_.CopyBatch(0, {{device_, device_ + 32, 64}}, CopyDirection::kOnDevice, a_),
          "a source overlaps a destination");
}

TEST_F(FakeGpuTest, RefusesADirectionThatTheMemoryDoesNotHave) {
  Refuses(gpu_.CopyBatch(0, {{device_, host_.data(), 64}}, CopyDirection::kToHost, a_),
          "not to the host");
}

TEST_F(FakeGpuTest, RefusesMemoryOfAPeerThatWasNotEnabled) {
  std::byte* const peer = *gpu_.AllocateDevice(1, 64);
  const auto copy = [&] {
    return gpu_.CopyBatch(0, {{device_, peer, 64}}, CopyDirection::kOnDevice, a_);
  };
  Refuses(copy(), "of a peer that is not enabled");
  ASSERT_TRUE(gpu_.EnablePeer(0, 1).ok());
  EXPECT_TRUE(copy().ok());
  gpu_.RunAll();
  EXPECT_TRUE(gpu_.FreeDevice(1, peer).ok());
}

TEST_F(FakeGpuTest, NoticesMemoryThatGoesBeforeItsWorkHasRun) {
  ASSERT_TRUE(ToDevice(a_, host_.data()).ok());
  EXPECT_TRUE(gpu_.FreeDevice(0, device_).ok());
  device_ = nullptr;
  EXPECT_THAT(gpu_.violations(), ElementsAre(HasSubstr("FreeDevice: work names it")));
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations().back(), HasSubstr("neither registered as one nor its own"));
}

TEST_F(FakeGpuTest, ReadsSourcesWhenTheStreamGetsThere) {
  host_[0] = std::byte{1};
  ASSERT_TRUE(ToDevice(a_, host_.data()).ok());
  ASSERT_TRUE(gpu_.CopyByKernel(0, {PutList({{device_ + 128, host_.data(), 64}}), 1}, a_).ok());
  host_[0] = std::byte{2};
  EXPECT_EQ(gpu_.pending(), 2u);
  gpu_.RunAll();
  EXPECT_EQ(device_[0], std::byte{2});
  EXPECT_EQ(device_[128], std::byte{2});
  EXPECT_THAT(gpu_.violations(), IsEmpty());
}

// A launch may read it in the call, a kernel when it runs.
TEST_F(FakeGpuTest, AListOfAKernelMustNotChangeBeforeItHasRun) {
  CopyPiece* const list = PutList({{device_ + 128, host_.data(), 64}});
  ASSERT_TRUE(gpu_.CopyByKernel(0, {list, 1}, a_).ok());
  list->to = device_ + 256;
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations(), ElementsAre("a kernel: its list has changed since the call"));
}

TEST_F(FakeGpuTest, NoticesWhatKernelsNameWhenItGoes) {
  std::byte* const memory = *gpu_.AllocateDevice(0, 64);
  ASSERT_TRUE(gpu_.CopyByKernel(0, {PutList({{device_, memory, 64}}), 1}, a_).ok());
  EXPECT_TRUE(gpu_.FreeDevice(0, memory).ok());
  EXPECT_THAT(gpu_.violations(), ElementsAre("FreeDevice: work names it"));
  EXPECT_TRUE(gpu_.UnregisterHost(0, host_.data() + kBytes).ok());
  EXPECT_THAT(gpu_.violations(), ElementsAre(_, "UnregisterHost: work names it"));
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations().back(), HasSubstr("neither registered as one"));
}

TEST_F(FakeGpuTest, AListOfAKernelMustBePinned) {
  const CopyPiece piece = {device_, host_.data(), 64};
  Refuses(gpu_.CopyByKernel(0, {&piece, 1}, a_), "neither registered as one");
}

TEST_F(FakeGpuTest, AStreamWaitsForWhatWasRecordedAlsoWhenTheEventIsUsedAgain) {
  std::vector<int> ran;
  const Stream first = gpu_.EngineStream();
  const Stream second = gpu_.EngineStream();
  gpu_.Enqueue(first, [&] { ran.push_back(1); });
  ASSERT_TRUE(gpu_.Record(0, event_, first.handle).ok());
  ASSERT_TRUE(gpu_.MakeWait(0, second.handle, event_).ok());
  gpu_.Enqueue(second, [&] { ran.push_back(2); });
  ASSERT_TRUE(gpu_.Record(0, event_, a_).ok());
  gpu_.RunAll();
  EXPECT_THAT(ran, ElementsAre(1, 2));
}

TEST(FakeGpuOrderTest, SeedsChooseEveryOrderOfStreams) {
  std::set<std::string> orders;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    FakeGpuRuntime gpu({.seed = seed});
    std::string order;
    for (const char* work : {"ab", "cd"}) {
      const Stream stream = gpu.EngineStream();
      for (int i = 0; i < 2; ++i) {
        gpu.Enqueue(stream, [&order, letter = work[i]] { order += letter; });
      }
    }
    gpu.RunAll();
    orders.insert(order);
  }
  EXPECT_THAT(orders, ElementsAre("abcd", "acbd", "acdb", "cabd", "cadb", "cdab"));
}

TEST_F(FakeGpuTest, AFailedCallDoesNothingAndTheNextOneWorks) {
  gpu_.FailCall("CopyBatch", absl::ResourceExhaustedError("injected"), /*skip=*/1);
  EXPECT_TRUE(ToDevice(a_, host_.data()).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(ToDevice(a_, host_.data())));
  EXPECT_TRUE(ToDevice(a_, host_.data()).ok());
  EXPECT_EQ(gpu_.pending(), 2u);
  EXPECT_EQ(gpu_.calls("CopyBatch"), 3);
}

TEST_F(FakeGpuTest, NothingRunsOnALostDevice) {
  ASSERT_TRUE(ToDevice(a_, host_.data()).ok());
  ASSERT_TRUE(gpu_.Record(0, event_, a_).ok());
  gpu_.LoseDevice(0);
  EXPECT_FALSE(gpu_.Step());
  EXPECT_TRUE(absl::IsInternal(gpu_.Synchronize(0, event_)));
  EXPECT_TRUE(absl::IsInternal(ToDevice(a_, host_.data())));
  EXPECT_TRUE(gpu_.Describe(1).ok());
}

TEST_F(FakeGpuTest, ACallThatFailsForGoodLosesTheDevice) {
  gpu_.FailCall("Record", absl::UnknownError("injected"));
  gpu_.FailCall("Describe", absl::UnknownError("never met"));
  EXPECT_TRUE(absl::IsUnknown(gpu_.Record(0, event_, a_)));
  EXPECT_TRUE(gpu_.lost(0));
  EXPECT_TRUE(absl::IsInternal(gpu_.Record(0, event_, a_)));
  EXPECT_FALSE(gpu_.StopFailing());
  EXPECT_TRUE(gpu_.StopFailing());
  EXPECT_FALSE(gpu_.lost(1));
  EXPECT_TRUE(gpu_.Describe(1).ok());
}

TEST_F(FakeGpuTest, NobodyWaitsForALostDevice) {
  ASSERT_TRUE(ToDevice(a_, host_.data()).ok());
  ASSERT_TRUE(gpu_.Record(0, event_, a_).ok());
  const Stream other = gpu_.EngineStream(1);
  ASSERT_TRUE(gpu_.MakeWait(1, other.handle, event_).ok());
  bool ran = false;
  gpu_.Enqueue(other, [&] { ran = true; });
  gpu_.LoseDevice(0);
  gpu_.RunAll();
  EXPECT_TRUE(ran);
  EXPECT_TRUE(absl::IsInternal(gpu_.MakeWait(1, other.handle, event_)));
}

TEST_F(FakeGpuTest, WhatIsYetToFailCanBeForgotten) {
  gpu_.FailCall("Record", absl::UnknownError("injected"));
  gpu_.LoseDevice(1, /*steps=*/1);
  EXPECT_FALSE(gpu_.StopFailing());
  ASSERT_TRUE(gpu_.Record(0, event_, a_).ok());
  gpu_.RunAll();
  EXPECT_FALSE(gpu_.lost(0));
  EXPECT_FALSE(gpu_.lost(1));
}

class WaitingFakeGpuTest : public FakeGpuTest {
 protected:
  WaitingFakeGpuTest() : FakeGpuTest(/*run_when_waited_for=*/true) {}
};

TEST_F(WaitingFakeGpuTest, WaitingRunsWhatIsWaitedFor) {
  host_[5] = std::byte{9};
  ASSERT_TRUE(ToDevice(b_, host_.data()).ok());
  ASSERT_TRUE(gpu_.Record(0, event_, b_).ok());
  ASSERT_TRUE(gpu_.Synchronize(0, event_).ok());
  EXPECT_EQ(device_[5], std::byte{9});
  EXPECT_THAT(gpu_.violations(), IsEmpty());
}

using FakeGpuDeathTest = FakeGpuTest;

TEST_F(FakeGpuDeathTest, WhatIsNeverGivenBackIsNoticed) {
  EXPECT_DEATH(
      {
        FakeGpuRuntime gpu({});
        gpu.AllocateDevice(0, 64).IgnoreError();
      },
      "never given back: 64 bytes of device memory");
}

}  // namespace
}  // namespace kvcache
