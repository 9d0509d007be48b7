#include "kvcache/core/registry.h"
#include "kvcache/eviction/gdsf/gdsf.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "gdsf", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      if (absl::Status status = CheckSettings("gdsf", settings, {}); !status.ok()) return status;
      return CreateGdsfPolicy();
    });

}  // namespace
}  // namespace kvcache
