// For tests: a GPU made of host memory, whose work runs when the test says so.
#ifndef KVCACHE_TESTS_FAKE_GPU_FAKE_GPU_RUNTIME_H_
#define KVCACHE_TESTS_FAKE_GPU_FAKE_GPU_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "kvcache/backends/gpu/gpu_runtime.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/tests/fake_gpu/fake_gpu_memory.h"

namespace kvcache {

// Work on streams runs in steps: a piece of a copy, a kernel, a record, a wait. Each step takes a
// stream at random (seeded) among those that can go on, and of a batch a piece at random, so that
// over many seeds every order is seen that a GPU might choose. Bytes are read when their step runs.
//
// Stricter than a GPU. What a GPU may or may not forgive is refused or noticed, and violations()
// tells of it: null streams, handles that are gone, overlapping pieces, host memory that is not
// registered or is registered in two calls, device memory that was freed, a direction that the
// memory does not have, memory that is freed or unregistered while work names it, lists that change
// while it does, peers that were not enabled, what was never given back.
//
// Device memory is full of kFreshByte, and allocations are often side by side. Thread-safe.
class FakeGpuRuntime final : public GpuRuntime {
 public:
  static constexpr std::byte kFreshByte{0xDB};

  struct Options {
    int devices = 1;
    size_t device_bytes = size_t{64} << 20;
    uint32_t seed = 1;
    // Whether waiting for an event runs steps until it has fired. Otherwise it blocks until a test
    // has run them.
    bool run_when_waited_for = true;
  };
  explicit FakeGpuRuntime(const Options& options);
  ~FakeGpuRuntime() override;

  // Runs a step; false when no stream can go on.
  bool Step();
  // Also waits for what other threads run.
  void RunAll();
  // While held, nothing on the stream runs: somebody's kernel that takes its time.
  void Hold(Stream stream, bool held);
  // Steps and pieces that have not run.
  size_t pending() const;

  // The call after `skip` calls of this name, "AllocateDevice" say, does nothing and returns
  // `status`. One of neither kInvalidArgument nor kResourceExhausted says that the device has
  // failed for good: it is lost from then on.
  void FailCall(absl::string_view name, absl::Status status, int skip = 0);
  // Forgets failures and losses that are yet to come; returns whether no failure was.
  bool StopFailing();
  // From now on, or once `steps` more steps have run, nothing runs on the device and every call
  // that concerns it or its events fails with kInternal. Other devices wait for its events no more.
  void LoseDevice(int device, int steps = 0);
  bool lost(int device) const;

  std::vector<std::string> violations() const;
  size_t registered_bytes() const;
  // Copies that were refused since they go over the end of an allocation, or of what one call
  // registered, into the next. No violation: a driver refuses them too.
  int refused_over_an_end() const;
  // Calls of this name that were made.
  int calls(absl::string_view name) const;

  // A stream of an engine, and work on it: runs `work` in order, without the lock.
  Stream EngineStream(int device = 0);
  void Enqueue(Stream stream, std::function<void()> work);

  void UseThreadFor(int device) override {}
  absl::StatusOr<int> DeviceCount() override;
  absl::StatusOr<GpuDevice> Describe(int device) override;
  absl::Status LoadKernels(int device) override;
  absl::Status EnablePeer(int device, int peer) override;
  absl::StatusOr<std::byte*> AllocateDevice(int device, size_t bytes) override;
  absl::Status FreeDevice(int device, std::byte* memory) override;
  absl::Status RegisterHost(int device, MutableBytes memory) override;
  absl::Status UnregisterHost(int device, std::byte* memory) override;
  absl::StatusOr<GpuStream> CreateStream(int device) override;
  absl::Status DestroyStream(int device, GpuStream stream) override;
  absl::StatusOr<GpuEvent> CreateEvent(int device) override;
  absl::Status DestroyEvent(int device, GpuEvent event) override;
  absl::Status Record(int device, GpuEvent event, GpuStream stream) override;
  absl::Status MakeWait(int device, GpuStream stream, GpuEvent event) override;
  absl::Status Synchronize(int device, GpuEvent event) override;
  absl::Status CopyBatch(int device, absl::Span<const CopyPiece> pieces, CopyDirection direction,
                         GpuStream stream) override;
  absl::Status CopyByKernel(int device, absl::Span<const CopyPiece> pieces,
                            GpuStream stream) override;
  absl::Status CopyPages(int device, const PagedCopy& copy, GpuStream stream) override;

