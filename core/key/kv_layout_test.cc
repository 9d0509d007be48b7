#include "kvcache/core/key/kv_layout.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvcache {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kMax = 0xffffffff;

KvLayout Grouped() { return {.dtype = DType::kBF16, .layers = 32, .kv_heads = 8, .head_dim = 128}; }

KvLayout Latent() {
  return {.dtype = DType::kBF16,
          .kind = KvLayout::Kind::kLatent,
          .layers = 61,
          .kv_heads = 1,
          .head_dim = 576};
}

KvLayout Opaque() { return {.kind = KvLayout::Kind::kOpaque}; }

void ExpectRefused(const absl::Status& status, const std::vector<std::string>& words) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& word : words) EXPECT_THAT(status.message(), HasSubstr(word));
}

TEST(DTypeTest, HasTheNumbersAndSizesOfTheKeySpecification) {
  struct Row {
    DType dtype;
    int number;
    size_t size;
    const char* name;
  };
  for (const Row& row : {Row{DType::kNone, 0, 0, "none"}, Row{DType::kF32, 1, 4, "f32"},
                         Row{DType::kF16, 2, 2, "f16"}, Row{DType::kBF16, 3, 2, "bf16"},
                         Row{DType::kFp8E4M3, 4, 1, "fp8_e4m3"},
                         Row{DType::kFp8E5M2, 5, 1, "fp8_e5m2"}, Row{DType::kInt8, 6, 1, "int8"}}) {
    EXPECT_EQ(static_cast<int>(row.dtype), row.number);
    EXPECT_EQ(DTypeSize(row.dtype), row.size);
    EXPECT_STREQ(DTypeName(row.dtype), row.name);
  }
  EXPECT_EQ(DTypeSize(static_cast<DType>(7)), 0u);
  EXPECT_STREQ(DTypeName(static_cast<DType>(7)), "unknown");
}

TEST(KvLayoutTest, ComputesTheSizesOfPublishedModels) {
  // Llama-3-8B: 4 KiB for each token and layer, 128 KiB for each token.
  EXPECT_EQ(Grouped().PartBytes(1).value(), 4096u);
  EXPECT_EQ(Grouped().BlockBytes(1).value(), 128u << 10);
  EXPECT_EQ(Grouped().BlockBytes(16).value(), 2u << 20);
  EXPECT_EQ(Grouped().parts(), 32u);
  // DeepSeek-V3: 576 elements for each token and layer.
  EXPECT_EQ(Latent().PartBytes(1).value(), 1152u);
  EXPECT_EQ(Latent().BlockBytes(64).value(), 61u * 64 * 1152);
  EXPECT_EQ(Latent().parts(), 61u);
}

TEST(KvLayoutTest, CountsScalesOncePerTensorAndToken) {
  KvLayout layout = Grouped();
  layout.dtype = DType::kFp8E4M3;
  layout.scale_bytes_per_token = 4;
  EXPECT_EQ(layout.PartBytes(10).value(), 10u * 2 * (8 * 128 + 4));
  layout.kind = KvLayout::Kind::kLatent;
  layout.kv_heads = 1;
  EXPECT_EQ(layout.PartBytes(10).value(), 10u * (128 + 4));
}

TEST(KvLayoutTest, ViewsGiveOffsetsAndStridesOfKAndV) {
  const PartView view = Grouped().ViewPart(3, 16).value();
  const size_t tensor = 16u * 8 * 128 * 2;
  EXPECT_EQ(view.k.offset, 3 * 2 * tensor);
  EXPECT_EQ(view.k.bytes, tensor);
  EXPECT_EQ(view.v.offset, 3 * 2 * tensor + tensor);
  EXPECT_EQ(view.v.bytes, tensor);
  EXPECT_EQ(view.k_scales.bytes, 0u);
  EXPECT_EQ(view.v_scales.bytes, 0u);
  EXPECT_EQ(view.token_stride, 8u * 128 * 2);
  EXPECT_EQ(view.head_stride, 128u * 2);
  EXPECT_EQ(view.dim_stride, 2u);
}

