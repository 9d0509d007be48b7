#include "kvcache/core/advice/advisor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvcache::internal {
namespace {

// So long a queue wakes the thread; so long, and the caller does its work.
constexpr size_t kWakesWorker = 2048;
constexpr size_t kLongestQueue = 65536;
// So many references go through one shadow before the next one takes over the processor's cache.
constexpr size_t kBatch = 256;

// The largest hash of a share of all.
uint64_t LastOf(double share) {
  constexpr double kAll = 18446744073709551616.0;
  return share >= 1 ? std::numeric_limits<uint64_t>::max() : static_cast<uint64_t>(share * kAll);
}

// Near numbers give far ones (the finalizer of SplitMix64).
uint64_t Spread(uint64_t number) {
  number += 0x9e3779b97f4a7c15;
  number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9;
  number = (number ^ number >> 27) * 0x94d049bb133111eb;
  return number ^ number >> 31;
}

}  // namespace

absl::Status Advisor::Check(const AdviceOptions& options, const EvictionPolicy& policy) {
  const auto& capacities = options.capacities;
  for (auto it = capacities.begin(); it != capacities.end(); ++it) {
    if (!(*it > 0) || *it > kMostTimesCapacity) {
      return absl::InvalidArgumentError(absl::StrCat("advice.capacities[", it - capacities.begin(),
                                                     "]: ", *it, ", expected more than 0, at most ",
                                                     kMostTimesCapacity));
    }
    if (std::find(capacities.begin(), it, *it) != it) {
      return absl::InvalidArgumentError(absl::StrCat("advice.capacities: ", *it, " twice"));
    }
  }
  std::vector<absl::string_view> names = {policy.name()};
  for (const auto& other : options.policies) {
    if (other == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("advice.policies[", names.size() - 1, "]: null"));
    }
    if (std::find(names.begin(), names.end(), other->name()) != names.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "advice.policies: ", other->name(), " twice, or the cache's own, which is always there"));
    }
    names.push_back(other->name());
  }
  if (capacities.empty() && !options.policies.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("advice.capacities: none, but advice.policies: ", options.policies.size()));
  }
  if (capacities.size() * names.size() > kMostAdvice) {
    return absl::InvalidArgumentError(
        absl::StrCat("advice: ", capacities.size(), " capacities under ", names.size(),
                     " policies, expected at most ", kMostAdvice, " in all"));
  }
  if (!(options.sampling_rate > 0) || options.sampling_rate > kHighestSamplingRate) {
    return absl::InvalidArgumentError(absl::StrCat("advice.sampling_rate: ", options.sampling_rate,
                                                   ", expected more than 0, at most ",
                                                   kHighestSamplingRate));
  }
  return absl::OkStatus();
}

Advisor::Advisor(const AdviceOptions& options, const EvictionPolicy& policy, size_t max_blocks,
                 size_t capacity_bytes, Nanos default_ttl)
    : rate_(options.sampling_rate),
      seed_(Spread(options.seed)),
      last_sampled_(LastOf(options.sampling_rate)),
      default_ttl_(default_ttl) {
  {
    MutexLock lock(mu_);
    last_put_.terms.ttl = default_ttl;
    capacity_ = capacity_bytes;
    std::vector<const EvictionPolicy*> policies = {&policy};
    for (const auto& other : options.policies) policies.push_back(other.get());
    size_t most_blocks = 0;
    for (const EvictionPolicy* kind : policies) {
      for (double times : options.capacities) {
        const size_t blocks = static_cast<size_t>(std::clamp(
            std::round(static_cast<double>(max_blocks) * times * rate_), 1.0, kNoSlot - 1.0));
        most_blocks = std::max(most_blocks, blocks);
        shadows_.push_back({times, std::make_unique<ShadowCache>(kind->CreateEmpty(), blocks,
                                                                 ScaledBytes(times))});
      }
    }
    known_.resize(8 * most_blocks);
    batch_.reserve(2 * kBatch);
    taken_.Reserve();
  }
  {
    MutexLock lock(queue_mu_);
    queue_.Reserve();
  }
  worker_ = std::thread([this] { WorkInBackground(); });
}

