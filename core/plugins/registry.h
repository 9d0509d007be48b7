// The backends and policies that are linked in, by name.
#ifndef KVCACHE_CORE_PLUGINS_REGISTRY_H_
#define KVCACHE_CORE_PLUGINS_REGISTRY_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/core/plugins/settings_reader.h"  // for factories
#include "kvcache/core/policy/eviction_policy.h"
#include "kvcache/core/storage/storage_backend.h"

namespace kvcache {

using BackendFactory = std::function<absl::StatusOr<std::unique_ptr<StorageBackend>>(
    size_t capacity_bytes, const Settings& settings)>;
using PolicyFactory =
    std::function<absl::StatusOr<std::unique_ptr<EvictionPolicy>>(const Settings& settings)>;

// Enter a name, before main() in an alwayslink target:
//   const bool registered = RegisterPolicy("lru", [](const Settings& settings) { ... });
// Abort when the name is taken. Return true. Thread-safe, like everything here.
bool RegisterBackend(absl::string_view name, BackendFactory factory);
bool RegisterPolicy(absl::string_view name, PolicyFactory factory);

// kInvalidArgument, listing the names that are linked in, when `name` is none of them; otherwise
// what the factory returns, which refuses settings that it does not know.
absl::StatusOr<std::unique_ptr<StorageBackend>> MakeBackend(absl::string_view name,
                                                            size_t capacity_bytes,
                                                            const Settings& settings = {});
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(absl::string_view name,
                                                           const Settings& settings = {});

// In alphabetical order.
std::vector<std::string> BackendNames();
std::vector<std::string> PolicyNames();

}  // namespace kvcache

#endif  // KVCACHE_CORE_PLUGINS_REGISTRY_H_
