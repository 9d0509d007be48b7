#ifndef KVCACHE_EXAMPLES_DEMO_FLAGS_H_
#define KVCACHE_EXAMPLES_DEMO_FLAGS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/examples/demo/command_line.h"
#include "kvcache/examples/transformer/transformer.h"

namespace kvcache::examples {

// The flags that the demos share, checked.
struct CommonFlags {
  std::string json;  // empty: none
  std::string backend;
  std::string policy;
  size_t capacity_bytes = 0;
  uint64_t seed = 0;
  TransformerConfig model;
};

// ParseFlags() whose help is `usage` and the shared flags.
void ParseCommandLine(int argc, char** argv, absl::string_view usage);

// Errors: kInvalidArgument, naming the flag and its value.
absl::StatusOr<CommonFlags> CheckCommonFlags();

// New ones of those that the flags name. Errors, which name the flags: those of
// core/plugins/registry.h; kInvalidArgument for a backend that stores no bytes.
absl::StatusOr<std::unique_ptr<StorageBackend>> MakeBackend(const CommonFlags& flags);
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(const CommonFlags& flags);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_FLAGS_H_
