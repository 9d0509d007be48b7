#include "kvcache/core/prompts/paged_cache.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/base/no_memory.h"
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
  // Not a flat_hash_map: one that could not grow is broken for good.
  std::unordered_map<BlockKey, std::shared_ptr<Writing>, absl::Hash<BlockKey>> writing
      ABSL_GUARDED_BY(mu);

  // Those of a cache, which all PagedCaches over it share.
  static std::shared_ptr<Writers> Of(const Cache* cache) {
    static Mutex& all_mu = *new Mutex;
    static auto& all = *new std::unordered_map<const Cache*, std::weak_ptr<Writers>>;
    MutexLock lock(all_mu);
    std::erase_if(all, [](const auto& entry) { return entry.second.expired(); });
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
  Write(WriteLease lease, const TokenRange& tokens, const BlockKey& key)
      : lease(std::move(lease)), tokens(tokens), key(key) {}

  WriteLease lease;
  TokenRange tokens;
  BlockKey key;
  std::shared_ptr<Writers::Writing> writing;  // nullptr: nobody can wait for it
  uint32_t copies = 0;                        // that have not ended
  absl::Status failed = absl::OkStatus();

  // `committed` is what the commit of the lease has said, which may have ended already.
  void End(Writers& writers, absl::Status committed) {
    // To the caller, an erased block, or one that lost its parent, is no failure of the copy.
    if (!failed.ok()) {
      lease.Abort();
      committed =
          internal::Error(absl::StatusCode::kAborted, "another Save() failed: ", failed.message());
    }
    if (writing != nullptr) writers.End(key, writing.get(), std::move(committed));
  }
};

// What a Save() does when its copies have ended. Made before they are started.
class PagedCache::SaveHook final : public internal::TransferHook {
 public:
  SaveHook(Cache& cache, std::shared_ptr<Writers> writers)
      : in_flight_{LeasedCopies(cache)}, writers_(std::move(writers)) {}

  // Copies may go on after the call.
  void Begin() { in_flight_.Begin(); }

  void OpEnded(size_t op, const absl::Status& status) override {
    Write& write = writes[write_of_op[op]];
    {
      MutexLock lock(mu_);
      write.failed.Update(status);
      if (--write.copies > 0) return;
    }
    write.End(*writers_, write.failed.ok() ? write.lease.Commit() : absl::OkStatus());
  }
  void AllEnded() override {
    writes.clear();
    in_flight_.End();
  }

  std::vector<Write> writes;
  std::vector<uint32_t> write_of_op;

 private:
  LeasedCopies::Pins in_flight_;
  const std::shared_ptr<Writers> writers_;
  Mutex mu_;  // of what is left to be copied of each write
};

// Ends ops of another transfer, from `first_op` on, as those of its own end.
class PagedCache::PassOnHook final : public internal::TransferHook {
 public:
  PassOnHook(const TransferSource& to, size_t first_op) : to_(to), first_op_(first_op) {}
  void OpEnded(size_t op, const absl::Status& status) override {
    // Copied as a whole: both transfers may go at the same time, on two threads, and what they
    // would share is counted by code that the thread sanitizer does not see.
    to_->Complete(first_op_ + op, internal::Error(status.code(), status.message()));
  }
  void AllEnded() override { to_.reset(); }

 private:
  std::optional<TransferSource> to_;
  const size_t first_op_;
};

PagedCache::PagedCache(Cache* cache, const PagedKv& pages, const PagedCacheOptions& options,
                       NamespaceId ns, const BlockKey& root, std::shared_ptr<void> held)
    : cache_(*cache),
      pages_(pages),
      options_(options),
      ns_(ns),
      root_(root),
      held_(std::move(held)),
      writers_(Writers::Of(cache)) {}

absl::StatusOr<std::unique_ptr<PagedCache>> PagedCache::Create(Cache* cache, const PagedKv& pages,
                                                               const PagedCacheOptions& options) {
  return internal::WithoutThrowing([&] { return CreateOrThrow(cache, pages, options); });
}

absl::StatusOr<std::unique_ptr<PagedCache>> PagedCache::CreateOrThrow(
    Cache* cache, const PagedKv& pages, const PagedCacheOptions& options) {
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
  std::shared_ptr<void> held = LeasedCopies(*cache).Hold(*ns);
  return std::unique_ptr<PagedCache>(
      new PagedCache(cache, pages, options, *ns, *root, std::move(held)));
}

