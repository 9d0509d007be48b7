#include <memory>

#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache {
namespace {

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  AccountingOptions options = {.capacity_bytes = capacity_bytes};
  SettingsReader reader("accounting", settings);
  reader.Number("alignment", &options.alignment);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  return CreateAccountingBackend(options);
}

[[maybe_unused]] const bool registered = RegisterBackend("accounting", Make);

}  // namespace
}  // namespace kvcache
