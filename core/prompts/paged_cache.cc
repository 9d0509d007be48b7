#include "kvcache/core/prompts/paged_cache.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/cache/leased_copies.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

using internal::LeasedCopies;

// A block that is being copied out of pages.
struct PagedCache::Write {
  WriteLease lease;
  TokenRange tokens;
  uint32_t copies = 0;  // that have not ended
  bool failed = false;

  void End() {
    // An erased block, or one that lost its parent, is of no use; nobody has to know.
    if (failed) {
      lease.Abort();
    } else {
      lease.Commit().IgnoreError();
    }
  }
};

absl::StatusOr<std::unique_ptr<PagedCache>> PagedCache::Create(Cache* cache, const PagedKv& pages,
                                                               const PagedCacheOptions& options) {
  if (cache == nullptr) return absl::InvalidArgumentError("cache: null");
  if (absl::Status status = pages.Validate(); !status.ok()) return status;
  if (options.tokens_per_block == 0) return absl::InvalidArgumentError("tokens_per_block: 0");
  if (pages.layout != options.ns.layout) {
    return absl::InvalidArgumentError(absl::StrCat(
        "pages: ", pages.layout.ToString(), ", but ns.layout: ", options.ns.layout.ToString()));
  }
  if (pages.layout.layers > kMostParts) {
    return absl::InvalidArgumentError(absl::StrCat("pages.layout.layers: ", pages.layout.layers,
                                                   ", expected at most ", kMostParts));
  }
  const absl::StatusOr<size_t> bytes = pages.layout.BlockBytes(options.tokens_per_block);
  if (!bytes.ok()) return bytes.status();
  if (const size_t capacity = cache->stats().capacity_bytes; *bytes > capacity) {
    return absl::InvalidArgumentError(absl::StrCat("tokens_per_block: ", options.tokens_per_block,
                                                   ", blocks of ", *bytes,
                                                   " bytes, but the cache has ", capacity));
  }
  const absl::StatusOr<BlockKey> root = RootKey(options.ns);
  if (!root.ok()) return root.status();
  const absl::StatusOr<NamespaceId> ns = cache->Register(options.ns);
  if (!ns.ok()) return ns.status();
  return std::unique_ptr<PagedCache>(new PagedCache(cache, pages, options, *ns, *root));
}

absl::StatusOr<std::vector<BlockKey>> PagedCache::KeysOf(absl::Span<const int32_t> tokens,
                                                         size_t most_tokens) const {
  if (tokens.empty() || tokens.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens: ", tokens.size(), ", expected 1 to 2^32 - 1"));
  }
  std::vector<BlockKey> keys;
  size_t count = tokens.size();
  if (!options_.short_last_block || most_tokens < count) {
    count = std::min(count, most_tokens) / options_.tokens_per_block * options_.tokens_per_block;
  }
  if (count == 0) return keys;
  absl::Status status =
      ChainKeys(root_, tokens.subspan(0, count), options_.tokens_per_block, &keys);
  if (!status.ok()) return status;
  return keys;
}

TokenRange PagedCache::TokensOf(size_t block, size_t tokens) const {
  const size_t first = block * options_.tokens_per_block;
  return {static_cast<uint32_t>(first),
          static_cast<uint32_t>(std::min<size_t>(options_.tokens_per_block, tokens - first))};
}

absl::StatusOr<PagedCache::Saved> PagedCache::Save(absl::Span<const int32_t> tokens,
                                                   absl::Span<const int32_t> page_table,
                                                   Stream stream, const PagedSaveOptions& options) {
  const absl::StatusOr<std::vector<BlockKey>> keys = KeysOf(tokens, tokens.size());
  if (!keys.ok()) return keys.status();
  absl::Status in_pages =
      ValidateTokens(pages_, page_table, {0, static_cast<uint32_t>(tokens.size())});
  if (!in_pages.ok()) return in_pages;

  PutOptions put = {.ns = ns_, .ttl = options.ttl};
  put.chain_blocks = static_cast<uint32_t>(keys->size());
  put.priority = options.priority;
  put.keep_priority_for = options.keep_priority_for;
  Saved saved;
  std::vector<Write> writes;
  for (size_t block = 0; block < keys->size(); ++block) {
    const TokenRange range = TokensOf(block, tokens.size());
    const size_t bytes = *pages_.layout.BlockBytes(range.count);
    put.recompute_cost = options.recompute_cost_per_token * range.count;
    absl::StatusOr<WriteLease> lease =
        cache_.Reserve((*keys)[block], {bytes, pages_.layout.layers}, put);
    if (lease.ok()) {
      saved.copied_tokens += range.count;
      writes.push_back({*std::move(lease), range});
    } else if (absl::IsInvalidArgument(lease.status()) && writes.empty()) {
      return lease.status();  // of the options
    } else if (!absl::IsAlreadyExists(lease.status()) && !absl::IsUnavailable(lease.status())) {
      saved.stopped = lease.status();
      break;
    }
    saved.tokens += range.count;
    put.parent = (*keys)[block];
  }
  saved.copies = Copy(std::move(writes), page_table, stream);
  return saved;
}