 private:
  struct Event {
    int device;
    uint64_t recorded = 0;  // how many times
    // Of these, those that have not fired: an event may be recorded again before it has.
    std::set<uint64_t> pending = {};
  };
  struct CopyWork {
    std::vector<CopyPiece> pieces;
    CopyDirection direction;
  };
  struct KernelWork {
    const CopyPiece* list;          // read when it runs
    std::vector<CopyPiece> pieces;  // what it said at the call
  };
  struct PagedWork {
    PagedCopy copy;
    // What was there at the call. Of the page table, what the parts use; known only when the call
    // had it in host memory too.
    std::vector<PartOfTokens> parts;
    uint32_t first_page;
    std::vector<int32_t> pages;
    uint32_t num_pages = 0;
  };
  struct RecordWork {
    GpuEvent event;
    uint64_t number;
  };
  struct WaitWork {
    GpuEvent event;
    uint64_t number;
  };
  struct HostWork {
    std::function<void()> work;
  };
  using Work = std::variant<CopyWork, KernelWork, PagedWork, RecordWork, WaitWork, HostWork>;
  struct FakeStream {
    int device;
    std::deque<Work> work;
    bool busy = false;  // runs a HostWork
    bool held = false;
  };
  struct Failure {
    std::string call;
    int skip;
    absl::Status status;
  };

  // What a call returns before it does anything: injected, or of a lost device.
  absl::Status Enter(const char* call, int device) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Refuse(std::string what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Null, with a violation, when there is none.
  FakeStream* FindStream(const char* call, int device, GpuStream stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Event* FindEvent(const char* call, GpuEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  enum class By { kCopyEngine, kKernel };
  // A violation unless `device` can reach all of these bytes.
  bool CheckReach(const char* call, int device, const std::byte* at, size_t bytes, By by)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool CheckPieces(const char* call, int device, absl::Span<const CopyPiece> pieces,
                   const CopyDirection* direction) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool CanRun(const FakeStream& stream) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AnyCanRun() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AnyBusy() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsNamed(const std::byte* memory, size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RunKernel(int device, const KernelWork& kernel) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static PagedWork PagedWorkOf(const PagedCopy& copy);
  // What the copy reads and writes, of parts and of `pages`, which may be none.
  static std::vector<ConstBytes> StretchesOf(const PagedWork& work,
                                             absl::Span<const int32_t> pages);
  bool CheckStretches(int device, const PagedWork& work, absl::Span<const int32_t> pages)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool CheckPages(int device, const PagedWork& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RunPages(int device, const PagedWork& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsLost(int device) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Options options_;
  mutable Mutex mu_;
  CondVar changed_;
  std::mt19937 random_ ABSL_GUARDED_BY(mu_);
  FakeGpuMemory memory_ ABSL_GUARDED_BY(mu_);
  std::map<GpuStream, std::unique_ptr<FakeStream>> streams_ ABSL_GUARDED_BY(mu_);
  std::vector<GpuStream> engine_streams_ ABSL_GUARDED_BY(mu_);
  std::map<GpuEvent, std::unique_ptr<Event>> events_ ABSL_GUARDED_BY(mu_);
  std::vector<std::pair<int, int>> peers_ ABSL_GUARDED_BY(mu_);
  std::vector<Failure> failures_ ABSL_GUARDED_BY(mu_);
  std::vector<int64_t> lost_after_ ABSL_GUARDED_BY(mu_);  // steps; of devices
  std::map<std::string, int> calls_ ABSL_GUARDED_BY(mu_);
  int refused_over_an_end_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::string> violations_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_FAKE_GPU_FAKE_GPU_RUNTIME_H_
