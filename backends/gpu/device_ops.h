// From the ops of a StorageBackend to those of a DeviceLink. Internal to the backends.
#ifndef KVCACHE_BACKENDS_GPU_DEVICE_OPS_H_
#define KVCACHE_BACKENDS_GPU_DEVICE_OPS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/backends/gpu/device_kernels.h"
#include "kvcache/backends/gpu/device_link.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

inline const Extent& ExtentOf(const WriteOp& op) { return op.destination; }
inline const Extent& ExtentOf(const ReadOp& op) { return op.source; }
inline const Extent& ExtentOf(const PagedWriteOp& op) { return op.destination; }
inline const Extent& ExtentOf(const PagedReadOp& op) { return op.source; }
inline uint32_t SkipTokensOf(const PagedWriteOp&) { return 0; }
inline uint32_t SkipTokensOf(const PagedReadOp& op) { return op.skip_tokens; }
inline const MemorySpace& SpaceOf(const WriteOp& op) { return op.source_space; }
inline const MemorySpace& SpaceOf(const ReadOp& op) { return op.destination_space; }

// The copies that an op asks for, where its bytes begin at `at`; none of 0 bytes.
void AppendPieces(const WriteOp& op, std::byte* at, std::vector<CopyPiece>* pieces);
void AppendPieces(const ReadOp& op, const std::byte* at, std::vector<CopyPiece>* pieces);

// What the checksums of an op ask for; null when they ask for nothing. Of the bytes in the backend,
// which begin at `at`, or of those on the other side.
std::function<absl::Status()> CheckInside(const WriteOp& op, const std::byte* at);
std::function<absl::Status()> CheckInside(const ReadOp& op, const std::byte* at);
std::function<absl::Status()> CheckOutside(const WriteOp& op);
std::function<absl::Status()> CheckOutside(const ReadOp& op);
// What a DeviceLink is asked for, without checks; with the status of ops that are not valid.
template <typename Op>
std::vector<DeviceLink::PagedOp> LinkOpsOf(const StorageBackend& backend, const PagedKv& kv,
                                           absl::Span<const int32_t> page_table,
                                           absl::Span<const Op> ops) {
  std::vector<DeviceLink::PagedOp> link_ops;
  for (const Op& op : ops) {
    DeviceLink::PagedOp& link_op = link_ops.emplace_back();
    link_op.status = ValidateOp(kv, page_table, op);
    link_op.part = op.part;
    link_op.extent = ExtentOf(op);
    link_op.tokens = op.tokens;
    link_op.skip_tokens = SkipTokensOf(op);
    if (!link_op.status.ok()) continue;
    link_op.bytes = *kv.layout.PartBytes(op.tokens.count);
    link_op.memory = backend.Address(ExtentOf(op)) + op.offset;
  }
  return link_ops;
}
// Of a part of `bytes` bytes at `at`.
std::function<absl::Status()> CheckPart(const PagedWriteOp& op, const std::byte* at, size_t bytes);
std::function<absl::Status()> CheckPart(const PagedReadOp& op, const std::byte* at, size_t bytes);

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_DEVICE_OPS_H_
