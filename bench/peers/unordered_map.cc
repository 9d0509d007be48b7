#include <cstring>
#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvcache/bench/peers/contenders.h"

namespace kvcache::bench {
namespace {

// What one writes first: a map, a list in order of use, a lock around both, copies in and out.
class UnorderedMap : public Contender {
 public:
  explicit UnorderedMap(size_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  const ContenderTraits& traits() const override { return traits_; }

  absl::Status Put(const Block& block, ConstBytes payload) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (bytes_ + payload.size() > capacity_bytes_ && !by_use_.empty()) {
      bytes_ -= by_use_.back().bytes.size();
      by_key_.erase(by_use_.back().key);
      by_use_.pop_back();
    }
    by_use_.push_front({block.key, {payload.begin(), payload.end()}});
    by_key_[block.key] = by_use_.begin();
    bytes_ += payload.size();
    return absl::OkStatus();
  }

  absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_key_.find(block.key);
    if (found == by_key_.end()) return absl::NotFoundError("");
    by_use_.splice(by_use_.begin(), by_use_, found->second);
    std::memcpy(buffer.data(), found->second->bytes.data(), buffer.size());
    return ConstBytes(buffer);
  }

 private:
  struct Entry {
    BlockKey key;
    std::vector<std::byte> bytes;
  };
  struct Hash {
    size_t operator()(const BlockKey& key) const { return key.Hash64(); }
  };

  const ContenderTraits traits_;
  const size_t capacity_bytes_;
  std::mutex mutex_;
  std::list<Entry> by_use_;  // the last used first
  std::unordered_map<BlockKey, std::list<Entry>::iterator, Hash> by_key_;
  size_t bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contender>> CreateUnorderedMap(const ContenderOptions& options) {
  return std::make_unique<UnorderedMap>(options.capacity_bytes);
}

}  // namespace kvcache::bench
