#include "kvcache/bench/trace_replay/replay.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/trace_replay/payload.h"
#include "kvcache/core/base/manual_clock.h"
#include "kvcache/core/base/nanos.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache::bench {
namespace {

// Of a block that has no bytes: one unit of the backend.
constexpr size_t kUnitBytes = 64;

using Time = Payload::Clock::time_point;

absl::StatusOr<std::unique_ptr<StorageBackend>> MakeBackend(size_t blocks, size_t payload_bytes) {
  if (payload_bytes == 0) {
    return CreateAccountingBackend(
        {.capacity_bytes = blocks * kUnitBytes, .alignment = kUnitBytes});
  }
  const size_t charged = (payload_bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
  return CreateCpuRamBackend({.capacity_bytes = blocks * charged});
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsPermissionDenied(status);
}

// One trace through one cache.
class Replayer {
 public:
  Replayer(const Workload& workload, const ReplayOptions& options, Cache& cache, ManualClock& clock)
      : workload_(workload), options_(options), cache_(cache), clock_(clock) {
    put_.ttl = options.ttl;
    if (options.payload_bytes > 0) payload_.emplace(options.payload_bytes);
  }

  absl::StatusOr<ReplayResult> Run() {
    for (const TraceRequest& request : workload_.trace.requests) {
      clock_.Set(ToNanos(request.arrival));
      numbers_ = workload_.trace.BlocksOf(request);
      keys_.clear();
      for (uint32_t number : numbers_) keys_.push_back(workload_.keys[number]);
      const absl::StatusOr<size_t> prefix =
          options_.touch_order == TouchOrder::kForward ? AccessForward() : AccessChain();
      if (!prefix.ok()) {
        return absl::Status(prefix.status().code(),
                            absl::StrCat(workload_.trace.path, ": line ", request.line, ": ",
                                         prefix.status().message()));
      }
      result_.block_references += request.blocks;
      result_.prefix_hits += *prefix;
      result_.tokens += request.input_tokens;
      result_.token_hits += workload_.TokensIn(request, *prefix);
    }
    if (payload_.has_value()) result_.payload = payload_->result();
    return result_;
  }

 private:
  // Each returns how many leading blocks were there.

  absl::StatusOr<size_t> AccessForward() {
    const size_t prefix = cache_.LookupPrefix({.keys = keys_});
    // No hit evicts, so the leading ones are the same accesses one by one or at once. GetMany
    // touches from the last to the first.
    backwards_.assign(keys_.rend() - static_cast<ptrdiff_t>(prefix), keys_.rend());
    backwards_numbers_.assign(numbers_.rend() - static_cast<ptrdiff_t>(prefix), numbers_.rend());
    if (absl::Status s = GetAll(); !s.ok()) return s;
    for (size_t i = prefix; i < keys_.size(); ++i) {
      if (absl::Status s = Access(i); !s.ok()) return s;
    }
    return prefix;
  }

  absl::Status GetAll() {
    if (backwards_.empty()) return absl::OkStatus();
    const Time start = Now();
    if (leases_.size() < backwards_.size()) leases_.resize(backwards_.size());
    const auto leases = absl::MakeSpan(leases_).first(backwards_.size());
    result_.plain_hits += cache_.GetMany(NamespaceId::kDefault, backwards_, leases);
    absl::Status status;
    if (payload_.has_value()) status = payload_->Read(leases, backwards_numbers_, start);
    cache_.Release(leases);
    return status;
  }

  absl::Status Access(size_t i) {
    const Time start = Now();
    absl::StatusOr<ReadLease> hit = cache_.Get(NamespaceId::kDefault, keys_[i]);
    if (absl::IsNotFound(hit.status())) return Put(i);
    if (!hit.ok()) return hit.status();
    ++result_.plain_hits;
    if (!payload_.has_value()) return absl::OkStatus();
    return payload_->Read({&*hit, 1}, {&numbers_[i], 1}, start);
  }

  absl::Status Put(size_t i) {
    const Time start = Now();
    absl::StatusOr<WriteLease> block = cache_.Reserve(keys_[i], size(), put_);
    if (IsRefusal(block.status())) {
      ++result_.refused;
      return absl::OkStatus();
    }
    if (!block.ok()) return block.status();
    return Commit(*block, i, start);
  }

  absl::Status Commit(WriteLease& block, size_t i, Time start) {
    if (payload_.has_value()) payload_->Write(block, numbers_[i]);
    absl::Status status = block.Commit();
    if (payload_.has_value()) payload_->Wrote(start);
    return status;
  }

  absl::StatusOr<size_t> AccessChain() {
    const Time start = Now();
    PrefixMatch match = cache_.Match({.keys = keys_});
    const size_t prefix = match.blocks.size();
    result_.plain_hits += prefix;
    if (payload_.has_value()) {
      if (absl::Status s = payload_->Read(match.blocks, numbers_.first(prefix), start); !s.ok()) {
        return s;
      }
    }
    if (absl::Status s = PutChain(prefix); !s.ok()) return s;
    cache_.Release(absl::MakeSpan(match.blocks));
    return prefix;
  }

  // The blocks from the first missing one on, as far as there is room.
  absl::Status PutChain(size_t first) {
    put_.chain_blocks = static_cast<uint32_t>(keys_.size());
    put_.parent = first == 0 ? std::nullopt : std::make_optional(keys_[first - 1]);
    for (size_t i = first; i < keys_.size(); ++i) {
      const Time start = Now();
      absl::StatusOr<WriteLease> block = cache_.Reserve(keys_[i], size(), put_);
      if (block.ok()) {
        if (absl::Status s = Commit(*block, i, start); !s.ok()) return s;
      } else if (absl::IsAlreadyExists(block.status())) {
        ++result_.plain_hits;  // only in a trace whose ids do not name all that comes before
      } else if (IsRefusal(block.status())) {
        result_.refused += keys_.size() - i;
        break;
      } else {
        return block.status();
      }
      put_.parent = keys_[i];
    }
    return absl::OkStatus();
  }

  BlockSize size() const { return {payload_.has_value() ? options_.payload_bytes : kUnitBytes, 1}; }
  Time Now() const { return payload_.has_value() ? Payload::Clock::now() : Time(); }

  const Workload& workload_;
  const ReplayOptions& options_;
  Cache& cache_;
  ManualClock& clock_;
  PutOptions put_;
  ReplayResult result_;
  std::optional<Payload> payload_;

  // Of the request at hand.
  absl::Span<const uint32_t> numbers_;
  std::vector<BlockKey> keys_;
  std::vector<BlockKey> backwards_;  // the leading hits, from the last to the first
  std::vector<uint32_t> backwards_numbers_;
  std::vector<ReadLease> leases_;
};

}  // namespace

Workload Workload::Make(Trace trace, uint32_t tokens_per_block) {
  Workload workload;
  workload.tokens_per_block = tokens_per_block > 0 ? tokens_per_block : TokensPerBlock(trace);
  workload.keys.reserve(trace.unique_blocks);
  for (size_t number = 0; number < trace.unique_blocks; ++number) {
    workload.keys.push_back(*TextKey(BlockKey(), absl::StrCat("block ", number)));
  }
  workload.trace = std::move(trace);
  return workload;
}

uint64_t Workload::TokensIn(const TraceRequest& request, size_t blocks) const {
  const uint64_t tokens = request.input_tokens;
  if (blocks >= request.blocks) return blocks == 0 ? 0 : tokens;
  if (tokens_per_block == 0) return tokens * blocks / request.blocks;
  return std::min(tokens, uint64_t{blocks} * tokens_per_block);
}

absl::StatusOr<ReplayResult> Replay(const Workload& workload, const ReplayOptions& options) {
  if (options.capacity_blocks == 0 || options.capacity_blocks >= kNoSlot) {
    return absl::InvalidArgumentError(absl::StrCat("capacity_blocks: ", options.capacity_blocks,
                                                   ", expected from 1 to ", kNoSlot - 1));
  }
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy = MakePolicy(options.policy);
  if (!policy.ok()) return policy.status();
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
      MakeBackend(options.capacity_blocks, options.payload_bytes);
  if (!backend.ok()) return backend.status();
  ManualClock clock(0);
  CacheOptions cache_options;
  cache_options.max_blocks = options.capacity_blocks;
  cache_options.clock = &clock;
  cache_options.advice = options.advice;
  absl::StatusOr<std::unique_ptr<Cache>> cache =
      Cache::Create(cache_options, *std::move(backend), *std::move(policy));
  if (!cache.ok()) return cache.status();
  absl::StatusOr<ReplayResult> result = Replayer(workload, options, **cache, clock).Run();
  if (!result.ok()) return result.status();
  const CacheStats stats = (*cache)->stats();
  result->policy = options.policy;
  result->advice = stats.advice;
  result->capacity_blocks = options.capacity_blocks;
  result->evictions = stats.counters.evictions;
  result->expirations = stats.counters.expirations;
  result->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

uint64_t PossiblePrefixHits(const Trace& trace) {
  std::vector<bool> seen(trace.unique_blocks);
  uint64_t hits = 0;
  for (const TraceRequest& request : trace.requests) {
    const absl::Span<const uint32_t> blocks = trace.BlocksOf(request);
    for (size_t i = 0; i < blocks.size() && seen[blocks[i]]; ++i) ++hits;
    for (uint32_t block : blocks) seen[block] = true;
  }
  return hits;
}

absl::string_view Name(TouchOrder order) {
  return order == TouchOrder::kForward ? "forward" : "chain";
}

}  // namespace kvcache::bench
