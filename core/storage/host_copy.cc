#include "kvcache/core/storage/host_copy.h"

#include <algorithm>
#include <cstdint>

#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/copy/checksum.h"
#include "kvcache/core/copy/copy_bytes.h"

namespace kvcache {
namespace {

template <typename Piece>
size_t TotalSize(absl::Span<const Piece> pieces) {
  size_t size = 0;
  for (const Piece& piece : pieces) size += piece.size();
  return size;
}

// Cuts `pieces` where one of `stretches` equal stretches ends. Calls copy(piece) for each that is
// left, and end(i) behind the last one of stretch i.
template <typename Piece, typename Copy, typename End>
void ForStretches(absl::Span<const Piece> pieces, size_t stretches, const Copy& copy,
                  const End& end) {
  const size_t stretch_bytes = TotalSize(pieces) / stretches;
  size_t left = stretch_bytes;
  size_t stretch = 0;
  for (Piece piece : pieces) {
    while (!piece.empty()) {
      const size_t bytes = std::min(left, piece.size());
      copy(piece.subspan(0, bytes));
      piece.remove_prefix(bytes);
      left -= bytes;
      if (left > 0) continue;
      end(stretch++);
      left = stretch_bytes;
    }
  }
}

}  // namespace

void CopyIn(const WriteOp& op, std::byte* at) {
  if (op.checksums.empty()) {
    for (const ConstBytes& piece : op.source) {
      CopyBytes(at, piece, NextRead::kLater);
      at += piece.size();
    }
    return;
  }
  Checksum sum;
  ForStretches(
      op.source, op.checksums.size(),
      [&](ConstBytes piece) {
        sum.Copy(at, piece, NextRead::kLater);
        at += piece.size();
      },
      [&](size_t stretch) {
        op.checksums[stretch] = sum.Value();
        sum.Reset();
      });
}

absl::Status CopyOut(const ReadOp& op, const std::byte* at) {
  if (op.checksums.empty()) {
    for (const MutableBytes& piece : op.destination) {
      CopyBytes(piece.data(), {at, piece.size()}, NextRead::kSoon);
      at += piece.size();
    }
    return absl::OkStatus();
  }
  absl::Status status;
  Checksum sum;
  ForStretches(
      op.destination, op.checksums.size(),
      [&](MutableBytes piece) {
        sum.Copy(piece.data(), {at, piece.size()}, NextRead::kSoon);
        at += piece.size();
      },
      [&](size_t stretch) {
        if (op.checksums[stretch] != 0 && op.checksums[stretch] != sum.Value()) {
          status.Update(CorruptBytes());
        }
        sum.Reset();
      });
  return status;
}

void SumPieces(absl::Span<const ConstBytes> pieces, absl::Span<uint64_t> checksums) {
  Checksum sum;
  ForStretches(
      pieces, checksums.size(), [&](ConstBytes piece) { sum.Update(piece); },
      [&](size_t stretch) {
        checksums[stretch] = sum.Value();
        sum.Reset();
      });
}

absl::Status ComparePieces(absl::Span<const ConstBytes> pieces,
                           absl::Span<const uint64_t> checksums) {
  absl::Status status;
  Checksum sum;
  ForStretches(
      pieces, checksums.size(), [&](ConstBytes piece) { sum.Update(piece); },
      [&](size_t stretch) {
        if (checksums[stretch] != 0 && checksums[stretch] != sum.Value()) {
          status.Update(CorruptBytes());
        }
        sum.Reset();
      });
  return status;
}

absl::Status CorruptBytes() {
  return internal::Error(absl::StatusCode::kDataLoss, "the bytes are not those that were written");
}

}  // namespace kvcache