void Advisor::Queue::Reserve() {
  references.reserve(kLongestQueue + kWakesWorker);
  terms.reserve(references.capacity());
}

Advisor::~Advisor() {
  {
    MutexLock lock(queue_mu_);
    stopping_ = true;
    wake_.NotifyAll();
  }
  worker_.join();
}

size_t Advisor::ScaledBytes(double times_capacity) const {
  return static_cast<size_t>(
      std::min(static_cast<double>(capacity_) * times_capacity * rate_, 0x1p63));
}

void Advisor::AddOne(const BlockKey& key, size_t bytes, Nanos now) {
  size_t queued;
  {
    MutexLock lock(queue_mu_);
    queue_.Add({.key_hash = key.Hash64(),
                .now = now,
                .bytes = bytes,
                .kind = static_cast<uint64_t>(Reference::Kind::kLookup),
                .first = true,
                .depth = 0,
                .chain_blocks = 0});
    queued = queue_.references.size();
  }
  Added(1, queued);
}

void Advisor::Look(absl::Span<const BlockKey> keys, Reference::Kind kind, Nanos now,
                   absl::FunctionRef<size_t(size_t)> bytes_of) {
  constexpr size_t kShort = 256;
  std::unique_ptr<uint32_t[]> of_long;
  uint32_t of_short[kShort];
  if (keys.size() > kShort) of_long.reset(new (std::nothrow) uint32_t[keys.size()]);
  uint32_t* const found = keys.size() > kShort ? of_long.get() : of_short;
  if (found == nullptr) return;
  size_t count = 0;
  uint32_t i = 0;
  for (const BlockKey& key : keys) {  // no branch depends on a key
    found[count] = i++;
    count += Samples(key);
  }
  if (count == 0) return;
  const absl::Span<const uint32_t> sampled(found, count);
  size_t queued;
  {
    MutexLock lock(queue_mu_);
    for (uint32_t i : sampled) {
      queue_.Add({.key_hash = keys[i].Hash64(),
                  .now = now,
                  .bytes = bytes_of(i),
                  .kind = static_cast<uint64_t>(kind),
                  .first = i == sampled.front(),
                  .depth = i,
                  .chain_blocks = static_cast<uint32_t>(keys.size())});
    }
    queued = queue_.references.size();
  }
  Added(sampled.size(), queued);
}

void Advisor::Put(const BlockKey& key, size_t charged_bytes, const EntryInfo& incoming,
                  const PutOptions& options) {
  if (!Samples(key)) return;
  size_t queued;
  {
    MutexLock lock(queue_mu_);
    const Terms terms = {.ttl = options.ttl.has_value() ? ToNanos(*options.ttl) : default_ttl_,
                         .recompute_cost = static_cast<float>(incoming.recompute_cost)};
    queue_.Add({.key_hash = incoming.key_hash,
                .now = incoming.now,
                .bytes = charged_bytes,
                .kind = static_cast<uint64_t>(Reference::Kind::kPut),
                .first = true,
                .depth = incoming.depth,
                .chain_blocks = incoming.chain_blocks},
               &terms);
    queued = queue_.references.size();
  }
  Added(1, queued);
}

void Advisor::Added(size_t count, size_t queued) {
  if (queued < kWakesWorker) return;
  if (queued >= kLongestQueue) {
    MutexLock lock(mu_);
    WorkOff();
  } else if (queued - count < kWakesWorker) {
    wake_.NotifyAll();
  }
}

void Advisor::WorkOff() {
  taken_.references.clear();
  taken_.terms.clear();
  {
    MutexLock lock(queue_mu_);
    std::swap(taken_, queue_);
  }
  auto terms = taken_.terms.begin();
  batch_.clear();
  try {
    for (const Queued& queued : taken_.references) {
      if (queued.first && batch_.size() >= kBatch) SimulateBatch();
      const bool put = queued.kind == static_cast<uint64_t>(Reference::Kind::kPut);
      Learn(queued, put ? &*terms++ : nullptr);
    }
    SimulateBatch();
  } catch (const std::bad_alloc&) {  // for a long request; the rest is left out
  }
}

