// PagedCache: between an engine's pages and the blocks of a cache, prompt by prompt.
#ifndef KVCACHE_CORE_PROMPTS_PAGED_CACHE_H_
#define KVCACHE_CORE_PROMPTS_PAGED_CACHE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

struct PagedCacheOptions {
  // Tokens of a block, the unit that prompts share; need not be those of a page. Smaller ones share
  // more, larger ones copy faster.
  uint32_t tokens_per_block = 64;
  // Whether the tokens behind the last whole block are a block too, which only the same prompt
  // finds again. False for conversations, whose next turn goes on in that block.
  bool short_last_block = true;
  // What else must match for K/V to be interchangeable; its layout is that of the pages. A request
  // may have another adapter and tenant: see PromptOptions.
  Namespace ns = {};
};

// What a request says of its prompt besides the ids. Views: valid during the call.
struct PromptOptions {
  // Images and other things behind placeholder tokens: without them, two prompts that differ in
  // nothing else share their K/V.
  absl::Span<const PromptItem> items = {};
  // Default: those of PagedCacheOptions::ns.
  std::optional<absl::string_view> adapter = std::nullopt;
  std::optional<absl::string_view> tenant = std::nullopt;
};

struct PagedSaveOptions {
  std::optional<absl::Duration> ttl = std::nullopt;  // default: the cache's
  // Compute that a hit saves; 0: unknown. That of a block is at most kHighestRecomputeCost.
  absl::Duration recompute_cost_per_token = absl::ZeroDuration();
  // See PutOptions.
  uint16_t priority = 0;
  absl::Duration keep_priority_for = absl::InfiniteDuration();
};

// Saves the K/V of prompts out of an engine's pages into blocks, and loads it into pages again:
// other pages, of another size or order if the two engines that share a cache differ in that.
//
//   auto paged = PagedCache::Create(cache.get(), pages, {.tokens_per_block = 64, .ns = model});
//   auto loaded = (*paged)->Load(prompt, page_table, stream);  // the beginning that is there
//   for (uint32_t layer = 0; layer < layers; ++layer) {
//     loaded->copies.WaitPartOn(stream, layer);                // no host wait
//     attend(layer, stream);                                   // computes from loaded->tokens on
//   }
//   if (!loaded->copies.Wait().ok()) return Recompute();       // before anybody sees the result
//   auto saved = (*paged)->Save(prompt, page_table, stream);
//   saved->copies.WaitOn(stream);                              // before the pages are used again
//
// Thread-safe.
class PagedCache {
 public:
  // `cache` may end before this: then nothing is found, and Save() stops with kFailedPrecondition.
  // The pages outlive every transfer. Errors: those of PagedKv::Validate(),
  // Namespace::Validate(); kInvalidArgument when `cache` is null, tokens_per_block is 0, the
  // layouts differ, there are more than kMostParts layers, or a block would be larger than the
  // cache is.
  static absl::StatusOr<std::unique_ptr<PagedCache>> Create(Cache* cache, const PagedKv& pages,
                                                            const PagedCacheOptions& options);

  // A prompt and the keys of its blocks, so that Lookup, Load and Save hash it once. A value of the
  // PagedCache that hashed it; keeps no tokens but those behind the last whole block.
  // Thread-compatible.
  class Prompt {
   public:
    uint32_t tokens() const { return tokens_; }
    // Of the whole blocks, and of the short last one if that is wanted.
    absl::Span<const BlockKey> keys() const { return keys_; }

    // Appends tokens, and hashes the blocks that become whole and the short last one: not what is
    // hashed already. `items` begin in these tokens or behind them; their first_token counts from
    // the beginning of the prompt. kInvalidArgument, with nothing changed, when there are no tokens
    // or would be 2^32 and more, for an item that begins before them, and as ValidateItems().
    absl::Status Append(absl::Span<const int32_t> tokens, absl::Span<const PromptItem> items = {});

   private:
    friend class PagedCache;
    struct Item {
      uint32_t first_token;
      uint32_t tokens;
      std::string digest;
    };

    Prompt(const PagedCache& owner, NamespaceId ns, const BlockKey& root)
        : owner_(&owner), ns_(ns), root_(root) {}
    absl::Status AppendOrThrow(absl::Span<const int32_t> tokens,
                               absl::Span<const PromptItem> items);

    const PagedCache* owner_;
    NamespaceId ns_;
    std::shared_ptr<void> held_;  // gives back a namespace that is not the PagedCache's
    BlockKey root_;
    uint32_t tokens_ = 0;
    size_t whole_blocks_ = 0;
    std::vector<BlockKey> keys_;
    std::vector<int32_t> tail_;  // behind the whole blocks
    std::vector<Item> items_;    // that begin behind the whole blocks
  };
  // Hashes a prompt, which must go before the cache. Errors: those of Append() and of
  // Cache::Register().
  absl::StatusOr<Prompt> Hash(absl::Span<const int32_t> tokens,
                              const PromptOptions& options = {}) const;