TEST(KvLayoutTest, ALatentHasOneTensorAndItsScales) {
  KvLayout layout = Latent();
  layout.scale_bytes_per_token = 8;
  const PartView view = layout.ViewPart(1, 5).value();
  EXPECT_EQ(view.k.offset, 5u * (1152 + 8));
  EXPECT_EQ(view.k.bytes, 5u * 1152);
  EXPECT_EQ(view.v.bytes, 0u);
  EXPECT_EQ(view.k_scales.offset, view.k.offset + view.k.bytes);
  EXPECT_EQ(view.k_scales.bytes, 5u * 8);
  EXPECT_EQ(view.v_scales.bytes, 0u);
  EXPECT_EQ(view.token_stride, 1152u);
  EXPECT_EQ(view.head_stride, 1152u);
}

// Every byte of a block belongs to exactly one region, for every kind, dtype, scale and size.
TEST(KvLayoutTest, ViewsTileTheBlockAndAlignEveryElement) {
  for (auto kind : {KvLayout::Kind::kGroupedHeads, KvLayout::Kind::kLatent}) {
    for (DType dtype :
         {DType::kF32, DType::kF16, DType::kBF16, DType::kFp8E4M3, DType::kFp8E5M2, DType::kInt8}) {
      for (uint32_t scales : {0, 1, 3}) {
        for (uint32_t tokens : {1, 2, 7, 16, 48}) {
          const uint32_t element = static_cast<uint32_t>(DTypeSize(dtype));
          const KvLayout layout{.dtype = dtype,
                                .kind = kind,
                                .layers = 5,
                                .kv_heads = kind == KvLayout::Kind::kLatent ? 1u : 3u,
                                .head_dim = 5,
                                .scale_bytes_per_token = scales * element};
          size_t end = 0;
          for (uint32_t part = 0; part < layout.parts(); ++part) {
            SCOPED_TRACE(layout.ToString());
            EXPECT_EQ(end, part * layout.PartBytes(tokens).value());
            const PartView view = layout.ViewPart(part, tokens).value();
            for (const auto& region : {view.k, view.v, view.k_scales, view.v_scales}) {
              EXPECT_EQ(region.offset, end);
              end += region.bytes;
            }
            const size_t aligned = tokens % 16 == 0 ? 16 : element;
            EXPECT_EQ(view.k.offset % aligned, 0u);
            EXPECT_EQ(view.v.offset % aligned, 0u);
            EXPECT_EQ(view.k.bytes, tokens * view.token_stride);
            EXPECT_EQ(view.token_stride, layout.kv_heads * view.head_stride);
            EXPECT_EQ(view.head_stride, layout.head_dim * view.dim_stride);
            EXPECT_EQ(view.dim_stride, element);
            EXPECT_EQ(view.k_scales.bytes, tokens * layout.scale_bytes_per_token);
            const bool has_v = kind == KvLayout::Kind::kGroupedHeads;
            EXPECT_EQ(view.v.bytes, has_v ? view.k.bytes : 0);
            EXPECT_EQ(view.v_scales.bytes, has_v ? view.k_scales.bytes : 0);
          }
          EXPECT_EQ(end, layout.BlockBytes(tokens).value());
        }
      }
    }
  }
}

TEST(KvLayoutTest, AnOpaqueObjectIsOnePartOfUnknownSize) {
  EXPECT_TRUE(Opaque().Validate().ok());
  EXPECT_EQ(Opaque().parts(), 1u);
  ExpectRefused(Opaque().BlockBytes(1).status(), {"opaque"});
  ExpectRefused(Opaque().PartBytes(1).status(), {"opaque"});
  ExpectRefused(Opaque().ViewPart(0, 1).status(), {"opaque"});
}

