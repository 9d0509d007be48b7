// How fast blocks go to, from and through a GPU, as ratios to plain copies in the same run.
#include <cuda_runtime_api.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kvcache/backends/cuda_device/cuda_device.h"
#include "kvcache/backends/gpu/cuda_runtime.h"
#include "kvcache/backends/pinned_host/pinned_host.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/pages/paged_kv.h"

ABSL_FLAG(int, device, 0, "The GPU to measure.");
ABSL_FLAG(int, runs, 7, "Runs of each measurement; the median counts.");
ABSL_FLAG(double, pool_gib, 16, "Size of the pinned pool whose start is timed.");
ABSL_FLAG(std::string, json, "", "File for the results.");

namespace kvcache {
namespace {

constexpr size_t kKiB = 1024;
constexpr size_t kMiB = kKiB * kKiB;

void CheckCuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK_CUDA(call) CheckCuda((call), #call)

void CheckOk(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T ValueOf(absl::StatusOr<T> value, const char* what) {
  CheckOk(value.status(), what);
  return *std::move(value);
}

double Seconds(absl::FunctionRef<void()> work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Row {
  std::string work;
  double bytes_per_second;  // 0: not a copy
  double ratio;
  std::string to;
  double wanted;
};

class Bench {
 public:
  Bench(std::shared_ptr<GpuRuntime> runtime, std::string name)
      : runtime_(std::move(runtime)),
        device_(absl::GetFlag(FLAGS_device)),
        name_(std::move(name)),
        json_(absl::GetFlag(FLAGS_json)) {
    CHECK_CUDA(cudaSetDevice(device_));
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    memory_ = ValueOf(runtime_->AllocateDevice(device_, kBytes), "device memory");
    other_memory_ = ValueOf(runtime_->AllocateDevice(device_, kBytes), "device memory");
    PinnedHostOptions options = {.capacity_bytes = 2 * kBytes, .chunk_bytes = 2 * kBytes};
    pinned_ = ValueOf(CreatePinnedHostBackend(options, runtime_), "pinned_host");
    // What plain copies use, full of bytes of which no two parts are alike.
    plain_ = ValueOf(pinned_->Allocate(kBytes), "allocate");
    auto* const words = reinterpret_cast<uint64_t*>(pinned_->Address(plain_));
    std::mt19937_64 random(3);
    std::generate_n(words, kBytes / sizeof(uint64_t), std::ref(random));
    PlainCopy(true);
    options.link.kernel_below_bytes = 0;
    batch_only_ = ValueOf(CreatePinnedHostBackend(options, runtime_), "pinned_host");
    options.link.kernel_below_bytes = kMiB;
    kernel_only_ = ValueOf(CreatePinnedHostBackend(options, runtime_), "pinned_host");
    on_device_ = ValueOf(
        CreateCudaDeviceBackend({.device = device_, .capacity_bytes = 2 * kBytes}, runtime_),
        "cuda_device");
  }

  void Run() {
    Blocks(512 * kKiB);
    Blocks(2 * kMiB);
    BothWays();
    Pieces(64 * kKiB, 0.90);
    for (size_t bytes : {4 * kKiB, 8 * kKiB, 16 * kKiB}) Pieces(bytes, 0.5);
    CutOff();
    PagesOnTheDevice();
    PagesToTheHost();
    Pool();
  }

 private:
  static constexpr size_t kBytes = size_t{640} << 20;
  MemorySpace space() const { return {MemoryKind::kDevice, device_}; }

  // Times `ours` and `plain` by turns, and adds the row of their speeds.
  void Compare(const std::string& work, size_t bytes, const char* to, double wanted,
               absl::FunctionRef<void()> ours, absl::FunctionRef<void()> plain,
               double plain_bytes) {
    ours();
    plain();
    std::vector<double> our_times;
    std::vector<double> ratios;
    for (int run = 0; run < absl::GetFlag(FLAGS_runs); ++run) {
      our_times.push_back(Seconds(ours));
      const double plain_time = Seconds(plain);
      ratios.push_back((bytes / our_times.back()) / (plain_bytes / plain_time));
    }
    Add({work, bytes / Median(our_times), Median(ratios), to, wanted});
  }

  void Add(Row row) {
    std::printf("%-58s %8.2f GB/s %7.2f x %-28s %s\n", row.work.c_str(), row.bytes_per_second / 1e9,
                row.ratio, row.to.c_str(),
                row.wanted == 0 ? ""
                : row.ratio >= row.wanted
                    ? "reached"
                    : absl::StrFormat("MISSED, wanted %.2f", row.wanted).c_str());
    std::fflush(stdout);
    rows_.push_back(std::move(row));
    WriteJson();
  }

  // After each row, so that a run that ends early leaves what it measured.
  void WriteJson() const {
    if (json_.empty()) return;
    std::vector<std::string> lines;
    for (const Row& row : rows_) {
      lines.push_back(absl::StrFormat(
          R"(    {"work": "%s", "bytes_per_second": %.0f, "ratio": %.4f, "to": "%s", "wanted": %g})",
          row.work, row.bytes_per_second, row.ratio, row.to, row.wanted));
    }
    std::FILE* const file = std::fopen(json_.c_str(), "w");
    if (file == nullptr) {
      std::fprintf(stderr, "--json=%s: cannot be written\n", json_.c_str());
      std::exit(1);
    }
    std::fprintf(file, "{\n  \"device\": \"%s\",\n  \"rows\": [\n%s\n  ]\n}\n", name_.c_str(),
                 absl::StrJoin(lines, ",\n").c_str());
    std::fclose(file);
  }

  void PlainCopy(bool to_device) {
    std::byte* const host = pinned_->Address(plain_);
    CHECK_CUDA(cudaMemcpyAsync(to_device ? memory_ : host, to_device ? host : memory_, kBytes,
                               cudaMemcpyDefault, stream_));
    CHECK_CUDA(cudaStreamSynchronize(stream_));
  }

  // Pieces of the device's memory in an order in which none can be joined.
  std::vector<MutableBytes> Scattered(size_t piece_bytes, size_t count) const {
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(1));
    std::vector<MutableBytes> pieces;
    for (size_t i : order) pieces.push_back({memory_ + i * piece_bytes, piece_bytes});
    return pieces;
  }

  static Transfer Load(StorageBackend& backend, const Extent& extent,
                       absl::Span<const MutableBytes> pieces, MemorySpace space) {
    const ReadOp op = {extent, 0, pieces, space, 0, {}};
    return backend.Read({&op, 1}, Stream::None());
  }
  static Transfer Save(StorageBackend& backend, const Extent& extent,
                       absl::Span<const MutableBytes> pieces, MemorySpace space) {
    const std::vector<ConstBytes> sources(pieces.begin(), pieces.end());
    const WriteOp op = {extent, 0, sources, space, 0, {}};
    return backend.Write({&op, 1}, Stream::None());
  }

  void Blocks(size_t block_bytes) {
    const size_t count = kBytes / block_bytes;
    const Extent extent = ValueOf(pinned_->Allocate(count * block_bytes), "allocate");
    const std::vector<MutableBytes> pieces = Scattered(block_bytes, count);
    const std::string what = absl::StrCat("blocks of ", block_bytes / kKiB, " KiB, ");
    Compare(
        what + "host to device", extent.size, "one large copy", 0.95,
        [&] { CheckOk(Load(*pinned_, extent, pieces, space()).Wait(), "load"); },
        [&] { PlainCopy(true); }, kBytes);
    Compare(
        what + "device to host", extent.size, "one large copy", 0.95,
        [&] { CheckOk(Save(*pinned_, extent, pieces, space()).Wait(), "save"); },
        [&] { PlainCopy(false); }, kBytes);
    pinned_->Free(extent);
  }

  void BothWays() {
    constexpr size_t kBlock = 2 * kMiB;
    constexpr size_t kHalf = kBytes / 2 / kBlock;
    const Extent in = ValueOf(pinned_->Allocate(kHalf * kBlock), "allocate");
    const Extent out = ValueOf(pinned_->Allocate(kHalf * kBlock), "allocate");
    const std::vector<MutableBytes> pieces = Scattered(kBlock, 2 * kHalf);
    const absl::Span<const MutableBytes> first(pieces.data(), kHalf);
    const absl::Span<const MutableBytes> second(pieces.data() + kHalf, kHalf);
    Compare(
        "both directions at once", in.size + out.size, "one direction", 1.7,
        [&] {
          const Transfer load = Load(*pinned_, in, first, space());
          const Transfer save = Save(*pinned_, out, second, space());
          CheckOk(load.Wait(), "load");
          CheckOk(save.Wait(), "save");
        },
        [&] { CheckOk(Load(*pinned_, in, first, space()).Wait(), "load"); }, in.size);
    pinned_->Free(in);
    pinned_->Free(out);
  }

  void Pieces(size_t piece_bytes, double wanted) {
    constexpr size_t kCount = 10000;
    const Extent extent = ValueOf(pinned_->Allocate(kCount * piece_bytes), "allocate");
    const std::vector<MutableBytes> pieces = Scattered(piece_bytes, kCount);
    const std::string what = absl::StrCat("10,000 pieces of ", piece_bytes / kKiB, " KiB, ");
    const auto load = [&] { CheckOk(Load(*pinned_, extent, pieces, space()).Wait(), "load"); };
    const auto save = [&] { CheckOk(Save(*pinned_, extent, pieces, space()).Wait(), "save"); };
    Compare(
        what + "host to device", extent.size, "one large copy", wanted, load,
        [&] { PlainCopy(true); }, kBytes);
    Compare(
        what + "device to host", extent.size, "one large copy", wanted, save,
        [&] { PlainCopy(false); }, kBytes);
    if (piece_bytes < 64 * kKiB) {
      Compare(
          what + "device to host", extent.size, "a loop of cudaMemcpyAsync", 4, save,
          [&] {
            std::byte* host = pinned_->Address(extent);
            for (const MutableBytes& piece : pieces) {
              CHECK_CUDA(cudaMemcpyAsync(host, piece.data(), piece.size(), cudaMemcpyDeviceToHost,
                                         stream_));
              host += piece.size();
            }
            CHECK_CUDA(cudaStreamSynchronize(stream_));
          },
          extent.size);
      Compare(
          what + "host to device", extent.size, "a loop of cudaMemcpyAsync", 4, load,
          [&] {
            const std::byte* host = pinned_->Address(extent);
            for (const MutableBytes& piece : pieces) {
              CHECK_CUDA(cudaMemcpyAsync(piece.data(), host, piece.size(), cudaMemcpyHostToDevice,
                                         stream_));
              host += piece.size();
            }
            CHECK_CUDA(cudaStreamSynchronize(stream_));
          },
          extent.size);
    }
    pinned_->Free(extent);
  }

  // Where DeviceLinkOptions::kernel_below_bytes should be.
  void CutOff() {
    for (size_t piece_bytes = kKiB; piece_bytes <= 64 * kKiB; piece_bytes *= 2) {
      const size_t count = std::min<size_t>(10000, kBytes / piece_bytes);
      const Extent batch = ValueOf(batch_only_->Allocate(count * piece_bytes), "allocate");
      const Extent kernel = ValueOf(kernel_only_->Allocate(count * piece_bytes), "allocate");
      const std::vector<MutableBytes> pieces = Scattered(piece_bytes, count);
      Compare(
          absl::StrCat("pieces of ", piece_bytes / kKiB, " KiB by a kernel, host to device"),
          kernel.size, "a batch of copies", 0,
          [&] { CheckOk(Load(*kernel_only_, kernel, pieces, space()).Wait(), "load"); },
          [&] { CheckOk(Load(*batch_only_, batch, pieces, space()).Wait(), "load"); }, batch.size);
      Compare(
          absl::StrCat("pieces of ", piece_bytes / kKiB, " KiB by a kernel, device to host"),
          kernel.size, "a batch of copies", 0,
          [&] { CheckOk(Save(*kernel_only_, kernel, pieces, space()).Wait(), "save"); },
          [&] { CheckOk(Save(*batch_only_, batch, pieces, space()).Wait(), "save"); }, batch.size);
      batch_only_->Free(batch);
      kernel_only_->Free(kernel);
    }
  }

  struct Paged {
    PagedKv kv;
    std::vector<int32_t> table;
    uint32_t tokens;
  };
  // Pages of 16 tokens, bf16, 8 heads of 128, shuffled.
  Paged MakePages(uint32_t layers, uint32_t tokens) const {
    Paged paged;
    PagedKv& kv = paged.kv;
    kv.layout = {.dtype = DType::kBF16, .layers = layers, .kv_heads = 8, .head_dim = 128};
    kv.page_tokens = 16;
    kv.pages = tokens / 16;
    kv.page_stride = 2 * kv.PageBytes();
    kv.space = space();
    for (uint32_t layer = 0; layer < layers; ++layer) {
      std::byte* const k = memory_ + layer * kv.pages * kv.page_stride;
      kv.layers.push_back({k, k + kv.PageBytes()});
    }
    paged.tokens = tokens;
    paged.table.resize(kv.pages);
    std::iota(paged.table.begin(), paged.table.end(), 0);
    std::shuffle(paged.table.begin(), paged.table.end(), std::mt19937(2));
    return paged;
  }

  struct Blocked {
    std::vector<Extent> extents;
    std::vector<PagedWriteOp> writes;
    std::vector<PagedReadOp> reads;
    std::vector<uint64_t> checksums;
    size_t bytes = 0;
  };
  static void MakeBlocks(StorageBackend& backend, const Paged& paged, bool checksums,
                         Blocked* blocked) {
    constexpr uint32_t kBlockTokens = 64;
    const uint32_t layers = paged.kv.layout.layers;
    const uint32_t blocks = paged.tokens / kBlockTokens;
    const size_t part_bytes = ValueOf(paged.kv.layout.PartBytes(kBlockTokens), "part");
    for (uint32_t block = 0; block < blocks; ++block) {
      blocked->extents.push_back(ValueOf(backend.Allocate(layers * part_bytes), "allocate"));
    }
    blocked->checksums.resize(layers * blocks);
    for (uint32_t layer = 0; layer < layers; ++layer) {
      for (uint32_t block = 0; block < blocks; ++block) {
        const TokenRange tokens = {block * kBlockTokens, kBlockTokens};
        uint64_t* const sum = checksums ? &blocked->checksums[layer * blocks + block] : nullptr;
        blocked->writes.push_back(
            {blocked->extents[block], layer * part_bytes, layer, tokens, sum});
        blocked->reads.push_back({blocked->extents[block], layer * part_bytes, layer, tokens, 0});
        blocked->bytes += part_bytes;
      }
    }
  }

  void PagesOnTheDevice() {
    // As many tokens of one layer, so that one kernel is timed and not 32 launches.
    const Paged paged = MakePages(1, 32 * 4096);
    Blocked blocked;
    MakeBlocks(*on_device_, paged, false, &blocked);
    const auto plain = [&] {
      CHECK_CUDA(
          cudaMemcpyAsync(other_memory_, memory_, kBytes, cudaMemcpyDeviceToDevice, stream_));
      CHECK_CUDA(cudaStreamSynchronize(stream_));
    };
    Compare(
        "gather of 131,072 tokens on the device, pages of 16", blocked.bytes,
        "a copy on the device", 0.80,
        [&] {
          CheckOk(
              WritePages(*on_device_, paged.kv, paged.table, blocked.writes, Stream::None()).Wait(),
              "gather");
        },
        plain, kBytes);
    Compare(
        "scatter of 131,072 tokens on the device, pages of 16", blocked.bytes,
        "a copy on the device", 0.80,
        [&] {
          CheckOk(
              ReadPages(*on_device_, paged.kv, paged.table, blocked.reads, Stream::None()).Wait(),
              "scatter");
        },
        plain, kBytes);
    for (const Extent& extent : blocked.extents) on_device_->Free(extent);
  }

  void PagesToTheHost() {
    for (const bool checksums : {false, true}) {
      const Paged paged = MakePages(32, 4096);
      Blocked blocked;
      MakeBlocks(*pinned_, paged, checksums, &blocked);
      const std::string what =
          absl::StrCat(" of 32 x 4,096 tokens", checksums ? " with checksums" : "");
      Compare(
          "save" + what, blocked.bytes, "one large copy", checksums ? 0 : 0.85,
          [&] {
            CheckOk(
                WritePages(*pinned_, paged.kv, paged.table, blocked.writes, Stream::None()).Wait(),
                "save");
          },
          [&] { PlainCopy(false); }, kBytes);
      if (checksums) {
        for (size_t i = 0; i < blocked.reads.size(); ++i) {
          blocked.reads[i].checksum = blocked.checksums[i];
        }
      }
      const auto load = [&] {
        return ReadPages(*pinned_, paged.kv, paged.table, blocked.reads, Stream::None());
      };
      Compare(
          "load" + what, blocked.bytes, "one large copy", checksums ? 0 : 0.85,
          [&] { CheckOk(load().Wait(), "load"); }, [&] { PlainCopy(true); }, kBytes);
      if (!checksums) {
        std::vector<double> ratios;
        for (int run = 0; run < absl::GetFlag(FLAGS_runs); ++run) {
          double first = 0;
          const double all = Seconds([&] {
            const auto start = std::chrono::steady_clock::now();
            const Transfer transfer = load();
            CheckOk(transfer.WaitPart(0), "layer 0");
            first = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            CheckOk(transfer.Wait(), "load");
          });
          ratios.push_back(all / first);
        }
        Add({"all layers loaded, in times until layer 0 is", 0, Median(ratios), "layer 0", 20});
      }
      for (const Extent& extent : blocked.extents) pinned_->Free(extent);
    }
  }

  void Pool() {
    const size_t bytes = static_cast<size_t>(absl::GetFlag(FLAGS_pool_gib) * 1024) * kMiB;
    std::unique_ptr<StorageBackend> pool;
    absl::Status status;
    double first = 0;
    const double all = Seconds([&] {
      first = Seconds([&] {
        absl::StatusOr<std::unique_ptr<StorageBackend>> created =
            CreatePinnedHostBackend({.capacity_bytes = bytes}, runtime_);
        if (created.ok()) pool = *std::move(created);
        status = created.status();
      });
      if (pool == nullptr) return;
      pool->Free(ValueOf(pool->Allocate(bytes), "the whole pool"));  // waits for all of it
    });
    if (pool == nullptr) {
      std::printf("no pinned pool: %s\n", status.ToString().c_str());
      return;
    }
    pool.reset();
    const size_t plain_bytes = std::min(bytes, size_t{4} << 30);
    void* plain = nullptr;
    const double plain_time =
        Seconds([&] { CHECK_CUDA(cudaHostAlloc(&plain, plain_bytes, cudaHostAllocDefault)); });
    CHECK_CUDA(cudaFreeHost(plain));
    Add({absl::StrFormat("a pinned pool of %.0f GiB, first chunk after %.2f s",
                         bytes / 1073741824.0, first),
         bytes / all, (bytes / all) / (plain_bytes / plain_time), "one cudaHostAlloc", 2});
    Add({"first chunk of the pool, in chunks a second", 0, 1 / first, "one second", 1});
  }

  const std::shared_ptr<GpuRuntime> runtime_;
  const int device_;
  const std::string name_;
  const std::string json_;
  std::vector<Row> rows_;
  cudaStream_t stream_ = nullptr;
  Extent plain_;
  std::byte* memory_ = nullptr;
  std::byte* other_memory_ = nullptr;
  std::unique_ptr<StorageBackend> pinned_;
  std::unique_ptr<StorageBackend> batch_only_;
  std::unique_ptr<StorageBackend> kernel_only_;
  std::unique_ptr<StorageBackend> on_device_;
};

int Main() {
  if (absl::GetFlag(FLAGS_runs) < 1 || absl::GetFlag(FLAGS_pool_gib) < 1) {
    std::fprintf(stderr, "--runs and --pool_gib must be at least 1\n");
    return 2;
  }
  absl::StatusOr<std::shared_ptr<GpuRuntime>> runtime = CreateCudaRuntime();
  if (!runtime.ok()) {
    std::fprintf(stderr, "nothing to measure: %s\n", runtime.status().ToString().c_str());
    return 1;
  }
  const GpuDevice device = ValueOf((*runtime)->Describe(absl::GetFlag(FLAGS_device)), "the device");
  std::printf("%s\n", device.name.c_str());
  umask(0077);
  Bench bench(*std::move(runtime), device.name);
  bench.Run();
  return 0;
}

}  // namespace
}  // namespace kvcache

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Copies to, from and on a GPU, against plain copies.");
  absl::ParseCommandLine(argc, argv);
  return kvcache::Main();
}
