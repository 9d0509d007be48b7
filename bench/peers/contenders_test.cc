// What every contender must do, whatever it is made of. Those that are not installed are skipped.
#include "kvcache/bench/peers/contenders.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvcache/bench/harness/workload.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache::bench {
namespace {

class ContenderTest : public testing::TestWithParam<ContenderInfo> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Contender>> made = GetParam().create(workload_.options());
    if (absl::IsUnimplemented(made.status())) {
      GTEST_SKIP() << GetParam().name << ": " << made.status().message();
    }
    ASSERT_TRUE(made.ok()) << made.status();
    contender_ = *std::move(made);
  }

  void Put(size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      const Block& block = workload_.block(i);
      ASSERT_EQ(contender_->Put(block, workload_.Payload(block)), absl::OkStatus()) << i;
    }
  }

  absl::Status GetAndVerify(const Block& block) {
    const absl::StatusOr<ConstBytes> bytes = contender_->Get(block, workload_.destination());
    return bytes.ok() ? workload_.Verify(block, *bytes) : bytes.status();
  }

  Workload workload_{{.capacity_bytes = size_t{64} << 20, .payload_bytes = size_t{256} << 10}};
  std::unique_ptr<Contender> contender_;
};

TEST_P(ContenderTest, WhatIsPutComesBackByteForByte) {
  Put(0, workload_.put_new());
  ASSERT_EQ(contender_->Settle(), absl::OkStatus());
  for (size_t i = 0; i < workload_.put_new(); ++i) {
    EXPECT_EQ(GetAndVerify(workload_.block(i)), absl::OkStatus());
  }
}

TEST_P(ContenderTest, WhatIsPutCanBeReadAtOnce) {
  for (size_t i = 0; i < 16; ++i) {
    Put(i, i + 1);
    EXPECT_EQ(GetAndVerify(workload_.block(i)), absl::OkStatus());
  }
}

TEST_P(ContenderTest, BlocksAreShownAsTheyWerePut) {
  if (!contender_->traits().zero_copy) GTEST_SKIP() << GetParam().name << " copies only";
  Put(0, workload_.put_new());
  ASSERT_EQ(contender_->Settle(), absl::OkStatus());
  for (size_t i = 0; i < workload_.put_new(); ++i) {
    absl::Status verified = absl::InternalError("nothing was shown");
    EXPECT_EQ(contender_->GetZeroCopy(workload_.block(i),
                                      [&](ConstBytes bytes) {
                                        verified = workload_.Verify(workload_.block(i), bytes);
                                      }),
              absl::OkStatus());
    EXPECT_EQ(verified, absl::OkStatus());
  }
}

TEST_P(ContenderTest, AFullStoreTakesPutsAndKeepsTheLast) {
  Put(0, workload_.end_put_full());
  EXPECT_EQ(GetAndVerify(workload_.block(workload_.end_put_full() - 1)), absl::OkStatus());
  // Plain copies have no index: they read whatever took a block's place.
  if (GetParam().name == "memcpy" || GetParam().name == "streaming_stores") return;
  size_t bytes = 0;
  for (size_t i = 0; i < workload_.end_put_full(); ++i) {
    const absl::Status status = GetAndVerify(workload_.block(i));
    if (status.ok()) bytes += workload_.options().payload_bytes;
    EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << status;
  }
  EXPECT_LE(bytes, workload_.options().capacity_bytes);
}

INSTANTIATE_TEST_SUITE_P(All, ContenderTest,
                         testing::ValuesIn(AllContenders().begin(), AllContenders().end()),
                         [](const testing::TestParamInfo<ContenderInfo>& info) {
                           return info.param.name;
                         });

}  // namespace
}  // namespace kvcache::bench
