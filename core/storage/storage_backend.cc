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

template <typename Op>
absl::Status ValidatePaged(const char* side, const PagedKv& kv,
                           absl::Span<const int32_t> page_table, const Op& op, uint32_t skip_tokens,
                           const Extent& extent) {
  if (op.part >= kv.layout.layers) {
    return absl::InvalidArgumentError(
        absl::StrCat(side, ": part ", op.part, " of ", kv.layout.layers, " layers"));
  }
  TokenRange copied = op.tokens;
  if (skip_tokens > 0) {
    if (skip_tokens >= copied.count ||
        __builtin_add_overflow(copied.first, skip_tokens, &copied.first)) {
      return absl::InvalidArgumentError(absl::StrCat(side, ": skip_tokens ", skip_tokens, " of ",
                                                     op.tokens.count, " tokens from ",
                                                     op.tokens.first, " on"));
    }
    copied.count -= skip_tokens;
  }
  if (absl::Status status = ValidateTokens(kv, page_table, copied); !status.ok()) return status;
  const absl::StatusOr<size_t> bytes = kv.layout.PartBytes(op.tokens.count);
  if (!bytes.ok()) return bytes.status();
  if (op.offset <= extent.size && *bytes <= extent.size - op.offset) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(side, ": a part of ", *bytes, " bytes at offset ",
                                                 op.offset, " of an extent of ", extent.size,
                                                 " bytes"));
}

// Whether the processor can copy in place.
bool InHostMemory(const BackendTraits& traits) {
  return traits.addressable && traits.memory_space.kind != MemoryKind::kDevice;
}

template <typename Op, typename CopyOne>
Transfer CopyPages(const BackendTraits& traits, const PagedKv& kv,
                   absl::Span<const int32_t> page_table, absl::Span<const Op> ops, Stream stream,
                   const CopyOne& copy_one) {
  absl::Status valid = kv.Validate();
  if (valid.ok() && kv.space.kind == MemoryKind::kDevice) {
    valid = absl::InvalidArgumentError(
        absl::StrCat(traits.name, " does not reach pages on device ", kv.space.device));
  }
  if (valid.ok() && !stream.is_none() && InHostMemory(traits)) {
    valid = absl::InvalidArgumentError(
        absl::StrCat(traits.name, " cannot order a copy between host memory behind a stream"));
  }
  std::vector<absl::Status> results(ops.size(), valid);
  for (size_t i = 0; i < ops.size() && valid.ok(); ++i) {
    results[i] = ValidateOp(kv, page_table, ops[i]);
    if (results[i].ok()) results[i] = copy_one(ops[i], *kv.layout.PartBytes(ops[i].tokens.count));
  }
  return Transfer::Completed(std::move(results));
}

}  // namespace

absl::Status ValidateOp(const WriteOp& op) {
  return Validate("write", op.destination, op, op.source);
}

absl::Status ValidateOp(const ReadOp& op) {
  return Validate("read", op.source, op, op.destination);
}

absl::Status ValidateOp(const PagedKv& kv, absl::Span<const int32_t> page_table,
                        const PagedWriteOp& op) {
  return ValidatePaged("write", kv, page_table, op, 0, op.destination);
}

absl::Status ValidateOp(const PagedKv& kv, absl::Span<const int32_t> page_table,
                        const PagedReadOp& op) {
  return ValidatePaged("read", kv, page_table, op, op.skip_tokens, op.source);
}

bool IsMediumFault(const absl::Status& status) {
  return !status.ok() && !absl::IsInvalidArgument(status) && !absl::IsFailedPrecondition(status) &&
         !absl::IsCancelled(status);
}

// --- Pages in host memory

Transfer StorageBackend::WritePages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                                    absl::Span<const PagedWriteOp> ops, Stream stream) {
  std::vector<std::byte> buffer;
  return CopyPages(traits(), kv, page_table, ops, stream,
                   [&](const PagedWriteOp& op, size_t bytes) {
                     if (!traits().stores_bytes) return absl::OkStatus();
                     if (InHostMemory(traits())) {
                       GatherPart(kv, page_table, op.part, op.tokens,
                                  Address(op.destination) + op.offset, op.checksum);
                       return absl::OkStatus();
                     }
                     buffer.resize(bytes);
                     GatherPart(kv, page_table, op.part, op.tokens, buffer.data());
                     const ConstBytes source = buffer;
                     const WriteOp write = {
                         op.destination, op.offset,
                         {&source, 1},   {},
                         op.part,        {op.checksum, size_t{op.checksum == nullptr ? 0u : 1u}}};
                     return Write({&write, 1}, stream).Wait();
                   });
}

Transfer StorageBackend::ReadPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                                   absl::Span<const PagedReadOp> ops, Stream stream) {
  std::vector<std::byte> buffer;
  return CopyPages(traits(), kv, page_table, ops, stream, [&](const PagedReadOp& op, size_t bytes) {
    if (!traits().stores_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat(traits().name, " stores no bytes that could be read"));
    }
    if (InHostMemory(traits())) {
      uint64_t sum = 0;
      ScatterPart(kv, page_table, op.part, op.tokens, Address(op.source) + op.offset,
                  op.checksum == 0 ? nullptr : &sum, op.skip_tokens);
      if (sum == op.checksum) return absl::OkStatus();
      return absl::DataLossError("the bytes are not those that were written");
    }
    buffer.resize(bytes);
    const MutableBytes destination = absl::MakeSpan(buffer);
    const ReadOp read = {op.source, op.offset, {&destination, 1},
                         {},        op.part,   {&op.checksum, size_t{op.checksum == 0 ? 0u : 1u}}};
    absl::Status status = Read({&read, 1}, stream).Wait();
    if (status.ok()) {
      ScatterPart(kv, page_table, op.part, op.tokens, buffer.data(), nullptr, op.skip_tokens);
    }
    return status;
  });
}

Transfer StorageBackend::After(Stream stream) {
  if (stream.is_none()) return Transfer::Completed(1);
  return Transfer::Completed({absl::InvalidArgumentError(
      absl::StrCat(traits().name, " knows nothing of work on a stream"))});
}

}  // namespace kvcache
