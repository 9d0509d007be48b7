// SettingsReader: what a backend's or policy's factory makes of its settings.
#ifndef KVCACHE_CORE_PLUGINS_SETTINGS_READER_H_
#define KVCACHE_CORE_PLUGINS_SETTINGS_READER_H_

#include <cstddef>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvcache {

// Options by name, as they come from flags or files: {"fault_in", "on_use"}.
using Settings = std::map<std::string, std::string>;

// Reads the settings that `owner` knows, one by one, and remembers the first that is wrong:
//
//   SettingsReader reader("cuda_device", settings);
//   reader.Number("device", &options.device);
//   if (absl::Status status = reader.Finish(); !status.ok()) return status;
class SettingsReader {
 public:
  // `settings` outlives the reader.
  SettingsReader(absl::string_view owner, const Settings& settings)
      : owner_(owner), settings_(settings) {}

  // Each sets `*value` when there is a setting `name`, which must be a number that fits; ...
  void Number(absl::string_view name, int* value);
  void Number(absl::string_view name, std::optional<int>* value);
  void Number(absl::string_view name, size_t* value);
  void Number(absl::string_view name, double* value);  // finite
  // ... or one of these.
  template <typename Enum>
  void Choice(absl::string_view name,
              std::initializer_list<std::pair<absl::string_view, Enum>> values, Enum* value) {
    const std::string* const text = Find(name);
    if (text == nullptr) return;
    std::vector<absl::string_view> known;
    for (const auto& [value_name, of_name] : values) {
      if (*text == value_name) {
        *value = of_name;
        return;
      }
      known.push_back(value_name);
    }
    IsNoneOf(name, *text, known);
  }

  // kInvalidArgument for the first setting with a wrong value, or else for one that was not asked
  // for. The message names the owner, the setting, and what there is.
  absl::Status Finish() const;

 private:
  template <typename Parse>
  void ReadNumber(absl::string_view name, const Parse& parse);
  // Its value; nullptr: there is none.
  const std::string* Find(absl::string_view name);
  void IsNoneOf(absl::string_view name, absl::string_view text,
                const std::vector<absl::string_view>& known);

  const std::string owner_;
  const Settings& settings_;
  std::vector<std::string> asked_for_;
  absl::Status status_;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_PLUGINS_SETTINGS_READER_H_
