#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/gdsf/gdsf.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "gdsf", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("gdsf", settings).Finish();
      if (!status.ok()) return status;
      return CreateGdsfPolicy();
    });

}  // namespace
}  // namespace kvcache