TEST(KvLayoutTest, AnOpaqueLayoutHasOneForm) {
  KvLayout layout = Opaque();
  layout.dtype = DType::kInt8;
  ExpectRefused(layout.Validate(), {"opaque", "int8"});
  layout = Opaque();
  layout.head_dim = 77;
  ExpectRefused(layout.Validate(), {"opaque", "head_dim", "77"});
}

TEST(KvLayoutTest, RefusesZeroFields) {
  KvLayout layout = Grouped();
  layout.layers = 0;
  ExpectRefused(layout.Validate(), {"layout.layers", "0"});
  layout = Grouped();
  layout.kv_heads = 0;
  ExpectRefused(layout.Validate(), {"layout.kv_heads", "0"});
  layout = Grouped();
  layout.head_dim = 0;
  ExpectRefused(layout.Validate(), {"layout.head_dim", "0"});
  layout = Grouped();
  layout.dtype = DType::kNone;
  ExpectRefused(layout.Validate(), {"layout.dtype", "0"});
  ExpectRefused(KvLayout().Validate(), {"layout.dtype"});
}

TEST(KvLayoutTest, RefusesNumbersThatNoEnumHas) {
  KvLayout layout = Grouped();
  layout.dtype = static_cast<DType>(7);
  ExpectRefused(layout.Validate(), {"layout.dtype", "7"});
  layout = Grouped();
  layout.kind = static_cast<KvLayout::Kind>(0);
  ExpectRefused(layout.Validate(), {"layout.kind", "0"});
  layout = Grouped();
  layout.order = static_cast<KvLayout::Order>(2);
  ExpectRefused(layout.Validate(), {"layout.order", "2"});
}

TEST(KvLayoutTest, ALatentHasOneHead) {
  KvLayout layout = Latent();
  layout.kv_heads = 8;
  ExpectRefused(layout.Validate(), {"layout.kv_heads", "8", "1"});
}

TEST(KvLayoutTest, RefusesScalesThatWouldMisalignTheNextLayer) {
  KvLayout layout = Grouped();
  layout.scale_bytes_per_token = 3;
  ExpectRefused(layout.Validate(), {"layout.scale_bytes_per_token", "3", "2"});
}

TEST(KvLayoutTest, RefusesSizesThatOverflow) {
  KvLayout layout{.dtype = DType::kF32,
                  .layers = kMax,
                  .kv_heads = kMax,
                  .head_dim = kMax,
                  .scale_bytes_per_token = kMax - 3};
  ExpectRefused(layout.Validate(), {"overflow", "4294967295 layers"});

  // Just below 2^64 bytes for a token is a layout; two tokens of it are too many.
  layout = {.dtype = DType::kInt8, .layers = 1, .kv_heads = 1u << 31, .head_dim = kMax};
  EXPECT_EQ(layout.BlockBytes(1).value(), (uint64_t{1} << 32) * kMax);
  ExpectRefused(layout.BlockBytes(2).status(), {"tokens", "2", "18446744069414584320"});
  ExpectRefused(layout.PartBytes(kMax).status(), {"tokens", "4294967295"});
  layout.layers = 2;
  ExpectRefused(layout.BlockBytes(1).status(), {"overflow"});
}

TEST(KvLayoutTest, RefusesNoTokensAndPartsOutOfRange) {
  ExpectRefused(Grouped().BlockBytes(0).status(), {"tokens", "0"});
  ExpectRefused(Grouped().PartBytes(0).status(), {"tokens", "0"});
  ExpectRefused(Grouped().ViewPart(0, 0).status(), {"tokens", "0"});
  ExpectRefused(Grouped().ViewPart(32, 1).status(), {"part", "32 parts"});
}

TEST(KvLayoutTest, DescribesItself) {
  EXPECT_EQ(Grouped().ToString(), "bf16, 32 layers, 8 kv heads of 128");
  EXPECT_EQ(Opaque().ToString(), "opaque");
  KvLayout layout = Latent();
  layout.scale_bytes_per_token = 4;
  EXPECT_EQ(layout.ToString(), "bf16, 61 layers, a latent of 576, 4 scale bytes");
}

}  // namespace
}  // namespace kvcache
