#include "kvcache/core/prompts/paged_cache.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/cache_types.h"
#include "kvcache/core/cache/leased_copies.h"
#include "kvcache/core/pages/page_copier.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

using internal::LeasedCopies;

namespace {

// Reserved at a time by a Save(), so that others are not kept waiting.
constexpr size_t kBlocksPerStep = 1024;

}  // namespace

// The blocks that Save() copies now, and who waits for them. Thread-safe.
struct PagedCache::Writers {
  struct Writing {
    std::optional<TransferSource> waiting;  // one op, for all who wait
  };

  Mutex reserving;  // before mu: from the reservation of blocks until they are in `writing`
  Mutex mu;
  absl::flat_hash_map<BlockKey, std::shared_ptr<Writing>> writing ABSL_GUARDED_BY(mu);

  // Those of a cache, which all PagedCaches over it share.
  static std::shared_ptr<Writers> Of(const Cache* cache) {
    static Mutex& all_mu = *new Mutex;
    static auto& all = *new absl::flat_hash_map<const Cache*, std::weak_ptr<Writers>>;
    MutexLock lock(all_mu);
    absl::erase_if(all, [](const auto& entry) { return entry.second.expired(); });
    std::weak_ptr<Writers>& known = all[cache];
    std::shared_ptr<Writers> writers = known.lock();
    if (writers == nullptr) known = writers = std::make_shared<Writers>();
    return writers;
  }

  std::shared_ptr<Writing> Begin(const BlockKey& key) {
    MutexLock lock(mu);
    return writing[key] = std::make_shared<Writing>();
  }

  // A one-op transfer that ends with the write of the block; nullopt when none is known.
  std::optional<Transfer> Wait(const BlockKey& key, uint32_t part) {
    MutexLock lock(mu);
    const auto it = writing.find(key);
    if (it == writing.end()) return std::nullopt;
    std::optional<TransferSource>& waiting = it->second->waiting;
    if (!waiting.has_value()) waiting.emplace(absl::Span<const uint32_t>(&part, 1));
    return waiting->transfer();
  }

  void End(const BlockKey& key, const Writing* ended, absl::Status result) {
    std::optional<TransferSource> waiting;
    {
      MutexLock lock(mu);
      const auto it = writing.find(key);
      // Whoever reserved the block since has taken the place, and waits for nobody.
      if (it != writing.end() && it->second.get() == ended) writing.erase(it);
      waiting = ended->waiting;
    }
    if (waiting.has_value()) waiting->Complete(0, std::move(result));
  }
};

// A block that is being copied out of pages.
struct PagedCache::Write {
  WriteLease lease;
  TokenRange tokens;
  BlockKey key;
  std::shared_ptr<Writers::Writing> writing;
  uint32_t copies = 0;  // that have not ended
  absl::Status failed = absl::OkStatus();

  // `committed` is what the commit of the lease has said, which may have ended already.
  void End(Writers& writers, absl::Status committed) {
    // To the caller, an erased block, or one that lost its parent, is no failure of the copy.
    if (!failed.ok()) {
      lease.Abort();
      committed = absl::AbortedError(absl::StrCat("another Save() failed: ", failed.message()));
    }
    writers.End(key, writing.get(), std::move(committed));
  }
};

