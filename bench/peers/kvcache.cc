#include <utility>

#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/bench/peers/contenders.h"
#include "kvcache/core/cache/cache.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache::bench {
namespace {

class KvcacheContender : public Contender {
 public:
  explicit KvcacheContender(std::unique_ptr<Cache> cache) : cache_(std::move(cache)) {}

  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    return cache_->Put(block.key, {.bytes = payload.size()}, {payload});
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    const ReadRequest request = {.key = block.key, .destination = {&buffer, 1}};
    const absl::Status read = cache_->ReadInto({&request, 1}).Wait();
    if (!read.ok()) return read;
    return ConstBytes(buffer);
  }

  absl::Status GetZeroCopy(const Block& block, absl::FunctionRef<void(ConstBytes)> use) override {
    const absl::StatusOr<ReadLease> lease = cache_->Get(NamespaceId::kDefault, block.key);
    if (!lease.ok()) return lease.status();
    use({lease->data(), lease->size()});
    return absl::OkStatus();
  }

 private:
  const ContenderTraits traits_ = {.zero_copy = true};
  const std::unique_ptr<Cache> cache_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateKvcache(const ContenderOptions& options,
                                                         CacheOptions cache_options) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend = CreateCpuRamBackend(
      {.capacity_bytes = options.capacity_bytes, .fault_in = CpuRamOptions::FaultIn::kAtCreate});
  if (!backend.ok()) return backend.status();
  cache_options.max_blocks = options.capacity_bytes / options.payload_bytes + 1;
  absl::StatusOr<std::unique_ptr<Cache>> cache =
      Cache::Create(cache_options, *std::move(backend), CreateLruPolicy());
  if (!cache.ok()) return cache.status();
  return std::make_unique<KvcacheContender>(*std::move(cache));
}

}  // namespace kvcache::bench
