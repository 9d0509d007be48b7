#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/arc/arc.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "arc", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("arc", settings).Finish();
      if (!status.ok()) return status;
      return CreateArcPolicy();
    });

}  // namespace
}  // namespace kvcache
