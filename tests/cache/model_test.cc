// Cache against ReferenceCache, operation by operation. KVCACHE_SEED=n runs one seed alone.
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lfu/lfu.h"
#include "kvcache/eviction/lru/lru.h"
#include "kvcache/eviction/ttl/ttl.h"
#include "kvcache/tests/cache/content.h"
#include "kvcache/tests/cache/random.h"
#include "kvcache/tests/cache/reference_cache.h"

namespace kvcache {
namespace {

#ifdef __SANITIZE_THREAD__
constexpr uint64_t kSeeds = 5;  // slow, and there is only one thread
#else
constexpr uint64_t kSeeds = 200;
#endif
constexpr int kOperations = 5000;  // for each seed
constexpr size_t kHistory = 30;

constexpr uint32_t kChains = 8;
constexpr uint32_t kDepth = 5;
constexpr uint32_t kKeys = kChains * kDepth;
constexpr uint32_t kNamespaces = 3;
constexpr size_t kBlock = 240;  // charged as 256, so that cpu_ram is never fragmented

using Order = ReferenceCache::Order;
using Handle = ReferenceCache::Handle;

std::unique_ptr<EvictionPolicy> CreatePolicy(Order order) {
  switch (order) {
    case Order::kLru:
      return CreateLruPolicy();
    case Order::kLfu:
      return CreateLfuPolicy();
    case Order::kTtl:
      return CreateTtlPolicy();
  }
  return nullptr;
}

// Key 5c + d is block d of prompt c. Prompts 3 to 7 share blocks 0 and 1 with an earlier prompt of
// their namespace.
uint32_t ChainOf(uint32_t key) { return key / kDepth; }
NamespaceId NamespaceOf(uint32_t key) {
  return static_cast<NamespaceId>(ChainOf(key) % kNamespaces);
}
std::vector<uint32_t> Prompt(uint32_t chain) {
  std::vector<uint32_t> keys;
  for (uint32_t depth = 0; depth < kDepth; ++depth) {
    const bool shared = chain >= kNamespaces && depth < 2;
    keys.push_back((shared ? chain % kNamespaces : chain) * kDepth + depth);
  }
  return keys;
}
std::optional<uint32_t> ParentOf(uint32_t key) {
  const uint32_t depth = key % kDepth;
  if (depth == 0) return std::nullopt;
  return Prompt(ChainOf(key))[depth - 1];
}

struct CounterName {
  uint64_t CacheCounters::*field;
  const char* name;
};
// Those that do not depend on when expired blocks are removed.
constexpr CounterName kCounters[] = {
    {&CacheCounters::request_lookups, "request_lookups"},
    {&CacheCounters::request_hits, "request_hits"},
    {&CacheCounters::block_lookups, "block_lookups"},
    {&CacheCounters::block_hits, "block_hits"},
    {&CacheCounters::block_pending, "block_pending"},
    {&CacheCounters::layer_lookups, "layer_lookups"},
    {&CacheCounters::layer_hits, "layer_hits"},
    {&CacheCounters::layer_pending, "layer_pending"},
    {&CacheCounters::tokens_looked_up, "tokens_looked_up"},
    {&CacheCounters::tokens_found, "tokens_found"},
    {&CacheCounters::tokens_loaded, "tokens_loaded"},
    {&CacheCounters::blocks_written, "blocks_written"},
    {&CacheCounters::evictions, "evictions"},
    {&CacheCounters::evicted_before_reuse, "evicted_before_reuse"},
    {&CacheCounters::evicted_before_copied, "evicted_before_copied"},
    {&CacheCounters::replaced, "replaced"},
    {&CacheCounters::rejected_too_large, "rejected_too_large"},
    {&CacheCounters::rejected_pinned, "rejected_pinned"},
    {&CacheCounters::rejected_fragmented, "rejected_fragmented"},
    {&CacheCounters::rejected_by_policy, "rejected_by_policy"},
    {&CacheCounters::bytes_written, "bytes_written"},
    {&CacheCounters::bytes_read, "bytes_read"},
};

class Comparison {
 public:
  Comparison(Order order, uint64_t seed) : random_(seed), seed_(seed) {
    stores_bytes_ = random_.Chance(60);
    prompt_expiry_ = random_.Chance(50);
    priorities_ = random_.Chance(50);
    const size_t capacity = (3 + random_.Below(14)) * 256;
    auto backend = stores_bytes_ ? CreateCpuRamBackend({.capacity_bytes = 20 * 256})
                                 : CreateAccountingBackend({.capacity_bytes = 20 * 256});
    EXPECT_TRUE(backend.ok()) << backend.status();
    CacheOptions options;
    options.capacity_bytes = capacity;
    options.max_blocks = random_.Chance(20) ? 3 + random_.Below(8) : 64;
    options.clock = &clock_;
    if (random_.Chance(50)) options.default_ttl = absl::Milliseconds(100);
    model_ = std::make_unique<ReferenceCache>(
        ReferenceCache::Options{.order = order,
                                .capacity_bytes = capacity,
                                .backend_capacity_bytes = 20 * 256,
                                .alignment = (*backend)->traits().alignment,
                                .max_blocks = *options.max_blocks,
                                .default_ttl = options.default_ttl,
                                .namespaces = kNamespaces,
                                .clock = &clock_});
    auto cache = Cache::Create(options, *std::move(backend), CreatePolicy(order));
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    for (uint32_t id = 1; id < kNamespaces; ++id) {
      const KvLayout layout = {.dtype = DType::kF16, .layers = 1, .kv_heads = 1, .head_dim = 8};
      const auto ns = cache_->Register(
          {.model = absl::StrCat("m", id), .shard = Shard::Whole(1, 1), .layout = layout});
      EXPECT_TRUE(ns.ok() && *ns == static_cast<NamespaceId>(id)) << ns.status();
    }
    for (uint32_t key = 0; key < kKeys; ++key) keys_.push_back(NumberedKey(key));
  }