  struct Saved {
    // Leading tokens that are in the cache, or will be when `copies` has ended well.
    uint32_t tokens = 0;
    uint32_t copied_tokens = 0;  // of these, by this call
    // Why the rest is not: what Cache::Reserve() said of the block behind; OK: there is none.
    // kUnavailable: somebody writes it by other means than Save().
    absl::Status stopped = absl::OkStatus();
    // An op for each layer of each block that is copied, layer by layer; its part is the layer. A
    // block becomes visible as its last layer has been copied, and Wait() returns after that. A
    // block with a failed op leaves nothing behind, and those behind it neither.
    // Behind these is an op for each block that another Save() into this cache copies now: it
    // ends with that copy, and with kAborted when that has failed. WaitOn() does not wait for it,
    // since it does not read these pages.
    Transfer copies = {};
  };
  // Token i of the prompt is in page_table[i / page_tokens]. Behind the
  // work that is on `stream`; the pages must not change before the copies have ended. What they
  // hold is taken for right: after a Load() wait for its copies first, since one that
  // fails may have dropped the block, and this would put the wrong bytes in its place.
  // kInvalidArgument when the prompt is another PagedCache's, its tokens are not all in pages, or
  // Cache::Reserve() says so of the options.
  absl::StatusOr<Saved> Save(const Prompt& prompt, absl::Span<const int32_t> page_table,
                             Stream stream = {}, const PagedSaveOptions& options = {});
  // The same after Hash(tokens), as the overloads below.
  absl::StatusOr<Saved> Save(absl::Span<const int32_t> tokens, absl::Span<const int32_t> page_table,
                             Stream stream = {}, const PagedSaveOptions& options = {});

  // How many leading tokens a Load would find now. Touches and pins nothing.
  absl::StatusOr<uint32_t> Lookup(const Prompt& prompt) const;
  absl::StatusOr<uint32_t> Lookup(absl::Span<const int32_t> tokens) const;

  struct Loaded {
    // Leading ones that are in the pages when the copies have ended; at least first_token.
    uint32_t tokens = 0;
    // As those of Saved. An op ends with kDataLoss when other bytes are there than were saved; its
    // block is dropped, as after every IsMediumFault(). That, and every other failure, may come
    // after a stream has waited for the layer and used it: Wait() before the results leave. When it
    // fails, nothing from `first_token` on may be used: compute it, or Load() again, which finds
    // what is left.
    Transfer copies = {};
  };
  // Loads what there is of the prompt's beginning, as much as the page table has pages for, behind
  // the work that is on `stream`. The engine has what is before `first_token` already: nothing of
  // it is written, and its pages need not be in the table; but its blocks are hits like the others,
  // so that they stay as long as the engine uses them. kInvalidArgument when the prompt is
  // another PagedCache's, first_token is behind its last token, or a page of a token from there on
  // is not one of the engine's; kFailedPrecondition when somebody has put a block of another size,
  // or of other parts than one for each layer, under a key of the prompt. Each Load is one request
  // in the statistics; the tokens asked for are those that the page table has pages for.
  absl::StatusOr<Loaded> Load(const Prompt& prompt, absl::Span<const int32_t> page_table,
                              Stream stream = {}, uint32_t first_token = 0);
  absl::StatusOr<Loaded> Load(absl::Span<const int32_t> tokens,
                              absl::Span<const int32_t> page_table, Stream stream = {},
                              uint32_t first_token = 0);

  const PagedCacheOptions& options() const { return options_; }

 private:
  struct Write;
  struct Writers;
  class SaveHook;
  class PassOnHook;

  PagedCache(Cache* cache, const PagedKv& pages, const PagedCacheOptions& options, NamespaceId ns,
             const BlockKey& root, std::shared_ptr<void> held);

  // As those without OrThrow, but for lack of memory.
  static absl::StatusOr<std::unique_ptr<PagedCache>> CreateOrThrow(
      Cache* cache, const PagedKv& pages, const PagedCacheOptions& options);
  absl::StatusOr<Prompt> HashOrThrow(absl::Span<const int32_t> tokens,
                                     const PromptOptions& options) const;
  // Leaves in `writes` what was reserved and has no copy.
  absl::StatusOr<Saved> SaveOrThrow(const Prompt& prompt, absl::Span<const int32_t> page_table,
                                    Stream stream, const PagedSaveOptions& options,
                                    std::vector<Write>* writes);
  absl::StatusOr<Loaded> LoadOrThrow(const Prompt& prompt, absl::Span<const int32_t> page_table,
                                     Stream stream, uint32_t first_token);
  absl::Status CheckOwner(const Prompt& prompt) const;
  TokenRange TokensOf(size_t block, size_t tokens) const;
  // Copies what was reserved, all in one call, and takes it. `left` are one-op transfers of other
  // writers. Throws before it has taken or started anything.
  Transfer Copy(std::vector<Write>* writes, absl::Span<const Transfer> left,
                absl::Span<const int32_t> page_table, Stream stream);
  // Commits blocks whose copies have ended, or gives them up. `leases` hold nothing; one, and a
  // result, for each write.
  void CommitAll(const Transfer& copies, absl::Span<const uint32_t> write_of_op,
                 absl::Span<Write> writes, absl::Span<WriteLease> leases,
                 absl::Span<absl::Status> results);

  Cache& cache_;
  const PagedKv pages_;
  const PagedCacheOptions options_;
  const NamespaceId ns_;
  const BlockKey root_;
  const std::shared_ptr<void> held_;
  const std::shared_ptr<Writers> writers_;  // the copies of Save() use it, which may end later
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_PROMPTS_PAGED_CACHE_H_
