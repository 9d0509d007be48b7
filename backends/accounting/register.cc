#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kvcache/backends/accounting/accounting.h"
#include "kvcache/core/registry.h"

namespace kvcache {
namespace {

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  if (absl::Status status = CheckSettings("accounting", settings, {"alignment"}); !status.ok()) {
    return status;
  }
  AccountingOptions options = {.capacity_bytes = capacity_bytes};
  if (const auto alignment = settings.find("alignment");
      alignment != settings.end() && !absl::SimpleAtoi(alignment->second, &options.alignment)) {
    return absl::InvalidArgumentError(
        absl::StrCat("accounting: alignment = '", alignment->second, "' is not a number"));
  }
  return CreateAccountingBackend(options);
}

[[maybe_unused]] const bool registered = RegisterBackend("accounting", Make);

}  // namespace
}  // namespace kvcache
