#include "kvcache/core/prompts/prefix_cache.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/no_memory.h"

namespace kvcache {
namespace {

ConstBytes BytesOf(const KvTensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data), tensor.bytes()};
}

absl::Status CheckData(absl::string_view name, const KvTensor& tensor) {
  if (tensor.data == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, ": null data"));
  const size_t alignment = DTypeSize(tensor.dtype);
  const auto address = reinterpret_cast<uintptr_t>(tensor.data);
  if (alignment > 0 && address % alignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": the data of ", tensor.ToString(),
                                                   " is not aligned to ", alignment, " bytes"));
  }
  return absl::OkStatus();
}

bool SameShape(const KvTensor& a, const KvTensor& b) {
  return a.dtype == b.dtype && a.tokens == b.tokens && a.kv_heads == b.kv_heads &&
         a.head_dim == b.head_dim;
}

std::string RowOf(const KvLayout& layout) {
  return absl::StrCat(DTypeName(layout.dtype), " [tokens, ", layout.kv_heads, ", ", layout.head_dim,
                      "]");
}

absl::Status CheckShape(absl::string_view name, const KvTensor& tensor, const KvLayout& layout) {
  if (tensor.dtype == layout.dtype && tensor.kv_heads == layout.kv_heads &&
      tensor.head_dim == layout.head_dim) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": ", tensor.ToString(), ", but this cache holds ", RowOf(layout)));
}

}  // namespace

absl::StatusOr<BlockKey> Prefix::Key(const BlockKey& root) const {
  return text_.has_value() ? TextKey(root, *text_, extra_) : TokenBlockKey(root, tokens_, extra_);
}

std::string KvTensor::ToString() const {
  return absl::StrCat(DTypeName(dtype), " [", tokens, ", ", kv_heads, ", ", head_dim, "]");
}

// --- CachedKv

CachedKv::CachedKv(ReadLease lease, const KvTensor& shape)
    : lease_(std::move(lease)), first_k_(shape) {
  first_k_.data = lease_.data();
  first_k_.tokens = lease_.size() / lease_.parts() / (2 * shape.bytes());
}

LayerKv CachedKv::layer(uint32_t layer) const {
  KVCACHE_CHECK(layer < layers(), "layer ", layer, " of ", layers());
  LayerKv kv = {first_k_, first_k_};
  if (first_k_.data != nullptr) {
    const size_t bytes = first_k_.bytes();
    const auto* k = static_cast<const std::byte*>(first_k_.data) + 2 * bytes * layer;
    kv.k.data = k;
    kv.v.data = k + bytes;
  }
  return kv;
}

Transfer CachedKv::CopyTo(absl::Span<const LayerDestination> destinations, MemorySpace space,
                          Stream stream) const {
  return internal::WithoutThrowing(layers(),
                                   [&] { return CopyOrThrow(destinations, space, stream); });
}

Transfer CachedKv::CopyOrThrow(absl::Span<const LayerDestination> destinations, MemorySpace space,
                               Stream stream) const {
  const size_t tensor_bytes = lease_.size() / lease_.parts() / 2;
  absl::Status refused;
  if (destinations.size() != layers()) {
    refused = absl::InvalidArgumentError(
        absl::StrCat("destinations: ", destinations.size(), " layers, expected ", layers()));
  }
  std::vector<std::array<MutableBytes, 2>> pieces(destinations.size());
  std::vector<absl::Span<const MutableBytes>> parts(destinations.size());
  for (size_t i = 0; i < destinations.size(); ++i) {
    pieces[i] = {destinations[i].k, destinations[i].v};
    parts[i] = pieces[i];
    for (const MutableBytes& piece : pieces[i]) {
      if (!refused.ok() || piece.size() == tensor_bytes) continue;
      refused = absl::InvalidArgumentError(absl::StrCat("destinations[", i, "]: ", piece.size(),
                                                        " bytes, expected ", tensor_bytes, " for ",
                                                        layer(i).k.ToString()));
    }
  }
  if (!refused.ok()) return Transfer::Completed(layers(), std::move(refused));
  return lease_.ReadParts(parts, space, stream);
}

