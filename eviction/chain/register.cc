#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/chain/chain.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "chain", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("chain", settings).Finish();
      if (!status.ok()) return status;
      return CreateChainPolicy();
    });

}  // namespace
}  // namespace kvcache