  // Whether they agreed.
  bool Run() {
    for (operation_ = 0; operation_ < kOperations && agree_; ++operation_) {
      Operate();
      CompareStates();
    }
    while (agree_ && !reads_.empty()) ReleaseRead(0);
    while (agree_ && !writes_.empty()) EndWrite(0);
    if (agree_) {
      cache_->Clear();
      Check("bytes after Clear", cache_->stats().usage.bytes_in_use, size_t{0});
    }
    return agree_;
  }

 private:
  struct OpenRead {
    ReadLease lease;
    Handle block;
    std::optional<uint32_t> part;
  };
  struct OpenWrite {
    WriteLease lease;
    Handle block;
  };

  // --- Comparing

  template <typename... Words>
  void Log(const Words&... words) {
    history_[logged_++ % kHistory] = absl::StrCat(words...);
  }

  template <typename Real, typename Model>
  void Check(absl::string_view what, const Real& real, const Model& model) {
    if (real == model || !agree_) return;
    agree_ = false;
    ADD_FAILURE() << what << ": " << real << ", expected " << model << "\nKVCACHE_SEED=" << seed_
                  << ", operation " << operation_ << ", the last ones:\n"
                  << History();
  }
  void CheckCode(const absl::Status& real, const absl::Status& model) {
    Check("status", absl::StatusCodeToString(real.code()), absl::StatusCodeToString(model.code()));
    const bool miss = absl::IsNotFound(real) && model.message().empty();
    const bool quiet =
        miss || absl::IsUnavailable(real) || absl::IsAlreadyExists(real) || real.ok();
    Check("has a message", !real.message().empty(), !quiet);
  }

  std::string History() const {
    std::string text;
    for (size_t i = logged_ - std::min(logged_, kHistory); i < logged_; ++i) {
      absl::StrAppend(&text, "  ", history_[i % kHistory], "\n");
    }
    return text;
  }

