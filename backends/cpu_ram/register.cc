#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kvcache/backends/cpu_ram/cpu_ram.h"
#include "kvcache/core/registry.h"

namespace kvcache {
namespace {

using FaultIn = CpuRamOptions::FaultIn;
using HugePages = CpuRamOptions::HugePages;

// Sets `*option` to the value that the setting names; leaves it when there is no such setting.
template <typename Enum>
absl::Status Read(const Settings& settings, const std::string& name,
                  std::initializer_list<std::pair<absl::string_view, Enum>> values, Enum* option) {
  const auto setting = settings.find(name);
  if (setting == settings.end()) return absl::OkStatus();
  std::string known;
  for (const auto& [value_name, value] : values) {
    if (setting->second == value_name) {
      *option = value;
      return absl::OkStatus();
    }
    absl::StrAppend(&known, known.empty() ? "" : ", ", value_name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cpu_ram: ", name, " = '", setting->second, "' is none of: ", known));
}

absl::StatusOr<std::unique_ptr<StorageBackend>> Make(size_t capacity_bytes,
                                                     const Settings& settings) {
  CpuRamOptions options = {.capacity_bytes = capacity_bytes};
  absl::Status status = CheckSettings("cpu_ram", settings, {"fault_in", "huge_pages"});
  status.Update(Read(settings, "fault_in",
                     {{"on_use", FaultIn::kOnUse},
                      {"at_create", FaultIn::kAtCreate},
                      {"background", FaultIn::kBackground}},
                     &options.fault_in));
  status.Update(Read(
      settings, "huge_pages",
      {{"never", HugePages::kNever}, {"advise", HugePages::kAdvise}, {"auto", HugePages::kAuto}},
      &options.huge_pages));
  if (!status.ok()) return status;
  return CreateCpuRamBackend(options);
}

[[maybe_unused]] const bool registered = RegisterBackend("cpu_ram", Make);

}  // namespace
}  // namespace kvcache
