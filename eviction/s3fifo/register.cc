#include "kvcache/core/plugins/registry.h"
#include "kvcache/eviction/s3fifo/s3fifo.h"

namespace kvcache {
namespace {

[[maybe_unused]] const bool kRegistered = RegisterPolicy(
    "s3fifo", [](const Settings& settings) -> absl::StatusOr<std::unique_ptr<EvictionPolicy>> {
      absl::Status status = SettingsReader("s3fifo", settings).Finish();
      if (!status.ok()) return status;
      return CreateS3FifoPolicy();
    });

}  // namespace
}  // namespace kvcache