  void CompareStates() {
    constexpr const char* kNames[] = {" complete ", " partial ", " pending ", " missing "};
    std::string real_blocks;
    std::string model_blocks;
    for (uint32_t key = 0; key < kKeys; ++key) {
      const LookupResult real = cache_->Lookup(keys_[key]);
      const LookupResult model = model_->Lookup(keys_[key]);
      if (real == model) continue;
      absl::StrAppend(&real_blocks, key, kNames[static_cast<int>(real)]);
      absl::StrAppend(&model_blocks, key, kNames[static_cast<int>(model)]);
    }
    Check("what is there", real_blocks, model_blocks);
    const bool drained = prompt_expiry_ || random_.Chance(5);
    if (drained) cache_->Drain();
    const CacheStats real = cache_->stats();
    const CacheStats model = model_->stats();
    Check("leases", real.leases, model.leases);
    Check("capacity", real.capacity_bytes, model.capacity_bytes);
    Check("longest_pinned", real.longest_pinned, model.longest_pinned);
    Check("over capacity", real.usage.bytes_in_use > real.capacity_bytes, false);
    Check("peak below use", real.peak_bytes < real.usage.bytes_in_use, false);
    Check("namespaces", real.namespaces.size(), model.namespaces.size());
    for (size_t i = 0; i < model.namespaces.size() && agree_; ++i) {
      CompareCounters(real.namespaces[i].counters, model.namespaces[i].counters, drained);
      if (drained) CompareUsage(real.namespaces[i].usage, model.namespaces[i].usage);
    }
    CompareCounters(real.counters, model.counters, drained);
    if (drained) CompareUsage(real.usage, model.usage);
  }

  void CompareCounters(const CacheCounters& real, const CacheCounters& model, bool drained) {
    for (const CounterName& counter : kCounters) {
      Check(counter.name, real.*counter.field, model.*counter.field);
    }
    const absl::Duration difference = real.compute_saved - model.compute_saved;
    // The cache keeps the cost of a block in 24 bits.
    Check("compute_saved differs", absl::AbsDuration(difference) > absl::Microseconds(2), false);
    if (!drained) return;
    // Which of them, if a block expires and loses its parent before it is removed, is left open.
    Check("removed", real.erased + real.expirations + real.failed_writes,
          model.erased + model.expirations + model.failed_writes);
    if (prompt_expiry_) Check("failed_writes", real.failed_writes, model.failed_writes);
    if (prompt_expiry_) Check("erased", real.erased, model.erased);
  }

  void CompareUsage(const CacheUsage& real, const CacheUsage& model) {
    Check("bytes_in_use", real.bytes_in_use, model.bytes_in_use);
    Check("bytes_detached", real.bytes_detached, model.bytes_detached);
    Check("blocks", real.blocks, model.blocks);
    Check("blocks_complete", real.blocks_complete, model.blocks_complete);
  }

  // --- Choosing

  uint32_t AnyKey() { return random_.Below(kKeys); }

  // Mostly of a block that is missing and has its parent.
  uint32_t KeyToPut() {
    if (random_.Chance(20)) return AnyKey();
    for (uint32_t key : Prompt(random_.Below(kChains))) {
      if (model_->Lookup(keys_[key]) != LookupResult::kHit) return key;
    }
    return AnyKey();
  }

  BlockSize SizeOf(uint32_t key) {
    if (random_.Chance(1)) {
      return {random_.Below(3) * 5120 + random_.Below(2), random_.Below(4)};
    }
    constexpr std::array<uint32_t, 4> kParts = {1, 2, 3, 4};
    const uint32_t parts = kParts[random_.Chance(3) ? random_.Below(4) : key % 4];
    return {stores_bytes_ ? kBlock : 12 * (1 + (key * 7 + random_.Chance(3)) % 50), parts};
  }

