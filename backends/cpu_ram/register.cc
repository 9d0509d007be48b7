#include <memory>

#include "absl/strings/str_cat.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/registry.h"

namespace kvcache {
namespace {

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  if (absl::Status status = CheckSettings("cpu_ram", settings, {"fault_in"}); !status.ok()) {
    return status;
  }
  CpuRamOptions options = {.capacity_bytes = capacity_bytes};
  if (const auto fault_in = settings.find("fault_in"); fault_in != settings.end()) {
    if (fault_in->second == "on_use") {
      options.fault_in = CpuRamOptions::FaultIn::kOnUse;
    } else if (fault_in->second == "at_create") {
      options.fault_in = CpuRamOptions::FaultIn::kAtCreate;
    } else {
      return absl::InvalidArgumentError(absl::StrCat("cpu_ram: fault_in = '", fault_in->second,
                                                     "' is neither 'on_use' nor 'at_create'"));
    }
  }
  return CreateCpuRamBackend(options);
}

[[maybe_unused]] const bool registered = RegisterBackend("cpu_ram", Make);

}  // namespace
}  // namespace kvcache
