#include "kvcache/backends/accounting/accounting.h"

#include <atomic>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"

namespace kvcache {
namespace {

absl::Status Outcome(const WriteOp& op) { return ValidateOp(op); }

absl::Status Outcome(const ReadOp& op) {
  if (absl::Status status = ValidateOp(op); !status.ok()) return status;
  return internal::Error(absl::StatusCode::kFailedPrecondition,
                         "the accounting backend stores no bytes");
}

template <typename Op>
Transfer Run(absl::Span<const Op> ops) {
  std::vector<absl::Status> results;  // filled from the first failure on
  for (size_t i = 0; i < ops.size(); ++i) {
    absl::Status status = Outcome(ops[i]);
    if (status.ok()) continue;
    results.resize(ops.size());
    results[i] = std::move(status);
  }
  if (results.empty()) return Transfer::Completed(ops.size());
  std::vector<uint32_t> parts;
  for (const Op& op : ops) parts.push_back(op.part);
  const TransferSource source(parts);
  for (size_t i = 0; i < ops.size(); ++i) source.Complete(i, std::move(results[i]));
  return source.transfer();
}

class AccountingBackend final : public StorageBackend {
 public:
  explicit AccountingBackend(const AccountingOptions& options)
      : traits_{.name = "accounting",
                .memory_space = {},
                .addressable = false,
                .stores_bytes = false,
                .capacity_bytes = options.capacity_bytes & ~(options.alignment - 1),
                .alignment = options.alignment,
                .copies_in_call = true} {}

  const BackendTraits& traits() const override { return traits_; }

  absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t /*owner*/) override {
    if (bytes == 0 || bytes > traits_.capacity_bytes) {
      return internal::Error(absl::StatusCode::kInvalidArgument, "cannot allocate bytes = ", bytes,
                             " of capacity = ", traits_.capacity_bytes);
    }
    const size_t size = (bytes + traits_.alignment - 1) & ~(traits_.alignment - 1);
    size_t used = used_.load(std::memory_order_relaxed);
    do {
      if (size > traits_.capacity_bytes - used) {
        return internal::Error(absl::StatusCode::kResourceExhausted, "no room for ", size,
                               " bytes: ", used, " of ", traits_.capacity_bytes, " used");
      }
    } while (!used_.compare_exchange_weak(used, used + size, std::memory_order_relaxed));
    return Extent{.offset = 0, .size = size};
  }

  void Free(Extent extent) override {
    const size_t used = used_.fetch_sub(extent.size, std::memory_order_relaxed);
    KVCACHE_CHECK(used >= extent.size, "freed ", extent.size, " bytes, but only ", used,
                  " are in use");
  }

  std::byte* Address(Extent) const override { return nullptr; }

  Transfer Write(absl::Span<const WriteOp> ops, Stream) override {
    return internal::WithoutThrowing(ops.size(), [&] { return Run(ops); });
  }
  Transfer Read(absl::Span<const ReadOp> ops, Stream) override {
    return internal::WithoutThrowing(ops.size(), [&] { return Run(ops); });
  }

 private:
  const BackendTraits traits_;
  std::atomic<size_t> used_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StorageBackend>> CreateAccountingBackend(
    const AccountingOptions& options) {
  if (!std::has_single_bit(options.alignment) || options.capacity_bytes < options.alignment) {
    return internal::Error(
        absl::StatusCode::kInvalidArgument,
        "accounting needs an alignment that is a power of two and a capacity of at least that; "
        "alignment = ",
        options.alignment, ", capacity_bytes = ", options.capacity_bytes);
  }
  return internal::WithoutThrowing([&]() -> absl::StatusOr<std::unique_ptr<StorageBackend>> {
    return std::make_unique<AccountingBackend>(options);
  });
}

}  // namespace kvcache
