// PrefixCache: the K/V of whole prompts, layer by layer, by their text or tokens.
#ifndef KVCACHE_CORE_PROMPTS_PREFIX_CACHE_H_
#define KVCACHE_CORE_PROMPTS_PREFIX_CACHE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/key/kv_layout.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

// What a prompt begins with: text or token ids. A view: valid as long as what it was made from. The
// text "a" and the tokens of "a" are two different prefixes.
class Prefix {
 public:
  Prefix(absl::string_view text) : text_(text) {}                  // NOLINT: implicit
  Prefix(const char* text) : text_(text) {}                        // NOLINT: implicit
  Prefix(const std::string& text) : text_(text) {}                 // NOLINT: implicit
  Prefix(absl::Span<const int32_t> tokens) : tokens_(tokens) {}    // NOLINT: implicit
  Prefix(const std::vector<int32_t>& tokens) : tokens_(tokens) {}  // NOLINT: implicit
  // `extra` is a digest of what the text or the ids do not say: the images behind placeholders.
  // Without it, two prefixes that differ in nothing else share their K/V.
  Prefix(absl::string_view text, absl::string_view extra) : text_(text), extra_(extra) {}
  Prefix(absl::Span<const int32_t> tokens, absl::string_view extra)
      : tokens_(tokens), extra_(extra) {}

  // Errors: those of TextKey() and TokenBlockKey().
  absl::StatusOr<BlockKey> Key(const BlockKey& root) const;

 private:
  std::optional<absl::string_view> text_;
  absl::Span<const int32_t> tokens_;
  absl::string_view extra_;
};

// The K or the V of one layer: contiguous [tokens, kv_heads, head_dim]. A view.
struct KvTensor {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  uint32_t tokens = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;

  size_t bytes() const { return size_t{1} * tokens * kv_heads * head_dim * DTypeSize(dtype); }
  // "f32 [12, 8, 128]"
  std::string ToString() const;
};

struct LayerKv {
  KvTensor k;
  KvTensor v;
};

// Where to put the K and the V of one layer: as many bytes as the tensors have.
struct LayerDestination {
  MutableBytes k;
  MutableBytes v;
};

// One layer, or all, of a cached prefix; pinned while this lives, also when
// its cache has ended. Thread-compatible.
class CachedKv {
 public:
  uint32_t layers() const { return lease_.parts(); }
  uint32_t tokens() const { return first_k_.tokens; }

  // In the backend's memory space; data is null when the backend is not addressable. After
  // GetCachedKv(), the one layer is number 0. REQUIRES: layer < layers().
  LayerKv layer(uint32_t layer) const;

  // Copies every layer to the destination of the same index. Op i carries layer i, so that a caller
  // can wait for one layer after the other. All ops end with kInvalidArgument when the number of
  // destinations is not layers(); one does when a size is not that of its tensor. The destinations
  // must live until the transfer ends; this need not.
  Transfer CopyTo(absl::Span<const LayerDestination> destinations, MemorySpace space = {},
                  Stream stream = {}) const;

 private:
  friend class PrefixCache;
  // `shape` is that of a tensor of one token.
  CachedKv(ReadLease lease, const KvTensor& shape);
  Transfer CopyOrThrow(absl::Span<const LayerDestination> destinations, MemorySpace space,
                       Stream stream) const;

  ReadLease lease_;
  KvTensor first_k_;
};

struct PrefixCacheOptions {
  // Layers of the model. Required.
  uint32_t layers = 0;
  // What else must match for K/V to be interchangeable: see Namespace.
  std::string model = "";
  std::string revision = "";
  std::string adapter = "";
  std::string tenant = "";
  CacheOptions cache = {};
};

struct PrefixPutOptions {
  // Default: the cache's default_ttl. Counts from the last layer put.
  std::optional<absl::Duration> ttl = std::nullopt;
  // Compute that a hit on all layers saves, at most kHighestRecomputeCost: for the statistics, and
  // for policies that know costs.
  absl::Duration recompute_cost = absl::ZeroDuration();
};

// Stores the K/V of a prompt's beginning under that beginning. A prefix is one entry, whole or in
// part: a layer that was put alone can be read alone at once; reading all layers needs all of them.
//
// The dtype, kv_heads and head_dim of the first put that succeeds are those of all; all layers of a
// prefix have the same number of tokens. Putting a layer again replaces it; who holds the old one
// keeps its bytes. When the cache is full, the policy's first victims go.
//
// Puts copy and wait for the copy: the caller's tensors are its own again when the call returns.
// Thread-safe: any thread may call anything at any time.
class PrefixCache {
 public:
  // Errors: kInvalidArgument when there are no layers, or more than 65,535; those of
  // Cache::Create().
  static absl::StatusOr<std::unique_ptr<PrefixCache>> Create(
      const PrefixCacheOptions& options, std::unique_ptr<StorageBackend> backend,
      std::unique_ptr<EvictionPolicy> policy);

