#include "kvcache/core/pages/page_copier.h"

#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvcache/core/base/no_memory.h"

namespace kvcache {
namespace {

// What goes through a buffer of its own, and how many of these are in use at once.
constexpr size_t kGroupBytes = size_t{16} << 20;
constexpr size_t kMostGroups = 4;

template <typename Op>
absl::Status ValidatePaged(const char* side, const PagedKv& kv,
                           absl::Span<const int32_t> page_table, const Op& op, uint32_t skip_tokens,
                           const Extent& extent) {
  if (op.part >= kv.layout.layers) {
    return internal::Error(absl::StatusCode::kInvalidArgument, side, ": part ", op.part, " of ",
                           kv.layout.layers, " layers");
  }
  TokenRange copied = op.tokens;
  if (skip_tokens > 0) {
    if (skip_tokens >= copied.count ||
        __builtin_add_overflow(copied.first, skip_tokens, &copied.first)) {
      return internal::Error(absl::StatusCode::kInvalidArgument, side, ": skip_tokens ",
                             skip_tokens, " of ", op.tokens.count, " tokens from ", op.tokens.first,
                             " on");
    }
    copied.count -= skip_tokens;
  }
  if (absl::Status status = ValidateTokens(kv, page_table, copied); !status.ok()) return status;
  const absl::StatusOr<size_t> bytes = kv.layout.PartBytes(op.tokens.count);
  if (!bytes.ok()) return bytes.status();
  if (op.offset <= extent.size && *bytes <= extent.size - op.offset) return absl::OkStatus();
  return internal::Error(absl::StatusCode::kInvalidArgument, side, ": a part of ", *bytes,
                         " bytes at offset ", op.offset, " of an extent of ", extent.size,
                         " bytes");
}

// What a call was asked for, for copies that end later.
template <typename Op>
struct Call {
  PagedKv kv;
  std::vector<int32_t> page_table;
  std::vector<Op> ops;
};

// Ops of a call whose parts go through one buffer.
struct Group {
  std::vector<size_t> ops;
  std::vector<MutableBytes> parts;  // of each of these
  std::unique_ptr<std::byte[]> buffer;
};

absl::Status CopyInPlace(const PagedKv& kv, absl::Span<const int32_t> page_table,
                         const PagedWriteOp& op, std::byte* part) {
  GatherPart(kv, page_table, op.part, op.tokens, part, op.checksum);
  return absl::OkStatus();
}

absl::Status CopyInPlace(const PagedKv& kv, absl::Span<const int32_t> page_table,
                         const PagedReadOp& op, const std::byte* part) {
  uint64_t sum = 0;
  ScatterPart(kv, page_table, op.part, op.tokens, part, op.checksum == 0 ? nullptr : &sum,
              op.skip_tokens);
  if (sum == op.checksum) return absl::OkStatus();
  return internal::Error(absl::StatusCode::kDataLoss, "the bytes are not those that were written");
}

const Extent& ExtentOf(const PagedWriteOp& op) { return op.destination; }
const Extent& ExtentOf(const PagedReadOp& op) { return op.source; }

Transfer Start(StorageBackend& backend, const Call<PagedWriteOp>& call, const Group& group,
               Stream stream) {
  const std::vector<ConstBytes> sources(group.parts.begin(), group.parts.end());
  std::vector<WriteOp> writes;
  for (size_t i = 0; i < sources.size(); ++i) {
    const PagedWriteOp& op = call.ops[group.ops[i]];
    GatherPart(call.kv, call.page_table, op.part, op.tokens, group.parts[i].data());
    writes.push_back({op.destination,
                      op.offset,
                      {&sources[i], 1},
                      {},
                      op.part,
                      {op.checksum, size_t{op.checksum == nullptr ? 0u : 1u}}});
  }
  return backend.Write(writes, stream);
}

Transfer Start(StorageBackend& backend, const Call<PagedReadOp>& call, const Group& group,
               Stream stream) {
  std::vector<ReadOp> reads;
  for (size_t i = 0; i < group.ops.size(); ++i) {
    const PagedReadOp& op = call.ops[group.ops[i]];
    reads.push_back({op.source,
                     op.offset,
                     {&group.parts[i], 1},
                     {},
                     op.part,
                     {&op.checksum, size_t{op.checksum == 0 ? 0u : 1u}}});
  }
  return backend.Read(reads, stream);
}

void Finish(const Call<PagedWriteOp>&, const PagedWriteOp&, MutableBytes) {}

void Finish(const Call<PagedReadOp>& call, const PagedReadOp& op, MutableBytes part) {
  ScatterPart(call.kv, call.page_table, op.part, op.tokens, part.data(), nullptr, op.skip_tokens);
}

// Finishes the ops of a group and ends them.
template <typename Op>
class GroupHook final : public internal::TransferHook {
 public:
  GroupHook(std::shared_ptr<const Call<Op>> call, const TransferSource& source)
      : call_(std::move(call)), source_(source) {}
  Group& group() { return group_; }

  void OpEnded(size_t i, const absl::Status& copied) override {
    const size_t op = group_.ops[i];
    if (copied.ok()) Finish(*call_, call_->ops[op], group_.parts[i]);
    source_->Complete(op, copied);
  }
  void AllEnded() override {
    group_.buffer = nullptr;
    source_.reset();
  }

