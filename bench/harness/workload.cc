#include "kvcache/bench/harness/workload.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"

namespace kvcache::bench {
namespace {

constexpr size_t kFewestReads = 512;

void FillRandomly(void* to, size_t bytes, std::mt19937_64& random) {
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(static_cast<std::byte*>(to) + i, &word, sizeof(word));
  }
}

}  // namespace

Workload::Workload(const ContenderOptions& options)
    : options_(options),
      put_new_(options.capacity_bytes / 8 * 3 / options.payload_bytes),
      // Nobody keeps an eighth more than its capacity.
      first_put_full_(options.capacity_bytes / 8 * 9 / options.payload_bytes + 1),
      blocks_(first_put_full_ + options.capacity_bytes / 4 / options.payload_bytes + 1),
      source_(options.payload_bytes),
      destination_(options.payload_bytes) {
  std::mt19937_64 random(42);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].index = i;
    FillRandomly(blocks_[i].key.bytes.data(), blocks_[i].key.bytes.size(), random);
  }
  while (reads_.size() < std::max(put_new_, kFewestReads)) {
    const size_t before = reads_.size();
    reads_.resize(before + put_new_);
    std::iota(reads_.begin() + before, reads_.end(), 0);
    std::shuffle(reads_.begin() + before, reads_.end(), random);
  }
  FillRandomly(source_.data(), source_.size(), random);
}

ConstBytes Workload::Payload(const Block& block) {
  // Different for each block, at both ends, at the price of two stores.
  const uint64_t index = block.index;
  std::memcpy(source_.data(), &index, sizeof(index));
  std::memcpy(source_.data() + source_.size() - sizeof(index), &index, sizeof(index));
  return {source_.data(), source_.size()};
}

absl::Status Workload::Verify(const Block& block, ConstBytes bytes) {
  const ConstBytes payload = Payload(block);
  if (bytes.size() == payload.size() &&
      std::memcmp(bytes.data(), payload.data(), payload.size()) == 0) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("block ", block.index, " came back with other bytes"));
}

}  // namespace kvcache::bench
