// Writes random pages, what was gathered from them and what was scattered into them, as JSON, for
// check_pages.py.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/pages/paged_kv.h"

namespace {

using kvcache::DType;
using kvcache::KvLayout;
using kvcache::PagedKv;

std::mt19937 generator(20);

// 0 to end - 1.
uint32_t Random(uint32_t end) { return static_cast<uint32_t>(generator() % end); }

std::vector<std::byte> RandomBytes(size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(generator());
  return bytes;
}

std::string Hex(const std::vector<std::byte>& bytes) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void WriteCase(uint32_t page_tokens) {
  constexpr uint32_t kDims[] = {1, 3, 8, 80, 127, 128};
  constexpr DType kTypes[] = {DType::kF32,     DType::kF16,     DType::kBF16,
                              DType::kFp8E4M3, DType::kFp8E5M2, DType::kInt8};
  PagedKv kv;
  const bool latent = Random(5) == 0;
  kv.layout = {.dtype = kTypes[Random(6)],
               .kind = latent ? KvLayout::Kind::kLatent : KvLayout::Kind::kGroupedHeads,
               .layers = 1,
               .kv_heads = latent ? 1 : 1 + Random(4),
               .head_dim = page_tokens > 32 ? kDims[Random(3)] : kDims[Random(6)]};
  kv.order = Random(2) == 0 ? PagedKv::Order::kTokenHeadDim : PagedKv::Order::kHeadTokenDim;
  kv.page_tokens = page_tokens;
  const uint32_t used = 1 + Random(5);
  kv.pages = used + Random(3);
  const size_t element = kvcache::DTypeSize(kv.layout.dtype);
  const bool k_then_v = Random(2) == 0;
  kv.page_stride = (k_then_v ? 1 : 2) * kv.PageBytes() + Random(2) * element;
  const size_t v_at = k_then_v ? kv.pages * kv.page_stride : kv.PageBytes();
  std::vector<std::byte> memory = RandomBytes((k_then_v ? 2 : 1) * kv.pages * kv.page_stride);
  const std::vector<std::byte> before = memory;
  kv.layers = {{memory.data(), latent ? nullptr : memory.data() + v_at}};
  std::vector<int32_t> table(kv.pages);
  std::iota(table.begin(), table.end(), 0);
  if (Random(3) > 0) std::shuffle(table.begin(), table.end(), generator);
  table.resize(used);
  const uint32_t first = Random(used * page_tokens);
  const uint32_t count = 1 + Random(used * page_tokens - first);
  KVCACHE_CHECK(kv.Validate().ok(), kv.Validate().ToString());

  std::vector<std::byte> gathered(*kv.layout.PartBytes(count));
  kvcache::GatherPart(kv, table, 0, {first, count}, gathered.data());
  const std::vector<std::byte> part = RandomBytes(gathered.size());
  const uint32_t skip = Random(2) == 0 ? 0 : Random(count);
  uint64_t sum = 0;
  kvcache::ScatterPart(kv, table, 0, {first, count}, part.data(), Random(2) == 0 ? nullptr : &sum,
                       skip);
  std::puts(absl::StrCat("{\"page_tokens\": ", page_tokens, ", \"page_stride\": ", kv.page_stride,
                         ", \"v_at\": ", latent ? "null" : absl::StrCat(v_at),
                         ", \"heads\": ", kv.layout.kv_heads,
                         ", \"row_bytes\": ", kv.layout.head_dim * element, ", \"head_major\": ",
                         kv.order == PagedKv::Order::kHeadTokenDim ? "true" : "false",
                         ", \"table\": [", absl::StrJoin(table, ", "), "], \"first\": ", first,
                         ", \"count\": ", count, ", \"skip\": ", skip, ",\n \"memory\": \"",
                         Hex(before), "\",\n \"gathered\": \"", Hex(gathered), "\",\n \"part\": \"",
                         Hex(part), "\",\n \"scattered\": \"", Hex(memory), "\"}")
                .c_str());
}

}  // namespace

int main() {
  std::puts("[");
  for (uint32_t page_tokens = 1; page_tokens <= 256; page_tokens += 1 + page_tokens / 16) {
    for (int i = 0; i < 4; ++i) {
      WriteCase(page_tokens);
      std::puts(",");
    }
  }
  WriteCase(256);
  std::puts("]");
}
