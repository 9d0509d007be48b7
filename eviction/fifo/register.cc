#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/fifo/fifo.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "fifo", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("fifo", settings).Finish();
      if (!status.ok()) return status;
      return CreateFifoPolicy();
    });

}  // namespace
}  // namespace kvcache
