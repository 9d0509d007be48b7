#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/lfu/lfu.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "lfu", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("lfu", settings).Finish();
      if (!status.ok()) return status;
      return CreateLfuPolicy();
    });

}  // namespace
}  // namespace kvcache
