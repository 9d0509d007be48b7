#include "kvcache/core/plugins/settings_reader.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kvcache {

const std::string* SettingsReader::Find(absl::string_view name) {
  asked_for_.emplace_back(name);
  const auto it = settings_.find(asked_for_.back());
  return it == settings_.end() ? nullptr : &it->second;
}

void SettingsReader::IsNoneOf(absl::string_view name, absl::string_view text,
                              const std::vector<absl::string_view>& known) {
  status_.Update(absl::InvalidArgumentError(absl::StrCat(
      owner_, ": ", name, " = '", text, "' is none of: ", absl::StrJoin(known, ", "))));
}

template <typename Parse>
void SettingsReader::ReadNumber(absl::string_view name, const Parse& parse) {
  const std::string* const text = Find(name);
  if (text == nullptr || parse(*text)) return;
  status_.Update(absl::InvalidArgumentError(
      absl::StrCat(owner_, ": ", name, " = '", *text, "' is not a number that fits")));
}

void SettingsReader::Number(absl::string_view name, int* value) {
  ReadNumber(name, [value](const std::string& text) { return absl::SimpleAtoi(text, value); });
}

void SettingsReader::Number(absl::string_view name, std::optional<int>* value) {
  ReadNumber(
      name, [value](const std::string& text) { return absl::SimpleAtoi(text, &value->emplace()); });
}

void SettingsReader::Number(absl::string_view name, size_t* value) {
  ReadNumber(name, [value](const std::string& text) { return absl::SimpleAtoi(text, value); });
}

void SettingsReader::Number(absl::string_view name, double* value) {
  ReadNumber(name, [value](const std::string& text) {
    return absl::SimpleAtod(text, value) && std::isfinite(*value);
  });
}

absl::Status SettingsReader::Finish() const {
  if (!status_.ok()) return status_;
  for (const auto& [name, value] : settings_) {
    if (std::find(asked_for_.begin(), asked_for_.end(), name) != asked_for_.end()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        owner_, " has no setting '", name, "'; ",
        asked_for_.empty() ? "it has none" : "it knows: ", absl::StrJoin(asked_for_, ", ")));
  }
  return absl::OkStatus();
}

}  // namespace kvcache