  // Puts one layer. Replacing a layer copies the others, and needs room for both entries meanwhile.
  // Errors, after which what was there of the prefix is there still:
  //   kInvalidArgument     an empty prefix; layer not below the number of layers; null or
  //                        misaligned data; another dtype or shape than before, which the message
  //                        shows both of; K and V that differ; more bytes than the cache has
  //   kResourceExhausted   what would have to go is being read, or the host has no memory
  //   kPermissionDenied    the policy rather keeps what is there
  //   kInternal            the backend has failed for good
  //   kFailedPrecondition  a layer is to be replaced and the backend stores no bytes to copy
  absl::Status CacheKv(const Prefix& prefix, uint32_t layer, const KvTensor& k, const KvTensor& v,
                       const PrefixPutOptions& options = {});

  // Puts all layers, layers[i] as number i; they become readable together. What was there is
  // replaced, also by another number of tokens; where there is no room for both, it goes first, and
  // is lost if the new one cannot be written then. Errors: the same; kInvalidArgument for another
  // number of layers.
  absl::Status CacheAllLayers(const Prefix& prefix, absl::Span<const LayerKv> layers,
                              const PrefixPutOptions& options = {});

  // One layer, or all. kNotFound after a miss, kUnavailable while somebody writes it;
  // kInvalidArgument as above.
  absl::StatusOr<CachedKv> GetCachedKv(const Prefix& prefix, uint32_t layer);
  absl::StatusOr<CachedKv> GetAllLayers(const Prefix& prefix);

  // The same, copied to where they are needed; see CachedKv::CopyTo().
  absl::StatusOr<Transfer> LoadKv(const Prefix& prefix, uint32_t layer,
                                  const LayerDestination& destination, MemorySpace space = {},
                                  Stream stream = {});
  absl::StatusOr<Transfer> LoadAllLayers(const Prefix& prefix,
                                         absl::Span<const LayerDestination> destinations,
                                         MemorySpace space = {}, Stream stream = {});

  // Forgets a prefix. Returns whether anything of it was there.
  bool Evict(const Prefix& prefix);
  void Clear();

  uint32_t layers() const { return options_.layers; }
  // Reads of all layers are block lookups, reads of one are layer lookups.
  CacheStats stats() const { return cache_->stats(); }

 private:
  // What the first put decides.
  struct Format {
    KvLayout layout;
    KvTensor token;  // the shape of one token's K
    NamespaceId ns = NamespaceId::kDefault;
    BlockKey root;
  };
  struct Written {
    uint32_t layer;
    LayerKv kv;
  };

  PrefixCache(const PrefixCacheOptions& options, std::unique_ptr<Cache> cache)
      : options_(options), cache_(std::move(cache)) {}

  absl::Status CheckLayer(uint32_t layer) const;
  // A checked put: what it is called and how large it is.
  struct Target {
    BlockKey key;
    BlockSize size;
  };

  // Without the id of its namespace.
  absl::StatusOr<Format> FormatOf(const KvTensor& tensor);
  Namespace NamespaceOf(const KvLayout& layout) const;
  // nullptr before the first put.
  const Format* format() const { return format_.load(std::memory_order_acquire); }
  // Puts as the format says that is fixed, or else as that of the tensors, which is fixed when that
  // succeeds.
  absl::Status Put(const Prefix& prefix, absl::Span<const Written> layers,
                   const PrefixPutOptions& options);
  absl::Status PutOrThrow(const Prefix& prefix, absl::Span<const Written> layers,
                          const PrefixPutOptions& options);
  absl::StatusOr<Target> Check(const Format& format, const Prefix& prefix,
                               absl::Span<const Written> layers) const;
  absl::Status PutAs(const Format& format, const Prefix& prefix, absl::Span<const Written> layers,
                     const PrefixPutOptions& options);
  // REQUIRES: the writer's lock of the key.
  absl::Status Write(const Format& format, const Target& target, absl::Span<const Written> layers,
                     const PutOptions& options);
  absl::Status CopyOtherLayers(const ReadLease& old, const std::vector<bool>& committed,
                               uint32_t except, WriteLease& lease);
  absl::StatusOr<CachedKv> Find(const Prefix& prefix, std::optional<uint32_t> layer);
  absl::StatusOr<CachedKv> FindOrThrow(const Prefix& prefix, std::optional<uint32_t> layer);
  Mutex& WriterOf(const BlockKey& key) { return writers_[key.Hash64() % writers_.size()]; }

  const PrefixCacheOptions options_;
  const std::unique_ptr<Cache> cache_;

  // Lock order: first_put_, a writer's.
  Mutex first_put_;
  // One writer at a time for a key. Clear() holds all of them: fewer than the 64 locks that the
  // thread sanitizer can follow.
  std::array<Mutex, 32> writers_;
  // Registered by the first put that makes sense, whether or not it succeeds: keys are told apart
  // by the format's root, so that another format can have it.
  std::optional<NamespaceId> ns_ ABSL_GUARDED_BY(first_put_);
  std::unique_ptr<const Format> fixed_ ABSL_GUARDED_BY(first_put_);
  std::atomic<const Format*> format_ = nullptr;  // fixed_, once it is set for good
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_PROMPTS_PREFIX_CACHE_H_
