// For tests: a backend that is another one, of which a test changes what it wants to.
#ifndef KVCACHE_TESTS_FAKE_BACKEND_FORWARDING_BACKEND_H_
#define KVCACHE_TESTS_FAKE_BACKEND_FORWARDING_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

// Has no page copier, whatever the other has.
class ForwardingBackend : public StorageBackend {
 public:
  explicit ForwardingBackend(std::unique_ptr<StorageBackend> other) : other_(std::move(other)) {}

  const BackendTraits& traits() const override { return other_->traits(); }
  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner) override {
    return other_->Allocate(bytes, owner);
  }
  size_t ListExtents(const Extent& from, bool around, size_t bytes,
                     absl::Span<Neighbour> out) override {
    return other_->ListExtents(from, around, bytes, out);
  }
  void SetOwner(const Extent& extent, uint32_t owner) override { other_->SetOwner(extent, owner); }
  void Free(Extent extent) override { other_->Free(extent); }
  std::byte* Address(Extent extent) const override { return other_->Address(extent); }
  Transfer Write(absl::Span<const WriteOp> ops, Stream stream) override {
    return other_->Write(ops, stream);
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream stream) override {
    return other_->Read(ops, stream);
  }
  Transfer After(Stream stream) override { return other_->After(stream); }
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    other_->OnFailure(std::move(callback));
  }

 private:
  const std::unique_ptr<StorageBackend> other_;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_FAKE_BACKEND_FORWARDING_BACKEND_H_
