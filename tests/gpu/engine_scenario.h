// For tests: an engine that orders everything by its streams, on a GPU that runs work in every
// order that it may.
#ifndef KVCACHE_TESTS_GPU_ENGINE_SCENARIO_H_
#define KVCACHE_TESTS_GPU_ENGINE_SCENARIO_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/storage/transfer.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/fake_gpu/fake_gpu_runtime.h"

namespace kvcache {

// One cache, in pinned host memory, in host memory that cannot be pinned, or on a device, used by
// an engine on one device or two. At random: streams of either device, buffers on either and in
// host memory, copies of single blocks, of parts and of several blocks, use in place, erasure; and
// one fault. Whatever happens, an op that ends well has copied the right bytes, and a block that is
// found has them.
class EngineScenario {
 public:
  enum class Where { kPinnedHost, kDevice };
  enum class Faults {
    kNone,
    kRefusedCalls,  // calls that did nothing, and say so
    kLostDevice,    // one device fails for good, by itself or in a call
  };
  struct Counts {
    uint64_t right_parts = 0;
    uint64_t failed_ops = 0;
    uint64_t refused_over_an_end = 0;
  };

  EngineScenario(Where where, Faults faults, uint64_t seed, Counts* counts);
  ~EngineScenario();

  void Run();

 private:
  static constexpr uint32_t kKeys = 8;
  static constexpr uint32_t kParts = 3;
  static constexpr size_t kPartBytes = 512;
  static constexpr size_t kBlockBytes = kParts * kPartBytes;
  static constexpr size_t kBuffers = 6;

  struct Buffer {
    MemorySpace space;
    std::byte* data = nullptr;
    std::atomic<bool> busy = false;
    MutableBytes part(uint32_t part) const { return {data + part * kPartBytes, kPartBytes}; }
    MutableBytes block() const { return {data, kBlockBytes}; }
    bool on_device() const { return space.kind == MemoryKind::kDevice; }
  };
  // A load under way: whether the engine's kernels saw what they should have.
  struct Load {
    Transfer transfer;
    Buffer* buffer;
    std::array<std::atomic<int>, kParts> seen = {};  // 1: right, -1: wrong
    std::atomic<bool> ran = false;                   // the last kernel
  };

  std::unique_ptr<StorageBackend> MakeBackend(size_t capacity);
  void PlaceBuffers();

  Stream AnyStream();
  BlockKey AnyKey();
  Buffer* FreeBuffer();
  void Fault();
  void Act();
  void Save();
  void SaveMany();
  void LoadOne();
  void ReadInPlace();
  void WriteInPlace();
  void Settle();
  // Looks at the loads that have ended.
  void Collect();

  // The engine's kernel, on the stream; on host memory the engine itself, now.
  void Fill(Stream stream, const BlockKey& key, Buffer* buffer);
  // When the copies have read it: behind them on the stream, or when they have ended.
  void FreeAfter(absl::Span<const Transfer> copies, Stream stream, Buffer* buffer);
  void PoisonAndFree(Stream stream, Buffer* buffer);
  // Without a fault, nothing but the cache refuses a copy.
  void ExpectNotRefused(const Transfer& copies);
  // Whether what is enqueued on the stream from now on comes after the copies.
  bool Order(Stream stream, const Transfer& copies);

  void End();
  void ExpectBlocksAreRight();
  // One more block is saved from a device, and loaded.
  void ExpectGoesOn(int device);

  const Where where_;
  const Faults faults_;
  Counts& counts_;
  Random random_;
  const int devices_;
  const int device_;  // of blocks, if they are on one, and the one that is lost
  const bool run_when_waited_for_;
  const bool pageable_;
  const std::shared_ptr<FakeGpuRuntime> gpu_;
  std::string failing_call_;
  std::unique_ptr<Cache> cache_;
  std::vector<Stream> streams_;
  std::array<Buffer, kBuffers> buffers_;
  alignas(64) std::array<std::byte, kBuffers * kBlockBytes> host_;  // of those that are there
  std::list<Load> loads_;
  std::vector<ReadLease> stuck_;
  std::vector<WriteLease> stuck_writes_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_GPU_ENGINE_SCENARIO_H_
