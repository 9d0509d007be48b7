// K/V between an engine's pages and blocks, by this processor.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/prompts/paged_cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

constexpr uint32_t kHeads = 8;
constexpr uint32_t kHeadDim = 128;
constexpr uint32_t kBlockTokens = 64;
constexpr size_t kPartBytes = size_t{2} * kBlockTokens * kHeads * kHeadDim * 2;
constexpr size_t kWorkingSet = size_t{256} << 20;
constexpr size_t kParts = kWorkingSet / kPartBytes;
constexpr size_t kTurn = 256;  // parts in one round

// Memory that begins at a line, as that of engines and blocks does.
class Memory {
 public:
  explicit Memory(std::byte content) : bytes_(kWorkingSet + 64, content) {
    first_ = bytes_.data() + (-reinterpret_cast<uintptr_t>(bytes_.data()) % 64);
  }
  std::byte* data() { return first_; }

 private:
  std::vector<std::byte> bytes_;
  std::byte* first_;
};

// Pages of one layer, in any order, and parts for all of their tokens.
class Pages {
 public:
  Pages(uint32_t page_tokens, PagedKv::Order order) : pages_(std::byte{1}), parts_(std::byte{2}) {
    kv_.layout = {.dtype = DType::kBF16, .layers = 1, .kv_heads = kHeads, .head_dim = kHeadDim};
    kv_.order = order;
    kv_.page_tokens = page_tokens;
    kv_.page_stride = 2 * kv_.PageBytes();
    kv_.pages = kWorkingSet / kv_.page_stride;
    kv_.layers = {{pages_.data(), pages_.data() + kv_.PageBytes()}};
    table_.resize(kv_.pages);
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::mt19937(1));
  }

  double Gather() {
    return BytesPerSecond(
        [this](TokenRange tokens, std::byte* part) { GatherPart(kv_, table_, 0, tokens, part); });
  }
  double GatherAndSum() {
    return BytesPerSecond([this](TokenRange tokens, std::byte* part) {
      GatherPart(kv_, table_, 0, tokens, part, &sum_);
    });
  }
  double Scatter() {
    return BytesPerSecond(
        [this](TokenRange tokens, std::byte* part) { ScatterPart(kv_, table_, 0, tokens, part); });
  }
  // As many bytes, from and to as cold memory.
  double Memcpy() {
    return BytesPerSecond([this](TokenRange tokens, std::byte* part) {
      std::memcpy(part, pages_.data() + (part - parts_.data() + kWorkingSet / 2) % kWorkingSet,
                  kPartBytes);
    });
  }

 private:
  template <typename Copy>
  double BytesPerSecond(const Copy& copy) {
    const double seconds = Seconds([&] {
      for (size_t i = 0; i < kTurn; ++i) {
        const size_t part = next_++ % kParts;
        copy({static_cast<uint32_t>(part * kBlockTokens), kBlockTokens},
             parts_.data() + part * kPartBytes);
      }
    });
    return kTurn * kPartBytes / seconds / 1e9;
  }

  PagedKv kv_;
  Memory pages_;
  Memory parts_;
  std::vector<int32_t> table_;
  size_t next_ = 0;
  uint64_t sum_ = 0;
};

// What an op costs beside its copy: prompts of blocks whose parts are 256 bytes.
class SmallParts {
 public:
  static constexpr uint32_t kLayers = 32;
  static constexpr uint32_t kBlocks = 64;
  static constexpr double kOps = kLayers * kBlocks;

  SmallParts() {
    kv_.layout = {.dtype = DType::kInt8, .layers = kLayers, .kv_heads = 1, .head_dim = 2};
    kv_.page_tokens = kBlockTokens;
    kv_.pages = kBlocks;
    kv_.page_stride = 2 * kv_.PageBytes();
    memory_.resize(kLayers * kBlocks * kv_.page_stride);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      std::byte* const k = memory_.data() + layer * kBlocks * kv_.page_stride;
      kv_.layers.push_back({k, k + kv_.PageBytes()});
    }
    auto backend = CreateCpuRamBackend({.capacity_bytes = size_t{64} << 20});
    cache_ = *Cache::Create({.checksums = false}, *std::move(backend), CreateLruPolicy());
    PagedCacheOptions options = {.tokens_per_block = kBlockTokens};
    options.ns.layout = kv_.layout;
    options.ns.shard = Shard::Whole(kLayers, 1);
    paged_ = *PagedCache::Create(cache_.get(), kv_, options);
    tokens_.resize(kBlocks * kBlockTokens);
    table_.resize(kBlocks);
    std::iota(table_.begin(), table_.end(), 0);
  }

  // Nanoseconds for each op.
  double Save() {
    cache_->Clear();
    return 1e9 / kOps * Seconds([&] {
             KVCACHE_CHECK(paged_->Save(tokens_, table_)->copied_tokens == tokens_.size(), "save");
           });
  }
  double Load() {
    return 1e9 / kOps * Seconds([&] {
             KVCACHE_CHECK(paged_->Load(tokens_, table_)->copies.Wait().ok(), "load");
           });
  }

 private:
  PagedKv kv_;
  std::vector<std::byte> memory_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> table_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<PagedCache> paged_;
};

}  // namespace

void MeasurePages(Suite& suite) {
  if (!suite.Wants("pages")) return;
  struct Shape {
    uint32_t page_tokens;
    PagedKv::Order order;
    const char* name;
    double target;
  };
  for (const Shape& shape : {Shape{16, PagedKv::Order::kTokenHeadDim, "of 16, token-major", 0.7},
                             Shape{16, PagedKv::Order::kHeadTokenDim, "of 16, head-major", 0.7},
                             Shape{1, PagedKv::Order::kTokenHeadDim, "of 1", 0.5}}) {
    Pages pages(shape.page_tokens, shape.order);
    const auto memcpy = [&] { return pages.Memcpy(); };
    suite.Ratio(
        absl::StrCat("gather from pages ", shape.name), "GB/s", Goal::kAtLeast, shape.target,
        [&] { return pages.Gather(); }, "memcpy", memcpy);
    suite.Ratio(
        absl::StrCat("gather from pages ", shape.name, ", and checksum"), "GB/s", Goal::kAtLeast,
        0.4, [&] { return pages.GatherAndSum(); }, "memcpy", memcpy);
    suite.Ratio(
        absl::StrCat("scatter to pages ", shape.name), "GB/s", Goal::kAtLeast, shape.target,
        [&] { return pages.Scatter(); }, "memcpy", memcpy);
  }
  // A part of 64 KiB takes 3,000 ns.
  SmallParts small;
  suite.Value("pages: save, bookkeeping of a layer of a block", "ns", Goal::kAtMost, 400,
              [&] { return small.Save(); });
  suite.Value("pages: load, bookkeeping of a layer of a block", "ns", Goal::kAtMost, 300,
              [&] { return small.Load(); });
}

}  // namespace kvcache::bench
