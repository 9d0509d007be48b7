#include "kvcache/core/storage/storage_backend.h"

#include <utility>
#include <vector>

#include "kvcache/core/base/no_memory.h"

namespace kvcache {
namespace {

template <typename Op, typename Pieces>
absl::Status Validate(const char* side, const Extent& extent, const Op& op, const Pieces& pieces) {
  if (op.offset > extent.size) {
    return internal::Error(absl::StatusCode::kInvalidArgument, side, ": offset ", op.offset,
                           " is behind an extent of ", extent.size, " bytes");
  }
  size_t room = extent.size - op.offset;
  for (const auto& piece : pieces) {
    if (piece.data() == nullptr && !piece.empty()) {
      return internal::Error(absl::StatusCode::kInvalidArgument, side,
                             ": null data with a size of ", piece.size(), " bytes");
    }
    if (piece.size() > room) {
      return internal::Error(absl::StatusCode::kInvalidArgument, side, ": a piece of ",
                             piece.size(), " bytes, but ", room, " left of an extent of ",
                             extent.size, " bytes");
    }
    room -= piece.size();
  }
  const size_t bytes = extent.size - op.offset - room;
  if (!op.checksums.empty() && (bytes == 0 || bytes % op.checksums.size() != 0)) {
    return internal::Error(absl::StatusCode::kInvalidArgument, side, ": ", op.checksums.size(),
                           " checksums of ", bytes, " bytes");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateOp(const WriteOp& op) {
  return Validate("write", op.destination, op, op.source);
}

absl::Status ValidateOp(const ReadOp& op) {
  return Validate("read", op.source, op, op.destination);
}

bool IsMediumFault(const absl::Status& status) {
  return !status.ok() && !absl::IsInvalidArgument(status) && !absl::IsFailedPrecondition(status) &&
         !absl::IsCancelled(status) && !absl::IsResourceExhausted(status);
}

Transfer StorageBackend::After(Stream stream) {
  if (stream.is_none()) return Transfer::Completed(1);
  return Transfer::Completed(1, internal::Error(absl::StatusCode::kInvalidArgument, traits().name,
                                                " knows nothing of work on a stream"));
}

}  // namespace kvcache
