#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/ttl/ttl.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "ttl", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("ttl", settings).Finish();
      if (!status.ok()) return status;
      return CreateTtlPolicy();
    });

}  // namespace
}  // namespace kvcache
