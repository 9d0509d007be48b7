// Pages on a device, saved to blocks in pinned host memory or on the device and loaded into other
// pages, compared with the copies that a processor makes. KVCACHE_SEED=n runs one scenario alone.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"
#include "kvcache/tests/gpu/seeds.h"

namespace kvcache {
namespace {

enum class Where { kPinnedHost, kDevice };
enum class PagesAt { kDevice, kPeer, kHost };
enum class Faults { kNone, kOne };

struct Counts {
  uint64_t right_parts = 0;
  uint64_t failed_ops = 0;
};

constexpr std::byte kPoison{0xEE};

// Ops in one call, or the last of them in another beside it.
struct Copies {
  Transfer first;
  Transfer rest;

  absl::Status result(size_t op) const {
    return op < first.size() ? first.result(op) : rest.result(op - first.size());
  }
  absl::Status Wait() const { return Both(first.Wait(), rest.Wait()); }
  absl::Status WaitOn(Stream stream) const {
    return Both(first.WaitOn(stream), rest.WaitOn(stream));
  }
  absl::Status WaitPartOn(Stream stream, uint32_t part) const {
    return Both(first.WaitPartOn(stream, part), rest.WaitPartOn(stream, part));
  }

 private:
  static absl::Status Both(absl::Status a, const absl::Status& b) {
    a.Update(b);
    return a;
  }
};

class Scenario {
 public:
  Scenario(Where where, PagesAt pages_at, Faults faults, uint64_t seed, Counts* counts)
      : counts_(*counts),
        random_(seed),
        pages_at_(pages_at),
        faults_(faults),
        gpu_(std::make_shared<FakeGpuRuntime>(
            FakeGpuRuntime::Options{.devices = 2, .seed = static_cast<uint32_t>(seed)})) {
    constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kFp8E4M3};
    layout_ = {.dtype = kTypes[random_.Below(3)],
               .kind = random_.Chance(20) ? KvLayout::Kind::kLatent : KvLayout::Kind::kGroupedHeads,
               .layers = 1 + random_.Below(3),
               .kv_heads = 1 + random_.Below(4),
               .head_dim = 1 + random_.Below(40)};
    if (layout_.kind == KvLayout::Kind::kLatent) layout_.kv_heads = 1;
    block_tokens_ = 1 + random_.Below(24);
    blocks_ = 1 + random_.Below(4);
    tokens_ = blocks_ * block_tokens_ - random_.Below(block_tokens_);
    MakeBackend(where);
    stream_ = pages_at == PagesAt::kHost ? Stream::None() : gpu_->EngineStream(DeviceOfPages());
  }

  ~Scenario() {
    backend_.reset();
    for (std::byte* pool : pools_) {
      if (pages_at_ == PagesAt::kHost) continue;
      const absl::Status freed = gpu_->FreeDevice(DeviceOfPages(), pool);
      EXPECT_EQ(freed.ok(), !gpu_->lost(DeviceOfPages())) << freed;
    }
    EXPECT_TRUE(gpu_->violations().empty())
        << failing_call_ << ": " << absl::StrJoin(gpu_->violations(), "\n");
  }

  void Run() {
    SaveAndLoad(/*may_fail=*/faults_ != Faults::kNone);
    if (faults_ == Faults::kNone || random_.Chance(70)) return;
    gpu_->StopFailing();
    const bool block_device = backend_->traits().memory_space.kind == MemoryKind::kDevice;
    if ((block_device && gpu_->lost(0)) || gpu_->lost(DeviceOfPages())) return;
    SaveAndLoad(/*may_fail=*/false);
  }

 private:
  int DeviceOfPages() const { return pages_at_ == PagesAt::kPeer ? 1 : 0; }

