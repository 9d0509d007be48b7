#include "kvcache/bench/harness/measure.h"

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/bench/harness/workload.h"
#include "kvcache/bench/peers/contender.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache::bench {
namespace {

constexpr ContenderOptions kOptions = {.capacity_bytes = size_t{1} << 20, .payload_bytes = 4096};

// Keeps everything, unless told otherwise.
class FakeContender : public Contender {
 public:
  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    if (block.index != lose) blocks_[block.index].assign(payload.begin(), payload.end());
    if (block.index == spoil) blocks_[block.index][2000] ^= std::byte{1};
    return absl::OkStatus();
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    const auto found = blocks_.find(block.index);
    if (found == blocks_.end()) return absl::NotFoundError("");
    return ConstBytes(found->second);
  }

  absl::Status GetZeroCopy(const Block& block, absl::FunctionRef<void(ConstBytes)> use) override {
    use(blocks_.at(block.index));
    return absl::OkStatus();
  }

  absl::Status Settle() override {
    ++settled;
    return absl::OkStatus();
  }

  size_t lose = SIZE_MAX;
  size_t spoil = SIZE_MAX;
  int settled = 0;

 private:
  const ContenderTraits traits_ = {.zero_copy = true};
  std::unordered_map<size_t, std::vector<std::byte>> blocks_;
};

bool Always() { return true; }

TEST(MeasureRunTest, TimesEveryCallOfEveryOperation) {
  Workload workload(kOptions);
  FakeContender contender;
  const absl::StatusOr<Samples> samples = MeasureRun(contender, workload, Always);
  ASSERT_TRUE(samples.ok()) << samples.status();
  EXPECT_EQ(samples->of(Operation::kPutNew).size(), 96u);  // 3/8 of 256
  EXPECT_EQ(samples->of(Operation::kGet).size(), workload.reads().size());
  EXPECT_EQ(samples->of(Operation::kGetZeroCopy).size(), workload.reads().size());
  EXPECT_EQ(samples->of(Operation::kPutFull).size(), 65u);  // 1/4 of 256, and one
  EXPECT_EQ(contender.settled, 1);
}

TEST(MeasureRunTest, WrongBytesAreAnError) {
  Workload workload(kOptions);
  FakeContender contender;
  contender.spoil = 7;
  EXPECT_TRUE(absl::IsDataLoss(MeasureRun(contender, workload, Always).status()));
}

TEST(MeasureRunTest, ALostBlockIsAnError) {
  Workload workload(kOptions);
  FakeContender contender;
  contender.lose = 95;
  EXPECT_TRUE(absl::IsDataLoss(MeasureRun(contender, workload, Always).status()));
}

TEST(MeasureRunTest, EndsWhenItIsToldTo) {
  Workload workload(kOptions);
  FakeContender contender;
  int calls = 0;
  EXPECT_TRUE(
      absl::IsCancelled(MeasureRun(contender, workload, [&] { return ++calls < 5; }).status()));
  EXPECT_EQ(calls, 5);
}

TEST(WorkloadTest, BlocksDifferAndPayloadsComeBack) {
  Workload workload(kOptions);
  const Block& first = workload.block(0);
  const Block& second = workload.block(1);
  EXPECT_FALSE(first.key == second.key);
  const ConstBytes payload = workload.Payload(first);
  const std::vector<std::byte> copy(payload.begin(), payload.end());
  EXPECT_EQ(workload.Verify(first, copy), absl::OkStatus());
  EXPECT_TRUE(absl::IsDataLoss(workload.Verify(second, copy)));
  EXPECT_TRUE(absl::IsDataLoss(workload.Verify(first, ConstBytes(copy).first(100))));
}

}  // namespace
}  // namespace kvcache::bench