// --- PrefixCache

absl::StatusOr<std::unique_ptr<PrefixCache>> PrefixCache::Create(
    const PrefixCacheOptions& options, std::unique_ptr<StorageBackend> backend,
    std::unique_ptr<EvictionPolicy> policy) {
  if (options.layers == 0 || options.layers > kMostParts) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "layers: ", options.layers,
                           ", expected from 1 to ", kMostParts);
  }
  absl::StatusOr<std::unique_ptr<Cache>> cache =
      Cache::Create(options.cache, std::move(backend), std::move(policy));
  if (!cache.ok()) return cache.status();
  return internal::WithoutThrowing([&]() -> absl::StatusOr<std::unique_ptr<PrefixCache>> {
    return absl::WrapUnique(new PrefixCache(options, *std::move(cache)));
  });
}

absl::Status PrefixCache::CheckLayer(uint32_t layer) const {
  if (layer < options_.layers) return absl::OkStatus();
  return internal::Error(absl::StatusCode::kInvalidArgument, "layer: ", layer,
                         ", expected less than the number of layers, ", options_.layers);
}

absl::StatusOr<PrefixCache::Format> PrefixCache::FormatOf(const KvTensor& tensor) {
  Format format;
  format.layout = {.dtype = tensor.dtype,
                   .layers = options_.layers,
                   .kv_heads = tensor.kv_heads,
                   .head_dim = tensor.head_dim};
  absl::StatusOr<BlockKey> root = RootKey(NamespaceOf(format.layout));
  if (!root.ok()) return root.status();
  format.token = {nullptr, tensor.dtype, 1, tensor.kv_heads, tensor.head_dim};
  format.root = *root;
  return format;
}

Namespace PrefixCache::NamespaceOf(const KvLayout& layout) const {
  return {.model = options_.model,
          .revision = options_.revision,
          .adapter = options_.adapter,
          .tenant = options_.tenant,
          .shard = Shard::Whole(options_.layers, layout.kv_heads),
          .layout = layout};
}

absl::Status PrefixCache::CacheKv(const Prefix& prefix, uint32_t layer, const KvTensor& k,
                                  const KvTensor& v, const PrefixPutOptions& options) {
  if (absl::Status status = CheckLayer(layer); !status.ok()) return status;
  const Written written = {layer, {k, v}};
  return Put(prefix, {&written, 1}, options);
}

absl::Status PrefixCache::CacheAllLayers(const Prefix& prefix, absl::Span<const LayerKv> layers,
                                         const PrefixPutOptions& options) {
  if (layers.size() != options_.layers) {
    return internal::Error(absl::StatusCode::kInvalidArgument, "layers: ", layers.size(),
                           ", expected ", options_.layers);
  }
  return internal::WithoutThrowing([&] {
    std::vector<Written> written;
    written.reserve(layers.size());
    for (const LayerKv& kv : layers) {
      written.push_back({static_cast<uint32_t>(written.size()), kv});
    }
    return Put(prefix, written, options);
  });
}

absl::Status PrefixCache::Put(const Prefix& prefix, absl::Span<const Written> layers,
                              const PrefixPutOptions& options) {
  return internal::WithoutThrowing([&] { return PutOrThrow(prefix, layers, options); });
}

absl::Status PrefixCache::PutOrThrow(const Prefix& prefix, absl::Span<const Written> layers,
                                     const PrefixPutOptions& options) {
  if (const Format* fixed = format()) return PutAs(*fixed, prefix, layers, options);
  MutexLock first_put(first_put_);
  if (const Format* fixed = format()) return PutAs(*fixed, prefix, layers, options);
  absl::StatusOr<Format> candidate = FormatOf(layers.front().kv.k);
  if (!candidate.ok()) return candidate.status();
  // Before the namespace is registered: a put that makes no sense leaves none behind.
  absl::StatusOr<Target> target = Check(*candidate, prefix, layers);
  if (!target.ok()) return target.status();
  if (!ns_.has_value()) {
    absl::StatusOr<NamespaceId> ns = cache_->Register(NamespaceOf(candidate->layout));
    if (!ns.ok()) return ns.status();
    ns_ = *ns;
  }
  candidate->ns = *ns_;
  auto fixed = std::make_unique<const Format>(*std::move(candidate));
  absl::Status status = PutAs(*fixed, prefix, layers, options);
  if (!status.ok()) return status;
  fixed_ = std::move(fixed);
  format_.store(fixed_.get(), std::memory_order_release);
  return absl::OkStatus();
}

