#include "kvcache/core/stats/backend_stats.h"

namespace kvcache {

std::optional<double> BackendStats::Value(absl::string_view name) const {
  for (const Metric& metric : metrics) {
    if (metric.name == name) return metric.value;
  }
  return std::nullopt;
}

std::optional<std::string> BackendStats::Text(absl::string_view name) const {
  for (const Fact& fact : facts) {
    if (fact.name == name) return fact.value;
  }
  return std::nullopt;
}

}  // namespace kvcache