  PutOptions OptionsOf(uint32_t key) {
    PutOptions options;
    options.ns = NamespaceOf(key);
    const std::optional<uint32_t> parent = random_.Chance(3) ? AnyKey() : ParentOf(key);
    if (parent.has_value() && !random_.Chance(3)) options.parent = keys_[*parent];
    if (random_.Chance(60)) options.ttl = absl::Milliseconds(1 + random_.Below(200));
    if (random_.Chance(1)) options.ttl = absl::ZeroDuration();
    if (random_.Chance(1)) options.ttl = absl::InfiniteDuration();
    if (random_.Chance(1)) options.ns = static_cast<NamespaceId>(kNamespaces);
    if (priorities_ && random_.Chance(40)) {
      options.priority = static_cast<uint16_t>(50 * random_.Below(3) + random_.Chance(1));
    }
    if (random_.Chance(50)) options.keep_priority_for = absl::Milliseconds(1 + random_.Below(100));
    options.recompute_cost =
        absl::Milliseconds(random_.Chance(1) ? -1 : static_cast<int>(random_.Below(100)));
    return options;
  }

  std::string Describe(uint32_t key, BlockSize size, const PutOptions& options) {
    std::string parent = "none";
    for (uint32_t i = 0; i < kKeys; ++i) {
      if (options.parent == keys_[i]) parent = absl::StrCat(i);
    }
    return absl::StrCat(key, " of ", size.bytes, "/", size.parts, " below ", parent, " ttl ",
                        options.ttl.has_value() ? absl::FormatDuration(*options.ttl) : "default",
                        " priority ", options.priority, " for ",
                        absl::FormatDuration(options.keep_priority_for));
  }

  std::vector<uint32_t> AnyPrompt() {
    std::vector<uint32_t> prompt = Prompt(random_.Below(kChains));
    if (random_.Chance(30)) prompt.resize(1 + random_.Below(kDepth));
    if (random_.Chance(5)) prompt.erase(prompt.begin());
    if (random_.Chance(2)) prompt.clear();
    if (random_.Chance(2) && !prompt.empty()) prompt.back() = AnyKey();
    return prompt;
  }
  std::vector<BlockKey> KeysOf(const std::vector<uint32_t>& numbers) {
    std::vector<BlockKey> keys;
    for (uint32_t number : numbers) keys.push_back(keys_[number]);
    return keys;
  }
  Chain ChainOfKeys(const std::vector<uint32_t>& numbers, absl::Span<const BlockKey> keys) {
    return {.ns = numbers.empty() ? NamespaceId::kDefault : NamespaceOf(numbers.front()),
            .keys = keys,
            .tokens_per_block = 16,
            .tokens = static_cast<uint32_t>(keys.size() * 16 - (keys.empty() ? 0 : 3))};
  }

  // --- Doing

  void Operate() {
    if (reads_.size() > 5) ReleaseRead(random_.Below(reads_.size()));
    if (writes_.size() > 2) EndWrite(random_.Below(writes_.size()));
    const uint32_t kind = random_.Below(1000);
    if (kind < 130) return Reserve();
    if (kind < 150) return ReserveMany();
    if (kind < 260) return writes_.empty() ? Reserve() : CommitPart(random_.Below(writes_.size()));
    if (kind < 340) return writes_.empty() ? Reserve() : EndWrite(random_.Below(writes_.size()));
    if (kind < 460) return Put();
    if (kind < 500) return PutMany();
    if (kind < 620) return Get();
    if (kind < 660) return GetMany();
    if (kind < 700) return ReadInto();
    if (kind < 790) return Match();
    if (kind < 810) return LookupPrefix();
    if (kind < 890) return reads_.empty() ? Get() : ReleaseRead(random_.Below(reads_.size()));
    if (kind < 900) return Erase();
    if (kind < 902) return EraseNamespace();
    if (kind < 903) return Clear();
    if (kind < 925) return Extend();
    if (kind < 935) return Resize();
    if (kind < 990) return Advance();
    Log("Drain");
    cache_->Drain();
  }

  void Advance() {
    const absl::Duration by = absl::Milliseconds(random_.Below(20));
    Log("Advance ", absl::FormatDuration(by));
    clock_.Advance(by);
    if (prompt_expiry_) cache_->Drain();
  }

  void Opened(absl::StatusOr<WriteLease> real, const absl::StatusOr<Handle>& model) {
    CheckCode(real.status(), model.status());
    if (!real.ok() || !model.ok()) return;
    Check("size", real->size(), (*model)->size.bytes);
    Check("parts", real->parts(), (*model)->size.parts);
    for (uint32_t part = 0; part < real->parts() && agree_; ++part) {
      Check("committed", real->committed(part), (*model)->committed[part]);
    }
    writes_.push_back({*std::move(real), *model});
  }