PagedCache::PagedCache(Cache* cache, const PagedKv& pages, const PagedCacheOptions& options,
                       NamespaceId ns, const BlockKey& root)
    : cache_(*cache),
      pages_(pages),
      options_(options),
      ns_(ns),
      root_(root),
      held_(LeasedCopies(*cache).Hold(ns)),
      writers_(Writers::Of(cache)) {}

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
  if (const size_t capacity = cache->capacity_bytes(); *bytes > capacity) {
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

absl::Status PagedCache::Prompt::Append(absl::Span<const int32_t> tokens,
                                        absl::Span<const PromptItem> items) {
  constexpr uint32_t kMostTokens = std::numeric_limits<uint32_t>::max();
  if (tokens.empty() || tokens.size() > kMostTokens - tokens_) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: ", tokens.size(), " behind ", tokens_,
                                                   ", expected 1 to 2^32 - 1 in all"));
  }
  if (!items.empty() && items[0].first_token < tokens_) {
    return absl::InvalidArgumentError(absl::StrCat("items[0] begins at token ",
                                                   items[0].first_token, ", but ", tokens_,
                                                   " tokens are there already"));
  }
  std::vector<PromptItem> all_items;
  for (const Item& item : items_) {
    all_items.push_back({item.first_token, item.tokens, item.digest});
  }
  all_items.insert(all_items.end(), items.begin(), items.end());
  if (absl::Status status = ValidateItems(all_items); !status.ok()) return status;

  std::vector<int32_t> joined;
  if (!tail_.empty()) {
    joined = std::move(tail_);
    joined.insert(joined.end(), tokens.begin(), tokens.end());
  }
  absl::Span<const int32_t> rest = joined.empty() ? tokens : absl::MakeConstSpan(joined);
  const PagedCacheOptions& options = owner_->options_;
  keys_.resize(whole_blocks_);  // without the short one
  BlockKey parent = keys_.empty() ? root_ : keys_.back();
  while (!rest.empty()) {
    const absl::Span<const int32_t> block = rest.subspan(0, options.tokens_per_block);
    const bool whole = block.size() == options.tokens_per_block;
    if (!whole && !options.short_last_block) break;
    const auto first = static_cast<uint32_t>(whole_blocks_ * options.tokens_per_block);
    parent = *TokenBlockKey(parent, block,
                            BlockExtra(all_items, first, static_cast<uint32_t>(block.size())));
    keys_.push_back(parent);
    if (!whole) break;
    ++whole_blocks_;
    rest.remove_prefix(block.size());
  }
  tokens_ += static_cast<uint32_t>(tokens.size());
  tail_.assign(rest.begin(), rest.end());
  std::vector<Item> behind;
  for (const PromptItem& item : all_items) {
    if (item.first_token < tokens_ - tail_.size()) continue;
    behind.push_back({item.first_token, item.tokens, std::string(item.digest)});
  }
  items_ = std::move(behind);
  return absl::OkStatus();
}

absl::StatusOr<PagedCache::Prompt> PagedCache::Hash(absl::Span<const int32_t> tokens,
                                                    const PromptOptions& options) const {
  Prompt prompt(*this, ns_, root_);
  if (options.adapter.has_value() || options.tenant.has_value()) {
    Namespace ns = options_.ns;
    if (options.adapter.has_value()) ns.adapter = std::string(*options.adapter);
    if (options.tenant.has_value()) ns.tenant = std::string(*options.tenant);
    const absl::StatusOr<BlockKey> root = RootKey(ns);
    if (!root.ok()) return root.status();
    const absl::StatusOr<NamespaceId> id = cache_.Register(ns);
    if (!id.ok()) return id.status();
    prompt = Prompt(*this, *id, *root);
    prompt.held_ = LeasedCopies(cache_).Hold(*id);
  }
  if (absl::Status status = prompt.Append(tokens, options.items); !status.ok()) return status;
  return prompt;
}

absl::Status PagedCache::CheckOwner(const Prompt& prompt) const {
  if (prompt.owner_ == this) return absl::OkStatus();
  return absl::InvalidArgumentError("prompt: another PagedCache has hashed it");
}

TokenRange PagedCache::TokensOf(size_t block, size_t tokens) const {
  const size_t first = block * options_.tokens_per_block;
  return {static_cast<uint32_t>(first),
          static_cast<uint32_t>(std::min<size_t>(options_.tokens_per_block, tokens - first))};
}

absl::StatusOr<PagedCache::Saved> PagedCache::Save(absl::Span<const int32_t> tokens,
                                                   absl::Span<const int32_t> page_table,
                                                   Stream stream, const PagedSaveOptions& options) {
  const absl::StatusOr<Prompt> prompt = Hash(tokens);
  if (!prompt.ok()) return prompt.status();
  return Save(*prompt, page_table, stream, options);
}

