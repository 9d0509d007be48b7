// For tests: a backend whose copies end when the test says so.
#ifndef KVCACHE_TESTS_FAKE_BACKEND_FAKE_BACKEND_H_
#define KVCACHE_TESTS_FAKE_BACKEND_FAKE_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

// A backend named "fake": not addressable, stores bytes, reaches host memory. An op that is valid
// stays pending until a test ends it; only then are its bytes copied, so that a buffer that is gone
// too early, or an extent that is used again too early, shows. New extents are full of kFreshByte.
//
// Aborts where a cache breaks the contract of StorageBackend: it frees an extent or destroys the
// backend while an op is pending there, names an extent that is not allocated, or starts an op on
// bytes of an extent that a pending op writes, or writes bytes that a pending op reads.
//
// Thread-safe. Ops end, and callbacks run, outside of its lock, on the thread that ends them.
class FakeBackend final : public StorageBackend, private PageCopier {
 public:
  static constexpr std::byte kFreshByte{0xDB};

  // REQUIRES: `alignment` is a power of two, the capacity at least that. A test that gives the
  // backend to a cache keeps a plain pointer.
  static std::unique_ptr<FakeBackend> Create(size_t capacity_bytes, size_t alignment = 64);
  ~FakeBackend() override;

  // Ops that have not ended, in the order in which they came.
  size_t pending() const;
  // Blocks until at least `ops` are pending: for ops that another thread starts.
  void WaitForPending(size_t ops) const;

  // Ends the op at `index` among those pending, or all that are pending when it is called. A failed
  // op copies nothing. REQUIRES: index < pending(); `status` is not OK.
  void Complete(size_t index);
  void CompleteAll();
  void Fail(size_t index, const absl::Status& status);

  // Whether ops end in the call that starts them. Default: no. What is pending stays so.
  void set_auto_complete(bool auto_complete);

  // A fault of the medium. REQUIRES: offset < capacity; 0 <= bit < 8.
  void FlipBit(size_t offset, int bit);

  // The medium fails for good: what is pending ends with `status`, as does everything that is asked
  // for from now on. REQUIRES: it is not OK.
  void FailForGood(const absl::Status& status);

  // The next Allocate returns `status`. REQUIRES: it is not OK.
  void FailNextAllocate(absl::Status status);

  const BackendTraits& traits() const override;
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner = 0) override;
  void Free(Extent extent) override;
  size_t ListExtents(const Extent& from, bool around, size_t bytes,
                     absl::Span<Neighbour> out) override;
  void SetOwner(const Extent& extent, uint32_t owner) override;
  std::byte* Address(Extent extent) const override { return nullptr; }
  // Transfers can be cancelled: what is pending then ends with kCancelled.
  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override;
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override;
  void OnFailure(std::function<void(const absl::Status&)> callback) override;
  // Copies pages, too, when the op ends.
  PageCopier* page_copier() override { return this; }

 private:
  class Medium;
  explicit FakeBackend(std::shared_ptr<Medium> medium);

  Transfer WritePages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                      absl::Span<const PagedWriteOp> ops, Stream stream) override;
  Transfer ReadPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                     absl::Span<const PagedReadOp> ops, Stream stream) override;

  // Shared with the transfers, which may be cancelled when the backend is gone.
  const std::shared_ptr<Medium> medium_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_FAKE_BACKEND_FAKE_BACKEND_H_