  void MakeBackend(Where where) {
    DeviceLinkOptions link = {.kernel_below_bytes = 64u << random_.Below(8), .threads = 2};
    link.staging_bytes = size_t{64} << 10;
    // Now and then a part is too large for it.
    link.page_staging_bytes = size_t{64} << (10 + random_.Below(2));
    const size_t block = (*layout_.BlockBytes(block_tokens_) + 255) / 256 * 256;
    if (where == Where::kDevice) {
      auto backend =
          CreateCudaDeviceBackend({.capacity_bytes = blocks_ * block, .link = link}, gpu_);
      ASSERT_TRUE(backend.ok()) << backend.status();
      backend_ = *std::move(backend);
      return;
    }
    // Now and then parts lie across the end of what is registered together.
    constexpr size_t kChunk = size_t{2} << 20;
    const size_t before = random_.Chance(10) ? kChunk - random_.Below(blocks_ * block) : 0;
    const size_t capacity = blocks_ * block + before;
    auto backend = CreatePinnedHostBackend(
        {.capacity_bytes = capacity, .chunk_bytes = kChunk, .link = link}, gpu_);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    if (before == 0) return;
    // The thread that pins must not meet the fault.
    while (backend_->stats().Value("pinned_bytes") != backend_->traits().capacity_bytes) {
      std::this_thread::yield();
    }
    ASSERT_TRUE(backend_->Allocate(before / 64 * 64).ok());
  }

  void Fault() {
    static constexpr std::array<const char*, 9> kCalls = {
        "CopyBatch",   "CopyByKernel", "CopyPages",      "MakeWait",    "Record",
        "Synchronize", "CreateEvent",  "AllocateDevice", "RegisterHost"};
    if (random_.Chance(25)) return gpu_->LoseDevice(random_.Below(2), random_.Below(40));
    failing_call_ = kCalls[random_.Below(kCalls.size())];
    const absl::StatusCode code =
        std::array{absl::StatusCode::kInvalidArgument, absl::StatusCode::kResourceExhausted,
                   absl::StatusCode::kInternal}[random_.Below(3)];
    gpu_->FailCall(failing_call_, absl::Status(code, "injected"), random_.Below(6));
  }

  template <typename Op>
  std::pair<absl::Span<const Op>, absl::Span<const Op>> Split(absl::Span<const Op> ops) {
    const size_t first = random_.Chance(50) || ops.empty() ? ops.size() : random_.Below(ops.size());
    return {ops.first(first), ops.subspan(first)};
  }

  // What cannot be without a fault.
  bool Ok(const absl::Status& status) const {
    EXPECT_TRUE(status.ok() || may_fail_) << failing_call_ << ": " << status;
    return status.ok();
  }

  void SaveAndLoad(bool may_fail) {
    may_fail_ = may_fail;
    const bool fault_while_saving = random_.Chance(50);
    std::vector<int32_t> from_table;
    const PagedKv from = MakePages(tokens_, &from_table);
    std::vector<int32_t> to_table;
    const PagedKv to = MakePages(tokens_, &to_table);
    Poison(from);
    // The engine's kernel makes the K/V when its stream gets there.
    std::vector<std::vector<std::byte>> computed;
    const PagedKv copy = HostCopy(from, &computed);
    Fill(copy);
    Enqueue([from, copy] {
      for (size_t layer = 0; layer < from.layers.size(); ++layer) {
        CopyPages(from, from.layers[layer].k, copy, copy.layers[layer].k);
        if (from.layers[layer].v == nullptr) continue;
        CopyPages(from, from.layers[layer].v, copy, copy.layers[layer].v);
      }
    });
    // As a processor gathers them.
    std::vector<std::vector<std::byte>> expected;
    std::vector<Extent> extents;
    std::vector<PagedWriteOp> writes;
    std::vector<uint64_t> checksums(layout_.layers * blocks_, 0);
    for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
      for (uint32_t block = 0; block < blocks_; ++block) {
        const uint32_t first = block * block_tokens_;
        const TokenRange range = {first, std::min(block_tokens_, tokens_ - first)};
        const size_t bytes = *layout_.PartBytes(range.count);
        expected.emplace_back(bytes);
        GatherPart(copy, from_table, layer, range, expected.back().data());
        if (layer == 0) {
          const absl::StatusOr<Extent> extent =
              backend_->Allocate(*layout_.BlockBytes(range.count));
          ASSERT_TRUE(extent.ok()) << extent.status();
          extents.push_back(*extent);
        }
        writes.push_back(
            {extents[block], layer * bytes, layer, range, &checksums[layer * blocks_ + block]});
      }
    }
    if (may_fail && fault_while_saving) Fault();
    const auto [first_writes, other_writes] = Split(absl::MakeConstSpan(writes));
    const Copies saved = {WritePages(*backend_, from, from_table, first_writes, stream_),
                          WritePages(*backend_, from, from_table, other_writes, stream_)};
    if (!Ok(saved.WaitOn(stream_))) saved.Wait().IgnoreError();
    Enqueue([from] { Poison(from); });
    Ok(saved.Wait());

