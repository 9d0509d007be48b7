#ifndef KVCACHE_BENCH_HARNESS_BENCH_FLAGS_H_
#define KVCACHE_BENCH_HARNESS_BENCH_FLAGS_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcache/bench/peers/contenders.h"

namespace kvcache::bench {

struct BenchFlags {
  std::vector<size_t> payloads;  // bytes
  std::vector<const ContenderInfo*> systems;
  size_t rounds = 0;
  size_t working_set_mb = 0;
  std::string json;  // empty: none
};

// Parses and checks the command line. Ends the program for --help and for what is not a flag of
// this program, after naming all that are. Errors: kInvalidArgument, naming the flag, its value and
// what is expected.
absl::StatusOr<BenchFlags> ParseBenchFlags(int argc, char** argv);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_HARNESS_BENCH_FLAGS_H_