absl::StatusOr<PagedCache::Saved> PagedCache::Save(const Prompt& prompt,
                                                   absl::Span<const int32_t> page_table,
                                                   Stream stream, const PagedSaveOptions& options) {
  if (absl::Status status = CheckOwner(prompt); !status.ok()) return status;
  absl::Status in_pages = ValidateTokens(pages_, page_table, {0, prompt.tokens()});
  if (!in_pages.ok()) return in_pages;

  const absl::Span<const BlockKey> keys = prompt.keys();
  std::vector<BlockSize> sizes;
  sizes.reserve(keys.size());
  for (size_t block = 0; block < keys.size(); ++block) {
    const size_t bytes = *pages_.layout.BlockBytes(TokensOf(block, prompt.tokens()).count);
    sizes.push_back({bytes, pages_.layout.layers});
  }
  PutOptions put = {.ttl = options.ttl};
  put.chain_blocks = static_cast<uint32_t>(keys.size());
  put.priority = options.priority;
  put.keep_priority_for = options.keep_priority_for;
  Saved saved;
  std::vector<Write> writes;
  std::vector<Transfer> left;  // to other writers
  size_t asked_again = keys.size();
  for (size_t block = 0; block < keys.size() && saved.stopped.ok();) {
    if (block > 0) put.parent = keys[block - 1];
    put.recompute_cost = options.recompute_cost_per_token * TokensOf(block, prompt.tokens()).count;
    const size_t some = std::min(keys.size() - block, kBlocksPerStep);
    std::vector<absl::StatusOr<WriteLease>> leases(some);
    // Nobody finds a block that is being written by another Save() and not in `writers_` yet.
    MutexLock reserving(writers_->reserving);
    const size_t reserved = cache_.ReserveMany(
        {.ns = prompt.ns_, .keys = keys.subspan(block, some)},
        absl::MakeConstSpan(sizes).subspan(block, some), put, absl::MakeSpan(leases));
    for (size_t i = 0; i < reserved; ++i, ++block) {
      absl::StatusOr<WriteLease>& lease = leases[i];
      const BlockKey& key = keys[block];
      const TokenRange range = TokensOf(block, prompt.tokens());
      if (lease.ok()) {
        saved.copied_tokens += range.count;
        writes.push_back({*std::move(lease), range, key, writers_->Begin(key)});
      } else if (absl::IsUnavailable(lease.status())) {
        std::optional<Transfer> others = writers_->Wait(key, pages_.layout.layers - 1);
        if (!others.has_value()) {
          // Its writer has ended meanwhile, or is none that can be waited for.
          if (asked_again == block) saved.stopped = lease.status();
          asked_again = block;
          break;
        }
        left.push_back(*std::move(others));
      } else if (absl::IsInvalidArgument(lease.status()) && writes.empty()) {
        return lease.status();  // of the options
      } else if (!absl::IsAlreadyExists(lease.status())) {
        saved.stopped = lease.status();
        break;
      }
      saved.tokens += range.count;
    }
  }
  saved.copies = Copy(std::move(writes), std::move(left), page_table, stream);
  return saved;
}

void PagedCache::CommitAll(absl::Span<Write> writes) {
  std::vector<WriteLease> leases(writes.size());
  std::vector<absl::Status> results(writes.size());
  for (size_t i = 0; i < writes.size(); ++i) {
    if (writes[i].failed.ok()) {
      leases[i] = std::move(writes[i].lease);
    } else {
      writes[i].lease.Abort();  // before those behind it are committed
    }
  }
  cache_.CommitMany(absl::MakeSpan(leases), absl::MakeSpan(results));
  for (size_t i = 0; i < writes.size(); ++i) writes[i].End(*writers_, std::move(results[i]));
}