 private:
  const std::shared_ptr<const Call<Op>> call_;
  std::optional<TransferSource> source_;
  Group group_;
};

// The ops whose result is OK so far.
template <typename Op>
Transfer CopyThroughBuffers(StorageBackend& backend, std::shared_ptr<const Call<Op>> call,
                            const std::vector<absl::Status>& results, Stream stream) {
  const absl::Span<const Op> ops = call->ops;
  const auto started = std::make_shared<std::vector<Transfer>>();
  std::vector<uint32_t> parts;
  for (const Op& op : ops) parts.push_back(op.part);
  const TransferSource source(parts, {.order = nullptr, .cancel = [started] {
                                        for (const Transfer& copies : *started) copies.Cancel();
                                      }});
  // Starts a group of ops from `first` on; returns the op behind it.
  const auto start_group = [&](size_t first) -> absl::StatusOr<size_t> {
    auto hook = std::make_unique<GroupHook<Op>>(call, source);
    Group& group = hook->group();
    size_t bytes = 0;
    size_t end = first;
    for (; end < ops.size() && results[end].ok(); ++end) {
      const size_t part_bytes = *call->kv.layout.PartBytes(ops[end].tokens.count);
      if (bytes > 0 && bytes + part_bytes > kGroupBytes) break;
      group.ops.push_back(end);
      group.parts.push_back({nullptr, part_bytes});
      bytes += part_bytes;
    }
    if (started->size() >= kMostGroups) {
      (*started)[started->size() - kMostGroups].Wait().IgnoreError();
    }
    group.buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
    std::byte* at = group.buffer.get();
    for (MutableBytes& part : group.parts) {
      part = {at, part.size()};
      at += part.size();
    }
    started->emplace_back();
    started->back() = Start(backend, *call, group, stream);
    internal::Attach(started->back(), std::move(hook));
    return end;
  };
  for (size_t i = 0; i < ops.size();) {
    const absl::StatusOr<size_t> end =
        results[i].ok() ? internal::WithoutThrowing([&] { return start_group(i); }) : results[i];
    if (!end.ok()) source.Complete(i, end.status());
    i = end.ok() ? *end : i + 1;
  }
  return source.transfer();
}

template <typename Op>
Transfer CopyHostPages(StorageBackend& backend, const PagedKv& kv,
                       absl::Span<const int32_t> page_table, absl::Span<const Op> ops,
                       Stream stream) {
  const BackendTraits& traits = backend.traits();
  const bool in_place = traits.addressable && traits.memory_space.kind != MemoryKind::kDevice;
  absl::Status valid = kv.Validate();
  if (valid.ok() && kv.space.kind == MemoryKind::kDevice) {
    valid = internal::Error(absl::StatusCode::kInvalidArgument, traits.name,
                            " does not reach pages on device ", kv.space.device);
  }
  if (valid.ok() && !stream.is_none() && in_place) {
    valid = internal::Error(absl::StatusCode::kInvalidArgument, traits.name,
                            " cannot order a copy between host memory behind a stream");
  }
  if (!valid.ok()) return Transfer::Completed(ops.size(), std::move(valid));
  std::vector<absl::Status> results(ops.size());
  for (size_t i = 0; i < ops.size(); ++i) results[i] = ValidateOp(kv, page_table, ops[i]);
  if (traits.stores_bytes && !in_place) {
    return CopyThroughBuffers(
        backend,
        std::make_shared<const Call<Op>>(
            Call<Op>{kv, {page_table.begin(), page_table.end()}, {ops.begin(), ops.end()}}),
        results, stream);
  }
  for (size_t i = 0; i < ops.size(); ++i) {
    if (!results[i].ok()) continue;
    if (in_place) {
      results[i] =
          CopyInPlace(kv, page_table, ops[i], backend.Address(ExtentOf(ops[i])) + ops[i].offset);
    } else if (std::is_same_v<Op, PagedReadOp>) {
      results[i] = internal::Error(absl::StatusCode::kFailedPrecondition, traits.name,
                                   " stores no bytes that could be read");
    }
  }
  return Transfer::Completed(std::move(results));
}

}  // namespace

absl::Status ValidateOp(const PagedKv& kv, absl::Span<const int32_t> page_table,
                        const PagedWriteOp& op) {
  return ValidatePaged("write", kv, page_table, op, 0, op.destination);
}

absl::Status ValidateOp(const PagedKv& kv, absl::Span<const int32_t> page_table,
                        const PagedReadOp& op) {
  return ValidatePaged("read", kv, page_table, op, op.skip_tokens, op.source);
}

Transfer WritePages(StorageBackend& backend, const PagedKv& kv,
                    absl::Span<const int32_t> page_table, absl::Span<const PagedWriteOp> ops,
                    Stream stream) {
  PageCopier* const copier = backend.page_copier();
  return copier != nullptr ? copier->WritePages(kv, page_table, ops, stream)
                           : WriteHostPages(backend, kv, page_table, ops, stream);
}

Transfer ReadPages(StorageBackend& backend, const PagedKv& kv, absl::Span<const int32_t> page_table,
                   absl::Span<const PagedReadOp> ops, Stream stream) {
  PageCopier* const copier = backend.page_copier();
  return copier != nullptr ? copier->ReadPages(kv, page_table, ops, stream)
                           : ReadHostPages(backend, kv, page_table, ops, stream);
}

Transfer WriteHostPages(StorageBackend& backend, const PagedKv& kv,
                        absl::Span<const int32_t> page_table, absl::Span<const PagedWriteOp> ops,
                        Stream stream) {
  return internal::WithoutThrowing(
      ops.size(), [&] { return CopyHostPages(backend, kv, page_table, ops, stream); });
}

Transfer ReadHostPages(StorageBackend& backend, const PagedKv& kv,
                       absl::Span<const int32_t> page_table, absl::Span<const PagedReadOp> ops,
                       Stream stream) {
  return internal::WithoutThrowing(
      ops.size(), [&] { return CopyHostPages(backend, kv, page_table, ops, stream); });
}

}  // namespace kvcache
