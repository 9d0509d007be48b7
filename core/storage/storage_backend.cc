#include "kvcache/core/storage/storage_backend.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvcache {
namespace {

template <typename Op, typename Pieces>
absl::Status Validate(const char* side, const Extent& extent, const Op& op, const Pieces& pieces) {
  if (op.offset > extent.size) {
    return absl::InvalidArgumentError(absl::StrCat(
        side, ": offset ", op.offset, " is behind an extent of ", extent.size, " bytes"));
  }
  size_t room = extent.size - op.offset;
  for (const auto& piece : pieces) {
    if (piece.data() == nullptr && !piece.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(side, ": null data with a size of ", piece.size(), " bytes"));
    }
    if (piece.size() > room) {
      return absl::InvalidArgumentError(absl::StrCat(side, ": a piece of ", piece.size(),
                                                     " bytes, but ", room, " left of an extent of ",
                                                     extent.size, " bytes"));
    }
    room -= piece.size();
  }
  const size_t bytes = extent.size - op.offset - room;
  if (!op.checksums.empty() && (bytes == 0 || bytes % op.checksums.size() != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(side, ": ", op.checksums.size(), " checksums of ", bytes, " bytes"));
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
         !absl::IsCancelled(status);
}

Transfer StorageBackend::After(Stream stream) {
  if (stream.is_none()) return Transfer::Completed(1);
  return Transfer::Completed({absl::InvalidArgumentError(
      absl::StrCat(traits().name, " knows nothing of work on a stream"))});
}

}  // namespace kvcache
