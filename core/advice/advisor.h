// Advisor: what the running cache would hit with other capacities and policies. Internal to core.
#ifndef KVCACHE_CORE_ADVICE_ADVISOR_H_
#define KVCACHE_CORE_ADVICE_ADVISOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/advice/advice_options.h"
#include "kvcache/core/advice/shadow_cache.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/key/block_key.h"
#include "kvcache/core/policy/slot_index.h"
#include "kvcache/core/stats/stats.h"
#include "kvcache/core/table/block_options.h"

namespace kvcache::internal {

// Keeps ShadowCaches of a sample of the keys. A key is in it or not by a hash, so all of its
// lookups are, and a cache of as much less memory that gets only these hits about the same share of
// them (Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015, and "Cache
// Modeling and Optimization using Miniature Simulations", ATC 2017).
//
// What goes wrong with a sample is that popular keys are in it or not. SHARDS-adj corrects it by
// counting what the sample lacks in lookups as hits. Here the cache itself is at hand, whose hits
// are known for all keys and for the sample: what a shadow hits more than the cache did, in the
// sample, is added to the hits that the cache had.
//
// Thread-safe; the callers need not hold the cache's lock. Whoever looks up pays for a comparison,
// and for each key of the sample for a place in a queue, which a thread of the advisor works off. A
// caller that finds the queue full does so itself. So nothing is left out but for want of memory: a
// part of a request of tens of thousands of sampled keys. Keys of an equal Hash64() are taken for
// one.
class Advisor {
 public:
  // kInvalidArgument, naming the field and the value, where AdviceOptions says so.
  static absl::Status Check(const AdviceOptions& options, const EvictionPolicy& policy);

  // For a cache of these limits under `policy`. REQUIRES: there are capacities and the options pass
  // Check(); but the sampling rate may be up to 1.
  Advisor(const AdviceOptions& options, const EvictionPolicy& policy, size_t max_blocks,
          size_t capacity_bytes, Nanos default_ttl);
  ~Advisor();
  Advisor(const Advisor&) = delete;
  Advisor& operator=(const Advisor&) = delete;

  // A Get; `bytes` is what the block is charged, 0 if it was not there.
  void LookOne(const BlockKey& key, size_t bytes, Nanos now) {
    if (ABSL_PREDICT_FALSE(Samples(key))) AddOne(key, bytes, now);
  }
  // The lookups of one request; bytes_of(i) is that of keys[i].
  void Look(absl::Span<const BlockKey> keys, Reference::Kind kind, Nanos now,
            absl::FunctionRef<size_t(size_t i)> bytes_of);
  // A put was asked for, and refused or not.
  void Put(const BlockKey& key, size_t charged_bytes, const EntryInfo& incoming,
           const PutOptions& options);

  // Block lookups of the cache, and its hits, since it was made.
  struct Measured {
    uint64_t lookups = 0;
    uint64_t hits = 0;
  };

  // Begins anew with the blocks that there are.
  void SetCapacity(size_t capacity_bytes, const Measured& measured);

  std::vector<Advice> Advise(const Measured& measured);

 private:
  struct Shadow {
    double times_capacity;
    std::unique_ptr<ShadowCache> cache;
    uint64_t hits = 0;
  };
  // A Reference as it waits: the shorter, the less it costs the callers.
  struct Queued {
    uint64_t key_hash;
    Nanos now;
    uint64_t bytes : 61;
    uint64_t kind : 2;
    uint64_t first : 1;
    uint32_t depth;
    uint32_t chain_blocks;
  };
  static_assert(sizeof(Queued) == 32);

  // What only puts say.
  struct Terms {
    Nanos ttl = kNever;
    float recompute_cost = 0;
  };
  struct Known {
    uint64_t key_hash = 0;
    size_t bytes = 0;
    Terms terms;
    bool matched = false;  // missed by a Match and not put since
  };

  struct Queue {
    std::vector<Queued> references;
    std::vector<Terms> terms;  // of the puts among them

    void Reserve();
    // Allocates nothing, and leaves out what would make it longer than was reserved. `put`: the
    // terms of a put.
    void Add(const Queued& reference, const Terms* put = nullptr) {
      if (references.size() == references.capacity()) return;
      references.push_back(reference);
      if (put != nullptr) terms.push_back(*put);
      // The next places were read by another processor.
      __builtin_prefetch(references.data() + references.size() + 16, 1);
    }
  };

  // The sample must not be the keys that a table or a policy finds close to each other.
  bool Samples(const BlockKey& key) const {
    return (key.Hash64() ^ seed_) * 0x9e3779b97f4a7c15 <= last_sampled_;
  }
  size_t ScaledBytes(double times_capacity) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddOne(const BlockKey& key, size_t bytes, Nanos now);
  // The queue has become longer by so much.
  void Added(size_t count, size_t queued);
  // Empties the queue.
  void WorkOff() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Adds it to the batch with what is known of its key; `terms` are those of a put.
  void Learn(const Queued& queued, const Terms* terms) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SimulateBatch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WorkInBackground();

  const double rate_;
  const uint64_t seed_;
  const uint64_t last_sampled_;
  const Nanos default_ttl_;
  const KeyMixer mixer_;

  Mutex mu_;  // before queue_mu_
  std::vector<Shadow> shadows_ ABSL_GUARDED_BY(mu_);
  Queue taken_ ABSL_GUARDED_BY(mu_);
  std::vector<Reference> batch_ ABSL_GUARDED_BY(mu_);
  std::vector<Known> known_ ABSL_GUARDED_BY(mu_);  // a key has one place, and may lose it
  Known last_put_ ABSL_GUARDED_BY(mu_);            // stands for those that are not known
  size_t capacity_ ABSL_GUARDED_BY(mu_);
  Measured before_ ABSL_GUARDED_BY(mu_);   // what was measured when the advice began
  Measured sampled_ ABSL_GUARDED_BY(mu_);  // of the sample, since then

  Mutex queue_mu_;
  CondVar wake_;
  Queue queue_ ABSL_GUARDED_BY(queue_mu_);
  bool stopping_ ABSL_GUARDED_BY(queue_mu_) = false;
  std::thread worker_;
};

}  // namespace kvcache::internal

#endif  // KVCACHE_CORE_ADVICE_ADVISOR_H_
