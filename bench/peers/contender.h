// Contender: one of the stores that are compared. Each has a file of its own in this folder;
// contenders.cc is the list.
#ifndef KVCACHE_BENCH_PEERS_CONTENDER_H_
#define KVCACHE_BENCH_PEERS_CONTENDER_H_

#include <cstddef>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/key/block_key.h"

namespace kvcache::bench {

// A block that is put and read: `key` is the index-th of a fixed list of random keys. Stores go by
// the key, whose 32 bytes all of them get; plain copies, which have no index, by the number.
struct Block {
  size_t index = 0;
  BlockKey key;
};

struct ContenderOptions {
  // The memory that the store is told to use at most, bookkeeping included where it counts that.
  size_t capacity_bytes = 0;
  // Of every block; a multiple of 64.
  size_t payload_bytes = 0;
};

struct ContenderTraits {
  bool zero_copy = false;  // has GetZeroCopy()
};

// A store with a fixed capacity that makes room by itself. Blocks are put once. It is created for
// one payload size and one run, with nothing in it. Thread-compatible.
//
// What it promises: 3/8 of the capacity fits in for certain; what was put last can be read, byte
// for byte; once full it takes puts for ever.
class Contender {
 public:
  virtual ~Contender() = default;

  virtual const ContenderTraits& traits() const = 0;

  // Keeps a copy of `payload`. REQUIRES: payload.size() == payload_bytes.
  virtual absl::Status Put(const Block& block, ConstBytes payload) = 0;

  // A copy of a block: in `buffer` or, by clients whose replies are copies already, in memory of
  // theirs that stays until the next call. kNotFound when the block is not there. REQUIRES:
  // buffer.size() == payload_bytes.
  virtual absl::StatusOr<ConstBytes> Get(const Block& block, MutableBytes buffer) = 0;

  // Shows a block where it lies, and keeps it there until `use` returns. kNotFound when it is not
  // there. REQUIRES: traits().zero_copy.
  virtual absl::Status GetZeroCopy(const Block& block, absl::FunctionRef<void(ConstBytes)> use) {
    return absl::UnimplementedError("copies only");
  }

  // Ends work that puts have left behind, so that reads are measured without it.
  virtual absl::Status Settle() { return absl::OkStatus(); }
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_PEERS_CONTENDER_H_
