#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/lru/lru.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "lru", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("lru", settings).Finish();
      if (!status.ok()) return status;
      return CreateLruPolicy();
    });

}  // namespace
}  // namespace kvcache
