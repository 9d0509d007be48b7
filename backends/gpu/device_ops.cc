#include "kvcache/backends/gpu/device_ops.h"

#include <utility>

#include "kvcache/core/storage/host_copy.h"

namespace kvcache {
namespace {

template <typename Pieces>
size_t BytesOf(const Pieces& pieces) {
  size_t bytes = 0;
  for (const auto& piece : pieces) bytes += piece.size();
  return bytes;
}

// The lists of an op go when the call returns, so they are copied; what they name stays.
std::function<absl::Status()> Check(std::vector<ConstBytes> pieces,
                                    absl::Span<uint64_t> checksums) {
  if (checksums.empty()) return nullptr;
  return [pieces = std::move(pieces), checksums] {
    SumPieces(pieces, checksums);
    return absl::OkStatus();
  };
}

std::function<absl::Status()> Check(std::vector<ConstBytes> pieces,
                                    absl::Span<const uint64_t> checksums) {
  if (checksums.empty()) return nullptr;
  return [pieces = std::move(pieces), checksums] { return ComparePieces(pieces, checksums); };
}

}  // namespace

void AppendPieces(const WriteOp& op, std::byte* at, std::vector<CopyPiece>* pieces) {
  for (const ConstBytes& piece : op.source) {
    if (!piece.empty()) pieces->push_back({at, piece.data(), piece.size()});
    at += piece.size();
  }
}

void AppendPieces(const ReadOp& op, const std::byte* at, std::vector<CopyPiece>* pieces) {
  for (const MutableBytes& piece : op.destination) {
    if (!piece.empty()) pieces->push_back({piece.data(), at, piece.size()});
    at += piece.size();
  }
}

std::function<absl::Status()> CheckInside(const WriteOp& op, const std::byte* at) {
  return Check({ConstBytes(at, BytesOf(op.source))}, op.checksums);
}

std::function<absl::Status()> CheckInside(const ReadOp& op, const std::byte* at) {
  return Check({ConstBytes(at, BytesOf(op.destination))}, op.checksums);
}

std::function<absl::Status()> CheckOutside(const WriteOp& op) {
  return Check({op.source.begin(), op.source.end()}, op.checksums);
}

std::function<absl::Status()> CheckOutside(const ReadOp& op) {
  return Check({op.destination.begin(), op.destination.end()}, op.checksums);
}

std::function<absl::Status()> CheckPart(const PagedWriteOp& op, const std::byte* at, size_t bytes) {
  return Check({ConstBytes(at, bytes)},
               absl::Span<uint64_t>(op.checksum, op.checksum == nullptr ? 0 : 1));
}

std::function<absl::Status()> CheckPart(const PagedReadOp& op, const std::byte* at, size_t bytes) {
  if (op.checksum == 0) return nullptr;
  return [part = ConstBytes(at, bytes), checksum = op.checksum] {
    return ComparePieces({part}, {checksum});
  };
}

}  // namespace kvcache