  void Reserve() {
    const uint32_t key = KeyToPut();
    const BlockSize size = SizeOf(key);
    const PutOptions options = OptionsOf(key);
    Log("Reserve ", Describe(key, size, options));
    Opened(cache_->Reserve(keys_[key], size, options), model_->Reserve(keys_[key], size, options));
  }

  void ReserveMany() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    if (prompt.empty()) return;
    const std::vector<BlockKey> keys = KeysOf(prompt);
    const Chain chain = ChainOfKeys(prompt, keys);
    const BlockSize size = SizeOf(prompt[0]);
    PutOptions options = OptionsOf(prompt[0]);
    Log("ReserveMany ", absl::StrJoin(prompt, " "), ": ", Describe(prompt[0], size, options));
    std::vector<absl::StatusOr<WriteLease>> real(keys.size());
    const size_t written = cache_->ReserveMany(chain, {size}, options, absl::MakeSpan(real));
    options.ns = chain.ns;
    for (size_t i = 0; i < keys.size() && agree_; ++i) {
      const absl::StatusOr<Handle> model = model_->Reserve(keys[i], size, options);
      Check("results", i < written, true);
      Opened(std::move(real[i]), model);
      options.parent = keys[i];
      if (model.ok() || absl::IsAlreadyExists(model.status()) ||
          absl::IsUnavailable(model.status())) {
        continue;
      }
      Check("results", written, i + 1);
      break;
    }
  }

  // Parts are written just before their commit, so that what is visible too early is wrong.
  void WritePart(OpenWrite& write, uint32_t part) {
    if (!stores_bytes_) return;
    const size_t bytes = write.lease.size() / write.lease.parts();
    if (random_.Chance(50)) {
      return FillPart(write.block->key, part, {write.lease.part(part), bytes});
    }
    std::vector<std::byte> source(bytes);
    FillPart(write.block->key, part, absl::MakeSpan(source));
    const size_t cut = random_.Below(bytes + 1);
    const std::array<ConstBytes, 2> pieces = {ConstBytes(source).first(cut),
                                              ConstBytes(source).subspan(cut)};
    const absl::Status written = write.lease.WritePart(part, pieces).Wait();
    if (write.block->state != ReferenceBlock::State::kGone) {
      Check("write", written, absl::OkStatus());
    }
  }

  void CommitPart(size_t i) {
    OpenWrite& write = writes_[i];
    const uint32_t part = random_.Below(write.lease.parts() + random_.Chance(2));
    const bool succeeds = !random_.Chance(5);
    Log("CommitPart ", part, " of ", write.block->key.bytes[8], succeeds ? "" : ", fails");
    const bool known = part < write.lease.parts() && write.block->committed[part];
    if (known) {
      Check("writing again", write.lease.WritePart(part, {}).Wait().ok(), false);
    } else if (part < write.lease.parts()) {
      WritePart(write, part);
    }
    const bool at_once = succeeds && random_.Chance(70);
    const absl::Status copied = succeeds ? absl::OkStatus() : absl::DataLossError("test");
    const absl::Status real = at_once
                                  ? write.lease.CommitPart(part)
                                  : write.lease.CommitAfter(part, Transfer::Completed({copied}));
    CompareEnd(write, real, model_->CommitPart(write.block, part, succeeds));
  }

  // When a block expires after it is complete, its lease may or may not learn of it.
  void CompareEnd(const OpenWrite& write, const absl::Status& real, const absl::Status& model) {
    const std::vector<bool>& committed = write.block->committed;
    const bool was_complete =
        std::find(committed.begin(), committed.end(), false) == committed.end();
    if (!prompt_expiry_ && was_complete && absl::IsAborted(model)) return;
    CheckCode(real, model);
  }

