// Copies of pages: what a FakeGpuRuntime notices.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Two parts of 3 tokens, in pages of 4: tokens 2 to 4 and 5 to 7, in the second and third page of
// the table. Everything that the copy names is in an allocation of its own.
class FakeGpuPagesTest : public testing::Test {
 protected:
  FakeGpuPagesTest() {
    stream_ = *gpu_.CreateStream(0);
    k_ = *gpu_.AllocateDevice(0, kPages * kPageBytes);
    v_ = *gpu_.AllocateDevice(0, kPages * kPageBytes);
    table_ = reinterpret_cast<int32_t*>(*gpu_.AllocateDevice(0, sizeof(kTable)));
    EXPECT_TRUE(gpu_.RegisterHost(0, {reinterpret_cast<std::byte*>(host_), sizeof(Host)}).ok());
    for (PartOfTokens& part : host_->parts) {
      const size_t i = &part - host_->parts;
      dense_[i] = *gpu_.AllocateDevice(0, kPartBytes);
      part = {dense_[i], static_cast<uint32_t>(2 + 3 * i), 3, 3};
    }
    std::memcpy(table_, kTable, sizeof(kTable));
    std::memcpy(host_->table, kTable, sizeof(kTable));
    copy_ = {.k = k_,
             .v = v_,
             .page_stride = kPageBytes,
             .page_tokens = 4,
             .heads = 2,
             .row_bytes = 16,
             .head_token_dim = true,
             .to_pages = true,
             .page_table = table_,
             .parts = host_->parts,
             .num_parts = 2,
             .most_tokens = 3,
             .alignment = 16,
             .host_page_table = host_->table};
  }
  ~FakeGpuPagesTest() override {
    gpu_.RunAll();
    for (std::byte* memory : {k_, v_, dense_[0], dense_[1], reinterpret_cast<std::byte*>(table_)}) {
      if (memory != nullptr) gpu_.FreeDevice(0, memory).IgnoreError();
    }
    if (host_ != nullptr) Unregister();
    gpu_.DestroyStream(0, stream_).IgnoreError();
  }

  absl::Status Copy() { return gpu_.CopyPages(0, copy_, stream_); }
  void Unregister() {
    gpu_.UnregisterHost(0, reinterpret_cast<std::byte*>(host_)).IgnoreError();
    host_ = nullptr;
  }
  void Refuses(const char* why) {
    EXPECT_TRUE(absl::IsInvalidArgument(Copy()));
    EXPECT_THAT(gpu_.violations(), ElementsAre(HasSubstr(why)));
  }
  void Frees(std::byte** memory) {
    EXPECT_TRUE(gpu_.FreeDevice(0, *memory).ok());
    *memory = nullptr;
  }

  static constexpr int32_t kTable[] = {7, 3, 5};
  static constexpr size_t kPages = 8;
  static constexpr size_t kPageBytes = 4 * 2 * 16;
  static constexpr size_t kPartBytes = 2 * 3 * 2 * 16;
  struct Host {
    PartOfTokens parts[2];
    int32_t table[3];
  };

  FakeGpuRuntime gpu_{{}};
  alignas(64) Host storage_;
  Host* host_ = &storage_;
  GpuStream stream_;
  std::byte *k_, *v_;
  std::byte* dense_[2];
  int32_t* table_;
  PagedCopy copy_;
};

TEST_F(FakeGpuPagesTest, CopiesWhatIsThereWhenTheStreamGetsThere) {
  ASSERT_TRUE(Copy().ok());
  std::memset(dense_[1], 42, kPartBytes);
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations(), IsEmpty());
  // Token 7, head 1: of V.
  EXPECT_EQ(v_[3 * kPageBytes + (1 * 4 + 3) * 16], std::byte{42});
  // Token 8.
  EXPECT_EQ(v_[5 * kPageBytes], FakeGpuRuntime::kFreshByte);
}

TEST_F(FakeGpuPagesTest, NoticesWhenPagesGo) {
  ASSERT_TRUE(Copy().ok());
  Frees(&v_);
  EXPECT_THAT(gpu_.violations(), ElementsAre("FreeDevice: work names it"));
}

TEST_F(FakeGpuPagesTest, NoticesWhenAPartGoes) {
  ASSERT_TRUE(Copy().ok());
  Frees(&dense_[1]);
  EXPECT_THAT(gpu_.violations(), ElementsAre("FreeDevice: work names it"));
}

TEST_F(FakeGpuPagesTest, NoticesWhenThePageTableGoes) {
  ASSERT_TRUE(Copy().ok());
  EXPECT_TRUE(gpu_.FreeDevice(0, reinterpret_cast<std::byte*>(table_)).ok());
  table_ = nullptr;
  EXPECT_THAT(gpu_.violations(), ElementsAre("FreeDevice: work names it"));
}

TEST_F(FakeGpuPagesTest, NoticesWhenDescriptorsGo) {
  ASSERT_TRUE(Copy().ok());
  Unregister();
  EXPECT_THAT(gpu_.violations(), ElementsAre("UnregisterHost: work names it"));
}

TEST_F(FakeGpuPagesTest, PagesThatNoPartUsesMayGo) {
  copy_.num_parts = 1;
  copy_.v = nullptr;
  ASSERT_TRUE(Copy().ok());
  Frees(&dense_[1]);
  Frees(&v_);
  EXPECT_THAT(gpu_.violations(), IsEmpty());
}

TEST_F(FakeGpuPagesTest, DescriptorsMustNotChangeBeforeTheyAreUsed) {
  ASSERT_TRUE(Copy().ok());
  host_->parts[1].tokens = 2;
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations(), ElementsAre("pages: the parts have changed since the call"));
}

TEST_F(FakeGpuPagesTest, ThePageTableMustBeThatOfTheHost) {
  table_[1] = 4;
  ASSERT_TRUE(Copy().ok());
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations(), ElementsAre(HasSubstr("not what the host's was")));
}

TEST_F(FakeGpuPagesTest, RefusesDescriptorsThatAreNotRegistered) {
  Host elsewhere = *host_;
  copy_.parts = elsewhere.parts;
  Refuses("neither registered as one");
}

TEST_F(FakeGpuPagesTest, RefusesPagesThatAreNotThere) {
  host_->table[1] = kPages;
  Refuses("neither registered as one");
}

TEST_F(FakeGpuPagesTest, RefusesPartsThatAreNotThere) {
  host_->parts[0].part_tokens = 30;
  Refuses("neither registered as one");
}

TEST_F(FakeGpuPagesTest, RefusesMoreTokensThanItSays) {
  copy_.most_tokens = 2;
  Refuses("a part of more tokens than there are");
}

TEST_F(FakeGpuPagesTest, RefusesPartsThatAreNotAligned) {
  host_->parts[1].k += 8;
  Refuses("a part that is not aligned");
}

// Known only when the stream gets there.
TEST_F(FakeGpuPagesTest, NoticesPagesThatAreNotThereWithoutATableOfTheHost) {
  copy_.host_page_table = nullptr;
  table_[1] = kPages;
  ASSERT_TRUE(Copy().ok());
  gpu_.RunAll();
  EXPECT_THAT(gpu_.violations(), ElementsAre(HasSubstr("neither registered as one")));
}

}  // namespace
}  // namespace kvcache