absl::StatusOr<PrefixCache::Target> PrefixCache::Check(const Format& format, const Prefix& prefix,
                                                       absl::Span<const Written> layers) const {
  const KvTensor& first = layers.front().kv.k;
  for (const Written& layer : layers) {
    for (const auto& [name, tensor] : {std::pair("k", &layer.kv.k), std::pair("v", &layer.kv.v)}) {
      const std::string where = absl::StrCat(name, " of layer ", layer.layer);
      if (absl::Status status = CheckShape(where, *tensor, format.layout); !status.ok()) {
        return status;
      }
      if (!SameShape(*tensor, first)) {
        return absl::InvalidArgumentError(absl::StrCat(where, ": ", tensor->ToString(),
                                                       ", but k of layer ", layers.front().layer,
                                                       " is ", first.ToString()));
      }
      if (absl::Status status = CheckData(where, *tensor); !status.ok()) return status;
    }
  }
  absl::StatusOr<size_t> bytes = format.layout.BlockBytes(first.tokens);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<BlockKey> key = prefix.Key(format.root);
  if (!key.ok()) return key.status();
  return Target{*key, {*bytes, options_.layers}};
}

absl::Status PrefixCache::PutAs(const Format& format, const Prefix& prefix,
                                absl::Span<const Written> layers, const PrefixPutOptions& options) {
  absl::StatusOr<Target> target = Check(format, prefix, layers);
  if (!target.ok()) return target.status();
  PutOptions put;
  put.ns = format.ns;
  put.ttl = options.ttl;
  put.recompute_cost = options.recompute_cost;
  MutexLock writer(WriterOf(target->key));
  absl::Status status = Write(format, *target, layers, put);
  // The layers that were there have expired meanwhile: without them it is a first put.
  if (absl::IsAborted(status)) status = Write(format, *target, layers, put);
  return status;
}

absl::Status PrefixCache::Write(const Format& format, const Target& target,
                                absl::Span<const Written> layers, const PutOptions& options) {
  const bool all = layers.size() == options_.layers;
  std::vector<bool> committed(options_.layers);
  ReadLease old = cache_->PinForReplacement(target.key, &committed);
  if (old.holds() && !all && old.size() != target.size.bytes) {
    const CachedKv other(std::move(old), format.token);
    return absl::InvalidArgumentError(
        absl::StrCat("k of layer ", layers.front().layer, ": ", layers.front().kv.k.ToString(),
                     ", but the prefix has ", other.tokens(), " tokens"));
  }
  const bool replaces = old.holds() && (all || committed[layers.front().layer]);
  if (!replaces) old.Release();
  const auto reserve = [&] {
    return replaces ? cache_->ReserveReplacement(target.key, target.size, options)
                    : cache_->Reserve(target.key, target.size, options);
  };
  absl::StatusOr<WriteLease> lease = reserve();
  // As long as the old entry is pinned, it is not evicted for a put that fails.
  if (all && old.holds() && absl::IsResourceExhausted(lease.status())) {
    old.Release();
    lease = reserve();
  }
  if (!lease.ok()) return lease.status();
  for (const Written& layer : layers) {
    const absl::Status copied =
        lease->WritePart(layer.layer, {BytesOf(layer.kv.k), BytesOf(layer.kv.v)}).Wait();
    if (!copied.ok()) return copied;
  }
  if (all) return lease->Commit();
  if (replaces) {
    absl::Status copied = CopyOtherLayers(old, committed, layers.front().layer, *lease);
    if (!copied.ok()) return copied;
  }
  absl::Status status = lease->CommitPart(layers.front().layer);
  return status.ok() ? lease->Suspend() : status;
}