  void EndWrite(size_t i) {
    OpenWrite write = std::move(writes_[i]);
    writes_.erase(writes_.begin() + i);
    const uint32_t how = random_.Below(100);
    Log(how < 60 ? "Commit " : how < 85 ? "Suspend " : "Abort ", write.block->key.bytes[8]);
    absl::Status real;
    absl::Status model;
    if (how < 60) {
      for (uint32_t part = 0; part < write.lease.parts(); ++part) {
        if (!write.block->committed[part]) WritePart(write, part);
      }
      real = write.lease.Commit();
      model = model_->Commit(write.block);
    } else if (how < 85) {
      real = write.lease.Suspend();
      model = model_->Suspend(write.block);
    } else {
      if (how < 95) {
        write.lease.Abort();
      } else {
        write.lease = WriteLease();
      }
      model_->Abort(write.block);
    }
    Check("holds", write.lease.holds(), false);
    CompareEnd(write, real, model);
  }

  absl::Status ModelPut(const BlockKey& key, BlockSize size, size_t source_bytes,
                        const PutOptions& options) {
    if (source_bytes != size.bytes) return absl::InvalidArgumentError("");
    const absl::StatusOr<Handle> block = model_->Reserve(key, size, options, /*resume=*/false);
    return block.ok() ? model_->Commit(*block) : block.status();
  }

  std::vector<std::byte> SourceOf(uint32_t key, BlockSize size) {
    std::vector<std::byte> source(size.bytes + random_.Chance(2));
    if (size.parts > 0) FillBlock(keys_[key], size.parts, absl::MakeSpan(source));
    return source;
  }

  void Put() {
    const uint32_t key = KeyToPut();
    const BlockSize size = SizeOf(key);
    const PutOptions options = OptionsOf(key);
    const std::vector<std::byte> source = SourceOf(key, size);
    Log("Put ", Describe(key, size, options));
    CheckCode(cache_->Put(keys_[key], size, {ConstBytes(source)}, options),
              ModelPut(keys_[key], size, source.size(), options));
  }

  void PutMany() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    std::vector<std::vector<std::byte>> sources;
    std::vector<ConstBytes> pieces;
    std::vector<PutRequest> requests;
    for (uint32_t key : prompt) {
      const BlockSize size = SizeOf(key);
      sources.push_back(SourceOf(key, size));
      requests.push_back({.key = keys_[key], .size = size, .options = OptionsOf(key)});
    }
    for (const auto& source : sources) pieces.push_back(source);
    for (size_t i = 0; i < requests.size(); ++i) requests[i].source = {&pieces[i], 1};
    Log("PutMany ", absl::StrJoin(prompt, " "));
    const Transfer real = cache_->PutMany(requests);
    Check("done", real.Done(), true);
    Check("ops", real.size(), requests.size());
    std::vector<absl::StatusOr<Handle>> model;
    for (size_t i = 0; i < requests.size(); ++i) {
      model.push_back(sources[i].size() == requests[i].size.bytes
                          ? model_->Reserve(requests[i].key, requests[i].size, requests[i].options,
                                            /*resume=*/false)
                          : absl::InvalidArgumentError(""));
    }
    for (size_t i = 0; i < requests.size() && agree_; ++i) {
      CheckCode(real.result(i), model[i].ok() ? model_->Commit(*model[i]) : model[i].status());
    }
  }

  void CheckContent(const OpenRead& read) {
    if (!stores_bytes_ || !agree_) return;
    const ConstBytes bytes(read.lease.data(), read.lease.size());
    const bool right = read.part.has_value() ? IsPart(read.block->key, *read.part, bytes)
                                             : IsBlock(read.block->key, read.lease.parts(), bytes);
    Check("bytes are right", right, true);
  }

  void Hit(ReadLease real, const Handle& model, std::optional<uint32_t> part, uint32_t keep) {
    Check("size", real.size(),
          part.has_value() ? model->size.bytes / model->size.parts : model->size.bytes);
    Check("parts", real.parts(), part.has_value() ? 1 : model->size.parts);
    OpenRead read = {std::move(real), model, part};
    CheckContent(read);
    if (random_.Chance(keep)) {
      reads_.push_back(std::move(read));
    } else {
      model_->Release(model);
    }
  }

