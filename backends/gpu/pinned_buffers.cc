#include "kvcache/backends/gpu/pinned_buffers.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/numeric/bits.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/mutex.h"

namespace kvcache {
namespace {

// What is registered together: pages of the usual size, in powers of two.
constexpr size_t kPage = 4096;
constexpr size_t kSmallest = 16 * kPage;

}  // namespace

// Lives as long as the pool or any of its buffers.
class PinnedBuffers::Spares {
 public:
  explicit Spares(std::shared_ptr<GpuRuntime> runtime) : runtime_(std::move(runtime)) {}
  ~Spares() {
    for (MutableBytes buffer : spares_) {
      runtime_->UnregisterHost(buffer.data()).IgnoreError();
      std::free(buffer.data());
    }
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
    const size_t size = absl::bit_ceil(std::max(bytes, kSmallest));
    void* const memory = std::aligned_alloc(kPage, size);
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("no memory for a buffer of bytes = ", size));
    }
    const MutableBytes buffer(static_cast<std::byte*>(memory), size);
    if (absl::Status status = runtime_->RegisterHost(buffer); !status.ok()) {
      std::free(memory);
      return status;
    }
    return buffer;
  }

  void Return(MutableBytes buffer) {
    MutexLock lock(mu_);
    spares_.push_back(buffer);
  }

 private:
  const std::shared_ptr<GpuRuntime> runtime_;
  Mutex mu_;
  std::vector<MutableBytes> spares_ ABSL_GUARDED_BY(mu_);
};

PinnedBuffers::PinnedBuffers(std::shared_ptr<GpuRuntime> runtime)
    : spares_(std::make_shared<Spares>(std::move(runtime))) {}

absl::StatusOr<std::shared_ptr<const MutableBytes>> PinnedBuffers::Take(size_t bytes) {
  const absl::StatusOr<MutableBytes> buffer = spares_->Take(bytes);
  if (!buffer.ok()) return buffer.status();
  return std::shared_ptr<const MutableBytes>(new MutableBytes(*buffer),
                                             [spares = spares_](const MutableBytes* buffer) {
                                               spares->Return(*buffer);
                                               delete buffer;
                                             });
}

}  // namespace kvcache