absl::Status PagedCache::Prompt::Append(absl::Span<const int32_t> tokens,
                                        absl::Span<const PromptItem> items) {
  return internal::WithoutThrowing([&] { return AppendOrThrow(tokens, items); });
}

absl::Status PagedCache::Prompt::AppendOrThrow(absl::Span<const int32_t> tokens,
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
    joined.reserve(tail_.size() + tokens.size());
    joined.assign(tail_.begin(), tail_.end());
    joined.insert(joined.end(), tokens.begin(), tokens.end());
  }
  absl::Span<const int32_t> rest = joined.empty() ? tokens : absl::MakeConstSpan(joined);
  const PagedCacheOptions& options = owner_->options_;
  std::vector<BlockKey> added;  // behind the whole blocks
  size_t whole_blocks = whole_blocks_;
  BlockKey parent = whole_blocks == 0 ? root_ : keys_[whole_blocks - 1];
  while (!rest.empty()) {
    const absl::Span<const int32_t> block = rest.subspan(0, options.tokens_per_block);
    const bool whole = block.size() == options.tokens_per_block;
    if (!whole && !options.short_last_block) break;
    const auto first = static_cast<uint32_t>(whole_blocks * options.tokens_per_block);
    parent = *TokenBlockKey(parent, block,
                            BlockExtra(all_items, first, static_cast<uint32_t>(block.size())));
    added.push_back(parent);
    if (!whole) break;
    ++whole_blocks;
    rest.remove_prefix(block.size());
  }
  std::vector<int32_t> tail(rest.begin(), rest.end());
  const auto all_tokens = static_cast<uint32_t>(tokens_ + tokens.size());
  std::vector<Item> behind;
  for (const PromptItem& item : all_items) {
    if (item.first_token < all_tokens - tail.size()) continue;
    behind.push_back({item.first_token, item.tokens, std::string(item.digest)});
  }
  if (const size_t keys = whole_blocks_ + added.size(); keys > keys_.capacity()) {
    keys_.reserve(std::max(keys, 2 * keys_.capacity()));
  }
  // Nothing throws from here on.
  keys_.resize(whole_blocks_);
  keys_.insert(keys_.end(), added.begin(), added.end());
  whole_blocks_ = whole_blocks;
  tokens_ = all_tokens;
  tail_ = std::move(tail);
  items_ = std::move(behind);
  return absl::OkStatus();
}

absl::StatusOr<PagedCache::Prompt> PagedCache::Hash(absl::Span<const int32_t> tokens,
                                                    const PromptOptions& options) const {
  return internal::WithoutThrowing([&] { return HashOrThrow(tokens, options); });
}

absl::StatusOr<PagedCache::Prompt> PagedCache::HashOrThrow(absl::Span<const int32_t> tokens,
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
  return internal::Error(absl::StatusCode::kInvalidArgument,
                         "prompt: another PagedCache has hashed it");
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
  std::vector<Write> writes;
  absl::StatusOr<Saved> saved = internal::WithoutThrowing(
      [&] { return SaveOrThrow(prompt, page_table, stream, options, &writes); });
  // Those of which no copy was started, so that nobody waits for them.
  for (Write& write : writes) {
    write.failed.Update(saved.status());
    write.End(*writers_, absl::OkStatus());
  }
  return saved;
}

