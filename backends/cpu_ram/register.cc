#include <memory>

#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/plugins/registry.h"

namespace kvcache {
namespace {

using FaultIn = CpuRamOptions::FaultIn;
using HugePages = CpuRamOptions::HugePages;
using Sharing = CpuRamOptions::Sharing;

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  CpuRamOptions options = {.capacity_bytes = capacity_bytes};
  SettingsReader reader("cpu_ram", settings);
  reader.Choice("fault_in",
                {{"on_use", FaultIn::kOnUse},
                 {"at_create", FaultIn::kAtCreate},
                 {"background", FaultIn::kBackground}},
                &options.fault_in);
  reader.Choice(
      "huge_pages",
      {{"never", HugePages::kNever}, {"advise", HugePages::kAdvise}, {"auto", HugePages::kAuto}},
      &options.huge_pages);
  reader.Choice("sharing", {{"private", Sharing::kPrivate}, {"exported", Sharing::kExported}},
                &options.sharing);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  return CreateCpuRamBackend(options);
}

[[maybe_unused]] const bool registered = RegisterBackend("cpu_ram", Make);

}  // namespace
}  // namespace kvcache
