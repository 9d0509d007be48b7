#include "kvcache/examples/demo/flags.h"

#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvcache/core/plugins/registry.h"
#include "kvcache/examples/transformer/instruction_set.h"

ABSL_FLAG(std::string, json, "", "file for the results");
ABSL_FLAG(std::string, backend, "cpu_ram", "where the cache keeps K and V");
ABSL_FLAG(std::string, policy, "lru", "which entry goes first when the cache is full");
ABSL_FLAG(int64_t, capacity_mb, 256, "MiB that the cache may take");
ABSL_FLAG(uint64_t, seed, 1, "of the order of the requests");
ABSL_FLAG(int, layers, 32, "layers of the model");
ABSL_FLAG(std::string, instruction_set, "", "of the model's arithmetic");

namespace kvcache::examples {
namespace {

constexpr int64_t kMostLayers = 256;
constexpr int64_t kMostMiB = 1 << 20;

std::string CommonUsage() {
  return absl::StrCat("  --backend=NAME          where the cache keeps K and V: ",
                      absl::StrJoin(BackendNames(), ", "), " (default: cpu_ram)\n",
                      "  --policy=NAME           which entry goes first when the cache is full: ",
                      absl::StrJoin(PolicyNames(), ", "), " (default: lru)\n",
                      "  --capacity_mb=N         MiB that each cache may take (default: 256)\n"
                      "  --seed=N                of the order of the requests (default: 1)\n"
                      "  --layers=N              layers of the model (default: 32)\n"
                      "  --instruction_set=NAME  of the model's arithmetic: ",
                      absl::StrJoin(SupportedInstructionSets(), ", ",
                                    [](std::string* out, InstructionSet set) {
                                      absl::StrAppend(out, absl::AsciiStrToLower(Name(set)));
                                    }),
                      " (default: the last)\n",
                      "  --json=FILE             also write the results there\n");
}

absl::Status WithFlag(absl::string_view flag, absl::string_view value, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("--", flag, "=", value, ": ", status.message()));
}

absl::StatusOr<InstructionSet> ParseInstructionSet(const std::string& name) {
  std::vector<std::string> known;
  for (InstructionSet set : SupportedInstructionSets()) {
    known.push_back(absl::AsciiStrToLower(Name(set)));
    if (known.back() == name) return set;
  }
  return BadFlag("instruction_set", name,
                 absl::StrCat("this machine has ", absl::StrJoin(known, ", ")));
}

}  // namespace

void ParseCommandLine(int argc, char** argv, absl::string_view usage) {
  ParseFlags(argc, argv, absl::StrCat(usage, "\n", CommonUsage()));
}

absl::StatusOr<CommonFlags> CheckCommonFlags() {
  CommonFlags flags;
  flags.json = absl::GetFlag(FLAGS_json);
  flags.backend = absl::GetFlag(FLAGS_backend);
  flags.policy = absl::GetFlag(FLAGS_policy);
  flags.seed = absl::GetFlag(FLAGS_seed);
  const int64_t mib = absl::GetFlag(FLAGS_capacity_mb);
  if (absl::Status s = CheckRange("capacity_mb", mib, 1, kMostMiB); !s.ok()) return s;
  flags.capacity_bytes = static_cast<size_t>(mib) << 20;
  flags.model.layers = absl::GetFlag(FLAGS_layers);
  if (absl::Status s = CheckRange("layers", flags.model.layers, 1, kMostLayers); !s.ok()) return s;
  if (const std::string name = absl::GetFlag(FLAGS_instruction_set); !name.empty()) {
    absl::StatusOr<InstructionSet> set = ParseInstructionSet(name);
    if (!set.ok()) return set.status();
    flags.model.instruction_set = *set;
  }
  return flags;
}

absl::StatusOr<std::unique_ptr<StorageBackend>> MakeBackend(const CommonFlags& flags) {
  absl::StatusOr<std::unique_ptr<StorageBackend>> backend =
      kvcache::MakeBackend(flags.backend, flags.capacity_bytes);
  if (!backend.ok()) {
    return WithFlag("backend",
                    absl::StrCat(flags.backend, " --capacity_mb=", flags.capacity_bytes >> 20),
                    backend.status());
  }
  if (!(*backend)->traits().stores_bytes) {
    return BadFlag("backend", flags.backend,
                   "it counts bytes and stores none, so nothing could be restored from it");
  }
  return backend;
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(const CommonFlags& flags) {
  absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy = kvcache::MakePolicy(flags.policy);
  if (!policy.ok()) return WithFlag("policy", flags.policy, policy.status());
  return policy;
}

}  // namespace kvcache::examples
