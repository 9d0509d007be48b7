#include "kvcache/backends/gpu/buffer_pool.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/numeric/bits.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {
namespace {

// What is registered together: pages of the usual size, in powers of two.
constexpr size_t kPage = 4096;
constexpr size_t kSmallest = 16 * kPage;

}  // namespace

// Lives as long as the pool or any of its buffers.
class BufferPool::Spares {
 public:
  Spares(std::shared_ptr<GpuRuntime> runtime, int device, bool pinned)
      : runtime_(std::move(runtime)), device_(device), pinned_(pinned) {}
  ~Spares() {
    for (MutableBytes buffer : spares_) Drop(buffer);
  }

  absl::StatusOr<MutableBytes> Take(size_t bytes) {
    {
      MutexLock lock(mu_);
      // The smallest that is large enough; there are a handful.
      auto best = spares_.end();
      for (auto it = spares_.begin(); it != spares_.end(); ++it) {
        if (it->size() >= bytes && (best == spares_.end() || it->size() < best->size())) best = it;
      }
      if (best != spares_.end()) {
        const MutableBytes buffer = *best;
        spares_.erase(best);
        return buffer;
      }
    }
    return Make(absl::bit_ceil(std::max(bytes, kSmallest)));
  }

  void Return(MutableBytes buffer) {
    MutexLock lock(mu_);
    spares_.push_back(buffer);
  }

 private:
  absl::StatusOr<MutableBytes> Make(size_t bytes) {
    if (!pinned_) {
      const absl::StatusOr<std::byte*> memory = runtime_->AllocateDevice(device_, bytes);
      if (!memory.ok()) return memory.status();
      return MutableBytes(*memory, bytes);
    }
    void* const memory = std::aligned_alloc(kPage, bytes);
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a buffer of bytes = ", bytes));
    }
    const MutableBytes buffer(static_cast<std::byte*>(memory), bytes);
    if (absl::Status status = runtime_->RegisterHost(device_, buffer); !status.ok()) {
      std::free(memory);
      return status;
    }
    return buffer;
  }

  void Drop(MutableBytes buffer) {
    if (!pinned_) {
      runtime_->FreeDevice(device_, buffer.data()).IgnoreError();
      return;
    }
    runtime_->UnregisterHost(device_, buffer.data()).IgnoreError();
    std::free(buffer.data());
  }

  const std::shared_ptr<GpuRuntime> runtime_;
  const int device_;
  const bool pinned_;
  Mutex mu_;
  std::vector<MutableBytes> spares_ ABSL_GUARDED_BY(mu_);
};

BufferPool BufferPool::Pinned(std::shared_ptr<GpuRuntime> runtime, int device) {
  return BufferPool(std::make_shared<Spares>(std::move(runtime), device, /*pinned=*/true));
}

BufferPool BufferPool::OnDevice(std::shared_ptr<GpuRuntime> runtime, int device) {
  return BufferPool(std::make_shared<Spares>(std::move(runtime), device, /*pinned=*/false));
}

absl::StatusOr<BufferRef> BufferPool::Take(size_t bytes) {
  const absl::StatusOr<MutableBytes> buffer = spares_->Take(bytes);
  if (!buffer.ok()) return buffer.status();
  return BufferRef(new MutableBytes(*buffer), [spares = spares_](const MutableBytes* buffer) {
    spares->Return(*buffer);
    delete buffer;
  });
}

}  // namespace kvcache