  void Get() {
    const uint32_t key = AnyKey();
    std::optional<uint32_t> part;
    if (random_.Chance(40)) part = random_.Below(5);
    Log("Get ", key, part.has_value() ? absl::StrCat(" part ", *part) : "");
    const NamespaceId ns = NamespaceOf(key);
    absl::StatusOr<ReadLease> real =
        part.has_value() ? cache_->GetPart(ns, keys_[key], *part) : cache_->Get(ns, keys_[key]);
    const absl::StatusOr<Handle> model = model_->GetMany(ns, {{{keys_[key], part}}})[0];
    CheckCode(real.status(), model.status());
    if (real.ok() && model.ok()) Hit(*std::move(real), *model, part, 40);
  }

  void GetMany() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    const std::vector<BlockKey> keys = KeysOf(prompt);
    std::vector<ReferenceCache::Wanted> wanted;
    for (const BlockKey& key : keys) wanted.push_back({key, std::nullopt});
    const NamespaceId ns = ChainOfKeys(prompt, keys).ns;
    Log("GetMany ", absl::StrJoin(prompt, " "));
    std::vector<ReadLease> real(keys.size());
    const size_t hits = cache_->GetMany(ns, keys, absl::MakeSpan(real));
    const auto model = model_->GetMany(ns, wanted);
    size_t model_hits = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      Check("holds", real[i].holds(), model[i].ok());
      model_hits += model[i].ok();
    }
    Check("hits", hits, model_hits);
    const bool at_once = random_.Chance(50);
    for (size_t i = 0; i < keys.size() && agree_; ++i) {
      if (!model[i].ok()) continue;
      if (at_once) {
        model_->Release(*model[i]);
      } else {
        Hit(std::move(real[i]), *model[i], std::nullopt, 30);
      }
    }
    cache_->Release(absl::MakeSpan(real));
  }

  void ReadInto() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    std::vector<std::vector<std::byte>> buffers(prompt.size());
    std::vector<MutableBytes> destinations(prompt.size());
    std::vector<ReadRequest> requests;
    std::vector<ReferenceCache::Wanted> wanted;
    const NamespaceId ns = prompt.empty() ? NamespaceId::kDefault : NamespaceOf(prompt[0]);
    for (size_t i = 0; i < prompt.size(); ++i) {
      const uint32_t key = prompt[i];
      std::optional<uint32_t> part;
      if (random_.Chance(40)) part = random_.Below(key % 4 + 1);
      buffers[i].resize(kBlock / (part.has_value() ? key % 4 + 1 : 1));
      destinations[i] = absl::MakeSpan(buffers[i]);
      requests.push_back(
          {.ns = ns, .key = keys_[key], .destination = {&destinations[i], 1}, .part = part});
      wanted.push_back({keys_[key], part, buffers[i].size()});
    }
    Log("ReadInto ", absl::StrJoin(prompt, " "));
    const Transfer real = cache_->ReadInto(requests);
    Check("done", real.Done(), true);
    Check("ops", real.size(), requests.size());
    const auto model = model_->GetMany(ns, wanted);
    for (size_t i = 0; i < requests.size() && agree_; ++i) {
      absl::Status expected = model[i].status();
      if (model[i].ok()) {
        const Handle& block = *model[i];
        model_->Release(block);
        model_->CountRead(ns, buffers[i].size());
        if (!stores_bytes_) expected = absl::FailedPreconditionError("");
        if (expected.ok()) {
          Check("bytes are right",
                wanted[i].part.has_value() ? IsPart(block->key, *wanted[i].part, buffers[i])
                                           : IsBlock(block->key, block->size.parts, buffers[i]),
                true);
        }
      }
      CheckCode(real.result(i), expected);
    }
  }

  void Match() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    const std::vector<BlockKey> keys = KeysOf(prompt);
    const Chain chain = ChainOfKeys(prompt, keys);
    Log("Match ", absl::StrJoin(prompt, " "));
    PrefixMatch real = cache_->Match(chain);
    const ReferenceCache::PrefixHit model = model_->Match(chain);
    Check("blocks", real.blocks.size(), model.blocks.size());
    Check("tokens", real.tokens, model.tokens);
    Check("end", static_cast<int>(real.end), static_cast<int>(model.end));
    for (size_t i = 0; i < model.blocks.size() && agree_; ++i) {
      Hit(std::move(real.blocks[i]), model.blocks[i], std::nullopt, 20);
    }
  }

  void LookupPrefix() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    const std::vector<BlockKey> keys = KeysOf(prompt);
    const Chain chain = ChainOfKeys(prompt, keys);
    Log("LookupPrefix ", absl::StrJoin(prompt, " "));
    Check("prefix", cache_->LookupPrefix(chain), model_->LookupPrefix(chain));
  }

  void ReleaseRead(size_t i) {
    Log("Release ", reads_[i].block->key.bytes[8]);
    CheckContent(reads_[i]);
    model_->Release(reads_[i].block);
    reads_.erase(reads_.begin() + i);
  }

  void Erase() {
    const uint32_t key = AnyKey();
    Log("Erase ", key);
    Check("erased", cache_->Erase(keys_[key]), model_->Erase(keys_[key]));
  }

  void EraseNamespace() {
    const auto ns = static_cast<NamespaceId>(random_.Below(kNamespaces));
    Log("EraseNamespace ", static_cast<int>(ns));
    if (!prompt_expiry_) cache_->Drain();
    Check("erased", cache_->EraseNamespace(ns), model_->EraseNamespace(ns));
  }

  void Clear() {
    Log("Clear");
    cache_->Clear();
    for (uint32_t ns = 0; ns < kNamespaces; ++ns) {
      model_->EraseNamespace(static_cast<NamespaceId>(ns));
    }
  }

  void Extend() {
    const std::vector<uint32_t> prompt = AnyPrompt();
    const std::vector<BlockKey> keys = KeysOf(prompt);
    const Chain chain = ChainOfKeys(prompt, keys);
    const absl::Duration ttl = absl::Milliseconds(random_.Below(150));
    Log("Extend ", absl::StrJoin(prompt, " "), " by ", absl::FormatDuration(ttl));
    const absl::StatusOr<size_t> real = cache_->Extend(chain, ttl);
    const absl::StatusOr<size_t> model = model_->Extend(chain, ttl);
    CheckCode(real.status(), model.status());
    if (real.ok() && model.ok()) Check("extended", *real, *model);
  }

  void Resize() {
    const size_t capacity = random_.Below(22) * 256 + random_.Below(256);
    Log("Resize ", capacity);
    CheckCode(cache_->Resize(capacity), model_->Resize(capacity));
  }

  Random random_;
  const uint64_t seed_;
  bool stores_bytes_;
  bool prompt_expiry_;  // expired blocks are removed whenever the clock has moved
  bool priorities_;     // some blocks have one
  ManualClock clock_;
  std::vector<BlockKey> keys_;
  std::unique_ptr<ReferenceCache> model_;
  std::unique_ptr<Cache> cache_;
  std::vector<OpenRead> reads_;  // before the cache, in the order of destruction
  std::vector<OpenWrite> writes_;

  bool agree_ = true;
  int operation_ = 0;
  std::array<std::string, kHistory> history_;
  size_t logged_ = 0;
};

void Compare(Order order) {
  const std::optional<uint64_t> only = SeedFromEnvironment();
  for (uint64_t seed = only.value_or(0); seed < only.value_or(kSeeds - 1) + 1; ++seed) {
    if (!Comparison(order, seed).Run()) return;
  }
}

TEST(ModelTest, CacheWithLruDoesWhatTheReferenceDoes) { Compare(Order::kLru); }
TEST(ModelTest, CacheWithLfuDoesWhatTheReferenceDoes) { Compare(Order::kLfu); }
TEST(ModelTest, CacheWithTtlDoesWhatTheReferenceDoes) { Compare(Order::kTtl); }

}  // namespace
}  // namespace kvcache