    const uint32_t tokens_before = random_.Below(tokens_);  // which are in the pages already
    std::vector<PagedReadOp> reads;
    std::vector<std::vector<std::byte>> right;  // of reads
    for (size_t i = 0; i < writes.size(); ++i) {
      const PagedWriteOp& op = writes[i];
      counts_.failed_ops += saved.result(i).ok() ? 0 : 1;
      if (!saved.result(i).ok() || op.tokens.first + op.tokens.count <= tokens_before) continue;
      const uint32_t skip = tokens_before > op.tokens.first ? tokens_before - op.tokens.first : 0;
      reads.push_back({op.destination, op.offset, op.part, op.tokens, checksums[i], skip});
      right.push_back(expected[i]);
      PoisonTokens(op.tokens.count, skip, &right.back());
    }
    // What the engine still does with these pages comes before the load.
    Enqueue([to] { Poison(to); });
    if (may_fail && !fault_while_saving) Fault();
    const auto [first_reads, other_reads] = Split(absl::MakeConstSpan(reads));
    const Copies loaded = {ReadPages(*backend_, to, to_table, first_reads, stream_),
                           ReadPages(*backend_, to, to_table, other_reads, stream_)};
    const auto is_right = [&](size_t i) {
      std::vector<std::byte> part(right[i].size());
      GatherPart(to, to_table, reads[i].part, reads[i].tokens, part.data());
      return part == right[i];
    };
    enum class Seen { kNothing, kRight, kWrong };
    std::vector<Seen> seen(reads.size(), Seen::kNothing);
    for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
      // Without the wait nobody knows what the kernel sees.
      if (!Ok(loaded.WaitPartOn(stream_, layer))) continue;
      Enqueue([&, layer] {
        for (size_t i = 0; i < reads.size(); ++i) {
          if (reads[i].part == layer) seen[i] = is_right(i) ? Seen::kRight : Seen::kWrong;
        }
      });
    }
    Ok(loaded.Wait());
    gpu_->RunAll();
    for (size_t i = 0; i < reads.size(); ++i) {
      if (!loaded.result(i).ok()) {
        ++counts_.failed_ops;
        continue;
      }
      ++counts_.right_parts;
      EXPECT_TRUE(is_right(i)) << failing_call_ << ": part " << reads[i].part;
      EXPECT_TRUE(seen[i] == Seen::kRight || (may_fail && seen[i] == Seen::kNothing))
          << failing_call_ << ": the kernel, part " << reads[i].part;
    }
    if (!may_fail) ExpectFindsOtherBytes(to, to_table, extents.back(), reads, checksums[0]);
    for (const Extent& extent : extents) backend_->Free(extent);
  }

  // Bytes that have changed are found, where this processor sees them.
  void ExpectFindsOtherBytes(const PagedKv& to, const std::vector<int32_t>& to_table,
                             const Extent& extent, const std::vector<PagedReadOp>& reads,
                             uint64_t checksum) {
    if (backend_->traits().memory_space.kind == MemoryKind::kDevice) {
      if (pages_at_ != PagesAt::kHost) {
        EXPECT_EQ(checksum, 0u);
      }
      return;
    }
    EXPECT_NE(checksum, 0u);
    backend_->Address(extent)[0] ^= std::byte{1};
    const Transfer corrupt = ReadPages(*backend_, to, to_table, reads, stream_);
    EXPECT_TRUE(absl::IsDataLoss(corrupt.Wait())) << corrupt.Wait();
  }

  void Enqueue(std::function<void()> work) {
    if (stream_.is_none()) {
      work();
    } else {
      gpu_->Enqueue(stream_, std::move(work));
    }
  }

  // Pages for more tokens than there are, somewhere in a pool that is larger than they are.
  PagedKv MakePages(uint32_t tokens, std::vector<int32_t>* table) {
    PagedKv kv;
    kv.layout = layout_;
    kv.order = random_.Chance(50) ? PagedKv::Order::kTokenHeadDim : PagedKv::Order::kHeadTokenDim;
    kv.page_tokens = 1u << random_.Below(6);
    if (random_.Chance(20)) kv.page_tokens = 1 + random_.Below(48);
    const uint32_t used = (tokens + kv.page_tokens - 1) / kv.page_tokens;
    kv.pages = used + random_.Below(3);
    const size_t tensors = layout_.kind == KvLayout::Kind::kLatent ? 1 : 2;
    // All layers of a page together, or each layer alone.
    const bool together = random_.Chance(50);
    const size_t page = kv.PageBytes();
    kv.page_stride = (together ? layout_.layers : 1) * tensors * page;
    const size_t pool_bytes = layout_.layers * tensors * page * kv.pages;
    std::byte* pool;
    if (pages_at_ == PagesAt::kHost) {
      host_pools_.emplace_back(pool_bytes);
      pool = host_pools_.back().data();
    } else {
      pool = *gpu_->AllocateDevice(DeviceOfPages(), pool_bytes);
    }
    pools_.push_back(pool);
    for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
      std::byte* const k = pool + layer * tensors * page * (together ? 1 : kv.pages);
      kv.layers.push_back({k, tensors == 2 ? k + page : nullptr});
    }
    kv.space = pages_at_ == PagesAt::kHost ? MemorySpace{}
                                           : MemorySpace{MemoryKind::kDevice, DeviceOfPages()};
    std::vector<int32_t> all(kv.pages);
    std::iota(all.begin(), all.end(), 0);
    for (size_t i = all.size(); i > 1; --i) std::swap(all[i - 1], all[random_.Below(i)]);
    table->assign(all.begin(), all.begin() + used);
    EXPECT_TRUE(kv.Validate().ok()) << kv.Validate();
    return kv;
  }

  // As many pages, dense, in host memory.
  static PagedKv HostCopy(const PagedKv& kv, std::vector<std::vector<std::byte>>* tensors) {
    PagedKv copy = kv;
    copy.space = {};
    copy.page_stride = kv.PageBytes();
    for (PagedKv::Layer& layer : copy.layers) {
      for (std::byte** tensor : {&layer.k, &layer.v}) {
        if (*tensor == nullptr) continue;
        tensors->emplace_back(kv.pages * kv.PageBytes());
        *tensor = tensors->back().data();
      }
    }
    return copy;
  }
  static void CopyPages(const PagedKv& to_kv, std::byte* to, const PagedKv& from_kv,
                        const std::byte* from) {
    for (uint32_t page = 0; page < to_kv.pages; ++page) {
      std::memcpy(to + page * to_kv.page_stride, from + page * from_kv.page_stride,
                  to_kv.PageBytes());
    }
  }

  void Fill(const PagedKv& kv) {
    ForPages(kv, [this](std::byte* page, size_t bytes) {
      for (size_t at = 0; at < bytes; at += sizeof(uint32_t)) {
        const uint32_t value = random_.Below(UINT32_MAX);
        std::memcpy(page + at, &value, std::min(sizeof(value), bytes - at));
      }
    });
  }
  static void Poison(const PagedKv& kv) {
    ForPages(kv, [](std::byte* page, size_t bytes) {
      std::memset(page, static_cast<int>(kPoison), bytes);
    });
  }
  // The first `tokens` of a part of `count`.
  void PoisonTokens(uint32_t count, uint32_t tokens, std::vector<std::byte>* part) const {
    const size_t tensors = layout_.kind == KvLayout::Kind::kLatent ? 1 : 2;
    const size_t tensor_bytes = part->size() / tensors;
    for (size_t tensor = 0; tensor < tensors; ++tensor) {
      std::fill_n(part->begin() + tensor * tensor_bytes, tensor_bytes / count * tokens, kPoison);
    }
  }
  template <typename Visit>
  static void ForPages(const PagedKv& kv, const Visit& visit) {
    for (const PagedKv::Layer& layer : kv.layers) {
      for (std::byte* tensor : {layer.k, layer.v}) {
        for (uint32_t page = 0; tensor != nullptr && page < kv.pages; ++page) {
          visit(tensor + page * kv.page_stride, kv.PageBytes());
        }
      }
    }
  }

  Counts& counts_;
  Random random_;
  const PagesAt pages_at_;
  const Faults faults_;
  const std::shared_ptr<FakeGpuRuntime> gpu_;
  std::string failing_call_;
  bool may_fail_ = false;
  KvLayout layout_;
  uint32_t block_tokens_, blocks_, tokens_;
  std::unique_ptr<StorageBackend> backend_;
  Stream stream_;
  std::vector<std::byte*> pools_;
  std::vector<std::vector<std::byte>> host_pools_;
};