absl::Status PrefixCache::CopyOtherLayers(const ReadLease& old, const std::vector<bool>& committed,
                                          uint32_t except, WriteLease& lease) {
  const size_t bytes = old.size() / old.parts();
  const BackendTraits& traits = cache_->backend_traits();
  std::vector<std::byte> buffer(traits.addressable ? 0 : bytes);
  for (uint32_t layer = 0; layer < options_.layers; ++layer) {
    if (layer == except || !committed[layer]) continue;
    ConstBytes source(old.part(layer), bytes);
    if (!traits.addressable) {
      const MutableBytes destination = absl::MakeSpan(buffer);
      const absl::Status read = old.ReadPart(layer, {destination}).Wait();
      if (IsMediumFault(read)) continue;  // lost; the others are not
      if (!read.ok()) return read;
      source = buffer;
    }
    const MemorySpace space = traits.addressable ? traits.memory_space : MemorySpace();
    absl::Status status = lease.WritePart(layer, {source}, space).Wait();
    // What was copied must be what was put.
    if (status.ok() && !lease.SameBytes(layer, old)) {
      old.VerifyPart(layer).IgnoreError();  // drops what is left of the old block
      continue;
    }
    if (status.ok()) status = lease.CommitPart(layer);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<CachedKv> PrefixCache::Find(const Prefix& prefix, std::optional<uint32_t> layer) {
  return internal::WithoutThrowing([&] { return FindOrThrow(prefix, layer); });
}

absl::StatusOr<CachedKv> PrefixCache::FindOrThrow(const Prefix& prefix,
                                                  std::optional<uint32_t> layer) {
  if (layer.has_value()) {
    if (absl::Status status = CheckLayer(*layer); !status.ok()) return status;
  }
  const Format* fixed = format();
  // Before the first put: nothing is there, but an empty prefix is still refused.
  absl::StatusOr<BlockKey> key = prefix.Key(fixed != nullptr ? fixed->root : BlockKey());
  if (!key.ok()) return key.status();
  const NamespaceId ns = fixed != nullptr ? fixed->ns : NamespaceId::kDefault;
  absl::StatusOr<ReadLease> lease =
      layer.has_value() ? cache_->GetPart(ns, *key, *layer) : cache_->Get(ns, *key);
  if (!lease.ok()) return lease.status();
  return CachedKv(*std::move(lease), fixed->token);
}

absl::StatusOr<CachedKv> PrefixCache::GetCachedKv(const Prefix& prefix, uint32_t layer) {
  return Find(prefix, layer);
}

absl::StatusOr<CachedKv> PrefixCache::GetAllLayers(const Prefix& prefix) {
  return Find(prefix, std::nullopt);
}

absl::StatusOr<Transfer> PrefixCache::LoadKv(const Prefix& prefix, uint32_t layer,
                                             const LayerDestination& destination, MemorySpace space,
                                             Stream stream) {
  absl::StatusOr<CachedKv> kv = GetCachedKv(prefix, layer);
  if (!kv.ok()) return kv.status();
  return kv->CopyTo({&destination, 1}, space, stream);
}

absl::StatusOr<Transfer> PrefixCache::LoadAllLayers(const Prefix& prefix,
                                                    absl::Span<const LayerDestination> destinations,
                                                    MemorySpace space, Stream stream) {
  absl::StatusOr<CachedKv> kv = GetAllLayers(prefix);
  if (!kv.ok()) return kv.status();
  return kv->CopyTo(destinations, space, stream);
}

bool PrefixCache::Evict(const Prefix& prefix) {
  const Format* fixed = format();
  if (fixed == nullptr) return false;
  const absl::StatusOr<BlockKey> key =
      internal::WithoutThrowing([&] { return prefix.Key(fixed->root); });
  if (!key.ok()) return false;
  MutexLock writer(WriterOf(*key));
  return cache_->Erase(*key);
}

// Waits for the writers: one that copies the layers of an old entry would bring them back.
void PrefixCache::Clear() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  for (Mutex& writer : writers_) writer.Lock();
  cache_->Clear();
  for (Mutex& writer : writers_) writer.Unlock();
}

}  // namespace kvcache