absl::StatusOr<PagedCache::Saved> PagedCache::SaveOrThrow(const Prompt& prompt,
                                                          absl::Span<const int32_t> page_table,
                                                          Stream stream,
                                                          const PagedSaveOptions& options,
                                                          std::vector<Write>* reserved_writes) {
  std::vector<Write>& writes = *reserved_writes;
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
  std::vector<Transfer> left;  // to other writers
  size_t asked_again = keys.size();
  for (size_t block = 0; block < keys.size() && saved.stopped.ok();) {
    if (block > 0) put.parent = keys[block - 1];
    put.recompute_cost = options.recompute_cost_per_token * TokensOf(block, prompt.tokens()).count;
    const size_t some = std::min(keys.size() - block, kBlocksPerStep);
    std::vector<absl::StatusOr<WriteLease>> leases(some);
    // What is reserved is not lost by what throws.
    for (const size_t needed = writes.size() + some; writes.capacity() < needed;) {
      writes.reserve(std::max(needed, 2 * writes.capacity()));
    }
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
        Write& write = writes.emplace_back(*std::move(lease), range, key);
        write.writing = writers_->Begin(key);
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
  saved.copies = Copy(&writes, left, page_table, stream);
  return saved;
}

Transfer PagedCache::Copy(std::vector<Write>* writes, absl::Span<const Transfer> left,
                          absl::Span<const int32_t> page_table, Stream stream) {
  if (writes->empty() && left.empty()) return {};
  std::vector<PagedWriteOp> ops;
  ops.reserve(writes->size() * pages_.layout.layers);
  auto hook = std::make_unique<SaveHook>(cache_, writers_);
  hook->write_of_op.reserve(ops.capacity());
  for (uint32_t layer = 0; layer < pages_.layout.layers; ++layer) {
    for (uint32_t i = 0; i < writes->size(); ++i) {
      Write& write = (*writes)[i];
      // Somebody may have written a part of the block, layer by layer.
      if (write.lease.committed(layer)) continue;
      const size_t part_bytes = write.lease.size() / write.lease.parts();
      ops.push_back({LeasedCopies::ExtentOf(write.lease), layer * part_bytes, layer, write.tokens,
                     LeasedCopies::NewChecksumOf(write.lease, layer)});
      hook->write_of_op.push_back(i);
      ++write.copies;
    }
  }
  // For a commit of all at once.
  std::vector<WriteLease> leases(writes->size());
  std::vector<absl::Status> results(writes->size());
  // For what others copy, too.
  const auto own = std::make_shared<Transfer>();
  std::optional<TransferSource> all;
  std::vector<std::unique_ptr<PassOnHook>> pass_on;
  if (!left.empty()) {
    std::vector<uint32_t> parts;
    parts.reserve(ops.size() + left.size());
    for (const PagedWriteOp& op : ops) parts.push_back(op.part);
    parts.resize(ops.size() + left.size(), pages_.layout.layers - 1);
    all.emplace(parts, TransferSource::Hooks{
                           .order =
                               [own](Stream on, int64_t part) {
                                 return part < 0 ? own->WaitOn(on)
                                                 : own->WaitPartOn(on, static_cast<uint32_t>(part));
                               },
                           .cancel = [own] { own->Cancel(); }});
    for (size_t i = 0; i <= left.size(); ++i) {
      pass_on.push_back(std::make_unique<PassOnHook>(*all, i == 0 ? 0 : ops.size() + i - 1));
    }
  }

  hook->writes = std::move(*writes);
  writes->clear();
  if (!ops.empty()) {
    *own = WritePages(LeasedCopies(cache_).backend(), pages_, page_table, ops, stream);
  }
  if (own->Done()) {
    CommitAll(*own, hook->write_of_op, absl::MakeSpan(hook->writes), absl::MakeSpan(leases),
              absl::MakeSpan(results));
  } else {
    hook->Begin();
    internal::Attach(*own, std::move(hook));
  }
  if (left.empty()) return std::move(*own);
  internal::Attach(*own, std::move(pass_on[0]));
  for (size_t i = 0; i < left.size(); ++i) internal::Attach(left[i], std::move(pass_on[i + 1]));
  return all->transfer();
}

void PagedCache::CommitAll(const Transfer& copies, absl::Span<const uint32_t> write_of_op,
                           absl::Span<Write> writes, absl::Span<WriteLease> leases,
                           absl::Span<absl::Status> results) {
  for (size_t op = 0; op < write_of_op.size(); ++op) {
    writes[write_of_op[op]].failed.Update(copies.result(op));
  }
  for (size_t i = 0; i < writes.size(); ++i) {
    if (writes[i].failed.ok()) {
      leases[i] = std::move(writes[i].lease);
    } else {
      writes[i].lease.Abort();  // before those behind it are committed
    }
  }
  cache_.CommitMany(leases, results);
  for (size_t i = 0; i < writes.size(); ++i) writes[i].End(*writers_, std::move(results[i]));
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
  return internal::WithoutThrowing(
      [&] { return LoadOrThrow(prompt, page_table, stream, first_token); });
}

absl::StatusOr<PagedCache::Loaded> PagedCache::LoadOrThrow(const Prompt& prompt,
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
    std::unique_ptr<internal::TransferHook> pins = leased.Prepare(slots, LeasedCopies::Use::kRead);
    leased.CountRead(slots.front(), bytes_read);
    loaded.copies = ReadPages(leased.backend(), pages_, page_table, ops, stream);
    leased.Follow(loaded.copies, slots, LeasedCopies::Use::kRead, std::move(pins));
  }
  cache_.Release(absl::MakeSpan(match.blocks));
  return loaded;
}

}  // namespace kvcache
