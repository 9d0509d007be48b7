// What a storage backend says of itself while it runs.
#ifndef KVCACHE_CORE_STATS_BACKEND_STATS_H_
#define KVCACHE_CORE_STATS_BACKEND_STATS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace kvcache {

// A snapshot: figures and facts by name, since what there is to say differs between backends. Names
// are unique, in the field's words, made of [a-z0-9_], and in Prometheus' base units.
struct BackendStats {
  struct Metric {
    std::string name;      // ends with its unit: "faulted_bytes", "first_touch_bytes_per_second"
    std::string help;      // one sentence, one line
    double value = 0;      // not negative
    bool counter = false;  // only grows; otherwise it may also fall
  };
  // What was decided or has happened, in words: {"huge_pages", "never (auto)"}.
  struct Fact {
    std::string name;
    std::string value;
  };

  std::vector<Metric> metrics;
  std::vector<Fact> facts;

  // The metric, or the fact, of this name; nullopt when the backend says nothing of it.
  std::optional<double> Value(absl::string_view name) const;
  std::optional<std::string> Text(absl::string_view name) const;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_STATS_BACKEND_STATS_H_