void Advisor::Learn(const Queued& queued, const Terms* terms) {
  BlockKey mixed;
  std::memcpy(mixed.bytes.data(), &queued.key_hash, sizeof(queued.key_hash));
  Reference reference = {.id = mixer_(mixed.bytes),
                         .key_hash = queued.key_hash,
                         .bytes = queued.bytes,
                         .now = queued.now,
                         .depth = queued.depth,
                         .chain_blocks = queued.chain_blocks,
                         .kind = static_cast<Reference::Kind>(queued.kind),
                         .first = static_cast<bool>(queued.first)};
  Known& of_key = known_[Spread(queued.key_hash) % known_.size()];
  if (terms != nullptr) {
    reference.matched = of_key.key_hash == queued.key_hash && of_key.matched;
    of_key = last_put_ = {queued.key_hash, reference.bytes, *terms};
  } else {
    ++sampled_.lookups;
    sampled_.hits += reference.bytes > 0;
    if (reference.kind == Reference::Kind::kMatch && reference.bytes == 0) {
      if (of_key.key_hash != queued.key_hash) {
        of_key = last_put_;
        of_key.key_hash = queued.key_hash;
      }
      of_key.matched = of_key.bytes > 0;
    }
  }
  const Known& known = of_key.key_hash == queued.key_hash ? of_key : last_put_;
  if (reference.bytes == 0) reference.bytes = known.bytes;
  reference.ttl = known.terms.ttl;
  reference.recompute_cost = known.terms.recompute_cost;
  batch_.push_back(reference);
}

void Advisor::SimulateBatch() {
  for (Shadow& shadow : shadows_) {
    for (auto it = batch_.begin(); it != batch_.end();) {
      const auto begin = it++;
      if (begin->kind == Reference::Kind::kPut) {
        shadow.cache->Put(*begin);
        continue;
      }
      while (it != batch_.end() && !it->first) ++it;
      shadow.hits += shadow.cache->Look({&*begin, static_cast<size_t>(it - begin)});
    }
  }
  batch_.clear();
}

void Advisor::WorkInBackground() {
  for (;;) {
    {
      MutexLock lock(queue_mu_);
      while (!stopping_ && queue_.references.size() < kWakesWorker) wake_.Wait(queue_mu_);
      if (stopping_) return;
    }
    MutexLock lock(mu_);
    WorkOff();
  }
}

void Advisor::SetCapacity(size_t capacity_bytes, const Measured& measured) {
  MutexLock lock(mu_);
  WorkOff();
  capacity_ = capacity_bytes;
  before_ = measured;
  sampled_ = {};
  for (Shadow& shadow : shadows_) {
    shadow.cache->SetCapacity(ScaledBytes(shadow.times_capacity));
    shadow.hits = 0;
  }
}

std::vector<Advice> Advisor::Advise(const Measured& measured) {
  MutexLock lock(mu_);
  WorkOff();
  // What was measured before a Resize() may come after it.
  const uint64_t counted = measured.lookups - std::min(measured.lookups, before_.lookups);
  const double lookups = static_cast<double>(counted);
  const double hits = static_cast<double>(measured.hits - std::min(measured.hits, before_.hits));
  std::vector<Advice> advice;
  for (const Shadow& shadow : shadows_) {
    Advice& a = advice.emplace_back();
    a.policy = shadow.cache->policy();
    a.times_capacity = shadow.times_capacity;
    a.capacity_bytes = static_cast<size_t>(
        std::min(static_cast<double>(capacity_) * shadow.times_capacity, 0x1p63));
    a.lookups = counted;
    a.sampled_lookups = sampled_.lookups;
    a.sampled_hits = shadow.hits;
    a.sampled_hits_of_cache = sampled_.hits;
    if (counted == 0 || sampled_.lookups < Advice::kFewestSampledLookups ||
        (shadow.cache->full() && shadow.cache->blocks() < Advice::kFewestSampledBlocks)) {
      continue;
    }
    const double more = static_cast<double>(shadow.hits) - static_cast<double>(sampled_.hits);
    a.hit_ratio = std::clamp((hits + more / rate_) / lookups, 0.0, 1.0);
  }
  return advice;
}

}  // namespace kvcache::internal