void RunScenarios(Where where, PagesAt pages_at, Faults faults) {
  Counts counts;
  const uint64_t seeds = ForEachSeed(faults == Faults::kNone ? 2000 : 10000, [&](uint64_t seed) {
    Scenario(where, pages_at, faults, seed, &counts).Run();
  });
  if (seeds == 0) return;
  EXPECT_GT(counts.right_parts, seeds);
  EXPECT_EQ(counts.failed_ops > 0, faults != Faults::kNone);
}

TEST(PagesTest, PinnedHost) { RunScenarios(Where::kPinnedHost, PagesAt::kDevice, Faults::kNone); }
TEST(PagesTest, PinnedHostAndASecondDevice) {
  RunScenarios(Where::kPinnedHost, PagesAt::kPeer, Faults::kNone);
}
TEST(PagesTest, PinnedHostAndPagesThere) {
  RunScenarios(Where::kPinnedHost, PagesAt::kHost, Faults::kNone);
}
TEST(PagesTest, Device) { RunScenarios(Where::kDevice, PagesAt::kDevice, Faults::kNone); }
TEST(PagesTest, DeviceAndPeer) { RunScenarios(Where::kDevice, PagesAt::kPeer, Faults::kNone); }
TEST(PagesTest, DeviceAndPagesOnTheHost) {
  RunScenarios(Where::kDevice, PagesAt::kHost, Faults::kNone);
}

TEST(PagesAndFaultsTest, PinnedHost) {
  RunScenarios(Where::kPinnedHost, PagesAt::kDevice, Faults::kOne);
}
TEST(PagesAndFaultsTest, PinnedHostAndASecondDevice) {
  RunScenarios(Where::kPinnedHost, PagesAt::kPeer, Faults::kOne);
}
TEST(PagesAndFaultsTest, Device) { RunScenarios(Where::kDevice, PagesAt::kDevice, Faults::kOne); }
TEST(PagesAndFaultsTest, DeviceAndPeer) {
  RunScenarios(Where::kDevice, PagesAt::kPeer, Faults::kOne);
}
TEST(PagesAndFaultsTest, DeviceAndPagesOnTheHost) {
  RunScenarios(Where::kDevice, PagesAt::kHost, Faults::kOne);
}

}  // namespace
}  // namespace kvcache