Transfer PagedCache::Copy(std::vector<Write> writes, absl::Span<const int32_t> page_table,
                          Stream stream) {
  if (writes.empty()) return {};
  std::vector<PagedWriteOp> ops;
  ops.reserve(writes.size() * pages_.layout.layers);
  std::vector<uint32_t> write_of_op;
  write_of_op.reserve(ops.capacity());
  for (uint32_t layer = 0; layer < pages_.layout.layers; ++layer) {
    for (uint32_t i = 0; i < writes.size(); ++i) {
      Write& write = writes[i];
      // Somebody may have written a part of the block, layer by layer.
      if (write.lease.committed(layer)) continue;
      const size_t part_bytes = write.lease.size() / write.lease.parts();
      ops.push_back({LeasedCopies::ExtentOf(write.lease), layer * part_bytes, layer, write.tokens,
                     LeasedCopies::NewChecksumOf(write.lease, layer)});
      write_of_op.push_back(i);
      ++write.copies;
    }
  }
  const auto shared = std::make_shared<std::vector<Write>>(std::move(writes));
  const LeasedCopies leased(cache_);
  Transfer copies = WritePages(leased.backend(), pages_, page_table, ops, stream);
  if (!copies.Done()) internal::Keep(copies, leased.Pin({}));
  const auto mu = std::make_shared<Mutex>();
  internal::OnOpDone(copies, [shared, mu, write_of_op = std::move(write_of_op)](
                                 size_t op, const absl::Status& status) {
    Write& write = (*shared)[write_of_op[op]];
    {
      MutexLock lock(*mu);
      write.failed |= !status.ok();
      if (--write.copies > 0) return;
    }
    write.End();
  });
  return copies;
}

absl::StatusOr<uint32_t> PagedCache::Lookup(absl::Span<const int32_t> tokens) const {
  const absl::StatusOr<std::vector<BlockKey>> keys = KeysOf(tokens, tokens.size());
  if (!keys.ok()) return keys.status();
  const size_t blocks = cache_.LookupPrefix({.ns = ns_, .keys = *keys});
  return static_cast<uint32_t>(std::min<size_t>(tokens.size(), blocks * options_.tokens_per_block));
}

absl::StatusOr<PagedCache::Loaded> PagedCache::Load(absl::Span<const int32_t> tokens,
                                                    absl::Span<const int32_t> page_table,
                                                    Stream stream, uint32_t first_token) {
  if (first_token > tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("first_token: ", first_token, " of ", tokens.size(), " tokens"));
  }
  const size_t most_tokens = size_t{pages_.page_tokens} * page_table.size();
  const absl::StatusOr<std::vector<BlockKey>> keys = KeysOf(tokens, most_tokens);
  if (!keys.ok()) return keys.status();
  Loaded loaded = {.tokens = first_token};
  const auto in_blocks = static_cast<uint32_t>(
      std::min<size_t>(tokens.size(), keys->size() * options_.tokens_per_block));
  if (in_blocks == 0) return loaded;
  if (in_blocks > first_token) {
    absl::Status in_pages =
        ValidateTokens(pages_, page_table, {first_token, in_blocks - first_token});
    if (!in_pages.ok()) return in_pages;
  }

  PrefixMatch match = cache_.Match({.ns = ns_,
                                    .keys = *keys,
                                    .tokens_per_block = options_.tokens_per_block,
                                    .tokens = in_blocks});
  loaded.tokens = std::max(match.tokens, first_token);
  const size_t first_block =
      match.tokens > first_token ? first_token / options_.tokens_per_block : match.blocks.size();
  const size_t blocks = match.blocks.size() - first_block;
  std::vector<PagedReadOp> ops;
  ops.reserve(blocks * pages_.layout.layers);
  const LeasedCopies leased(cache_);
  std::vector<Slot> slots;
  slots.reserve(blocks);
  size_t bytes_read = 0;
  for (size_t block = first_block; block < match.blocks.size(); ++block) {
    const ReadLease& lease = match.blocks[block];
    const size_t bytes = *pages_.layout.BlockBytes(TokensOf(block, in_blocks).count);
    if (lease.size() != bytes || lease.parts() != pages_.layout.layers) {
      return absl::FailedPreconditionError(
          absl::StrCat("block ", block, " of the prompt: ", lease.size(), " bytes in ",
                       lease.parts(), " parts, expected ", bytes, " in ", pages_.layout.layers));
    }
    slots.push_back(LeasedCopies::SlotOf(lease));
    bytes_read += bytes;
  }
  for (uint32_t layer = 0; layer < pages_.layout.layers; ++layer) {
    for (size_t block = first_block; block < match.blocks.size(); ++block) {
      const ReadLease& lease = match.blocks[block];
      const size_t part_bytes = lease.size() / lease.parts();
      ops.push_back({LeasedCopies::ExtentOf(lease), layer * part_bytes, layer,
                     TokensOf(block, in_blocks), LeasedCopies::ChecksumOf(lease, layer),
                     block == first_block ? first_token % options_.tokens_per_block : 0});
    }
  }
  if (!ops.empty()) {
    leased.CountRead(slots.front(), bytes_read);
    loaded.copies = ReadPages(leased.backend(), pages_, page_table, ops, stream);
    if (!loaded.copies.Done()) internal::Keep(loaded.copies, leased.Pin(slots));
    internal::OnOpDone(loaded.copies,
                       [leased, slots = std::move(slots)](size_t op, const absl::Status& status) {
                         leased.DropIfUnreadable(slots[op % slots.size()], status);
                       });
  }
  cache_.Release(absl::MakeSpan(match.blocks));
  return loaded;
}

}  // namespace kvcache