Transfer PagedCache::Copy(std::vector<Write> writes, std::vector<Transfer> left,
                          absl::Span<const int32_t> page_table, Stream stream) {
  if (writes.empty() && left.empty()) return {};
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
  Transfer copies;
  if (!ops.empty()) copies = WritePages(leased.backend(), pages_, page_table, ops, stream);
  if (!copies.Done()) internal::Keep(copies, leased.Pin({}));
  if (copies.Done()) {
    for (size_t op = 0; op < ops.size(); ++op) {
      (*shared)[write_of_op[op]].failed.Update(copies.result(op));
    }
    CommitAll(absl::MakeSpan(*shared));
  } else {
    const auto mu = std::make_shared<Mutex>();
    internal::OnOpDone(
        copies, [shared, mu, writers = writers_, write_of_op = std::move(write_of_op)](
                    size_t op, const absl::Status& status) {
          Write& write = (*shared)[write_of_op[op]];
          {
            MutexLock lock(*mu);
            write.failed.Update(status);
            if (--write.copies > 0) return;
          }
          write.End(*writers, write.failed.ok() ? write.lease.Commit() : absl::OkStatus());
        });
  }
  if (left.empty()) return copies;

  std::vector<uint32_t> parts;
  parts.reserve(ops.size() + left.size());
  for (const PagedWriteOp& op : ops) parts.push_back(op.part);
  parts.resize(ops.size() + left.size(), pages_.layout.layers - 1);
  const auto own = std::make_shared<Transfer>(std::move(copies));
  const TransferSource all(parts, {.order =
                                       [own](Stream on, int64_t part) {
                                         return part < 0 ? own->WaitOn(on)
                                                         : own->WaitPartOn(
                                                               on, static_cast<uint32_t>(part));
                                       },
                                   .cancel = [own] { own->Cancel(); }});
  // The statuses are copied as a whole: both transfers may go at the same time, on two threads, and
  // what they would share is counted by code that the thread sanitizer does not see.
  const auto copy = [](const absl::Status& status) {
    return absl::Status(status.code(), status.message());
  };
  internal::OnOpDone(
      *own, [all, copy](size_t op, const absl::Status& status) { all.Complete(op, copy(status)); });
  for (size_t i = 0; i < left.size(); ++i) {
    internal::OnOpDone(left[i],
                       [all, copy, op = ops.size() + i](size_t, const absl::Status& status) {
                         all.Complete(op, copy(status));
                       });
  }
  return all.transfer();
}

absl::StatusOr<uint32_t> PagedCache::Lookup(absl::Span<const int32_t> tokens) const {
  const absl::StatusOr<Prompt> prompt = Hash(tokens);
  if (!prompt.ok()) return prompt.status();
  return Lookup(*prompt);
}

absl::StatusOr<uint32_t> PagedCache::Lookup(const Prompt& prompt) const {
  if (absl::Status status = CheckOwner(prompt); !status.ok()) return status;
  const size_t blocks = cache_.LookupPrefix({.ns = prompt.ns_, .keys = prompt.keys()});
  return static_cast<uint32_t>(
      std::min<size_t>(prompt.tokens(), blocks * options_.tokens_per_block));
}

absl::StatusOr<PagedCache::Loaded> PagedCache::Load(absl::Span<const int32_t> tokens,
                                                    absl::Span<const int32_t> page_table,
                                                    Stream stream, uint32_t first_token) {
  const absl::StatusOr<Prompt> prompt = Hash(tokens);
  if (!prompt.ok()) return prompt.status();
  return Load(*prompt, page_table, stream, first_token);
}

absl::StatusOr<PagedCache::Loaded> PagedCache::Load(const Prompt& prompt,
                                                    absl::Span<const int32_t> page_table,
                                                    Stream stream, uint32_t first_token) {
  if (absl::Status status = CheckOwner(prompt); !status.ok()) return status;
  if (first_token > prompt.tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("first_token: ", first_token, " of ", prompt.tokens(), " tokens"));
  }
  const auto wanted = static_cast<uint32_t>(
      std::min<size_t>(prompt.tokens(), size_t{pages_.page_tokens} * page_table.size()));
  absl::Span<const BlockKey> keys = prompt.keys();
  if (wanted < prompt.tokens()) keys = keys.subspan(0, wanted / options_.tokens_per_block);
  Loaded loaded = {.tokens = first_token};
  const auto in_blocks =
      static_cast<uint32_t>(std::min<size_t>(wanted, keys.size() * options_.tokens_per_block));
  if (in_blocks > first_token) {
    absl::Status in_pages =
        ValidateTokens(pages_, page_table, {first_token, in_blocks - first_token});
    if (!in_pages.ok()) return in_pages;
  }

  PrefixMatch match = cache_.Match({.ns = prompt.ns_,
                                    .keys = keys,
                                    .tokens_per_block = options_.tokens_per_block,
                                    .tokens = wanted,
                                    .first_token = first_token});
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
