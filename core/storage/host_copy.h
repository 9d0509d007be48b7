// The copies of backends whose bytes this processor can reach.
#ifndef KVCACHE_CORE_STORAGE_HOST_COPY_H_
#define KVCACHE_CORE_STORAGE_HOST_COPY_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

// Performs an op that ValidateOp() accepts on the bytes of its extent that begin at `at`
// (op.offset counted already), computing or comparing its checksums in the same pass. All memory
// must be the host's.
void CopyIn(const WriteOp& op, std::byte* at);
// Errors: kDataLoss when a checksum is not what it should be.
absl::Status CopyOut(const ReadOp& op, const std::byte* at);

// The same without the copy, for bytes that a device moves: sets, or compares, the checksums of
// equal stretches of the pieces. REQUIRES: their number divides the bytes of the pieces.
void SumPieces(absl::Span<const ConstBytes> pieces, absl::Span<uint64_t> checksums);
absl::Status ComparePieces(absl::Span<const ConstBytes> pieces,
                           absl::Span<const uint64_t> checksums);

// What CopyOut() says of bytes that have another checksum than when they were written.
absl::Status CorruptBytes();

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_HOST_COPY_H_
