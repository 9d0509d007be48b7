#include "kvcache/core/plugins/registry.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {
namespace {

template <typename Factory>
class Registry {
 public:
  // `kind` is for messages.
  explicit Registry(const char* kind) : kind_(kind) {}

  bool Register(absl::string_view name, Factory factory) {
    MutexLock lock(mu_);
    const bool added = factories_.emplace(std::string(name), std::move(factory)).second;
    KVCACHE_CHECK(added, kind_, " '", name, "' is registered twice");
    return true;
  }

  absl::StatusOr<Factory> Find(absl::string_view name) const {
    MutexLock lock(mu_);
    const auto it = factories_.find(std::string(name));
    if (it != factories_.end()) return it->second;
    const std::string names = absl::StrJoin(NamesLocked(), ", ");
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown ", kind_, " '", name,
        "'; linked in: ", names.empty() ? "none, a :register target has to be" : names));
  }

  std::vector<std::string> Names() const {
    MutexLock lock(mu_);
    return NamesLocked();
  }

 private:
  std::vector<std::string> NamesLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::vector<std::string> names;
    for (const auto& [name, factory] : factories_) names.push_back(name);
    return names;
  }

  const char* const kind_;
  mutable Mutex mu_;
  std::map<std::string, Factory> factories_ ABSL_GUARDED_BY(mu_);
};

Registry<BackendFactory>& Backends() {
  static auto* const registry = new Registry<BackendFactory>("backend");
  return *registry;
}

Registry<PolicyFactory>& Policies() {
  static auto* const registry = new Registry<PolicyFactory>("policy");
  return *registry;
}

}  // namespace

bool RegisterBackend(absl::string_view name, BackendFactory factory) {
  return Backends().Register(name, std::move(factory));
}

bool RegisterPolicy(absl::string_view name, PolicyFactory factory) {
  return Policies().Register(name, std::move(factory));
}

absl::StatusOr<std::unique_ptr<StorageBackend>> MakeBackend(absl::string_view name,
                                                            size_t capacity_bytes,
                                                            const Settings& settings) {
  absl::StatusOr<BackendFactory> factory = Backends().Find(name);
  if (!factory.ok()) return factory.status();
  return (*factory)(capacity_bytes, settings);
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(absl::string_view name,
                                                           const Settings& settings) {
  absl::StatusOr<PolicyFactory> factory = Policies().Find(name);
  if (!factory.ok()) return factory.status();
  return (*factory)(settings);
}

std::vector<std::string> BackendNames() { return Backends().Names(); }
std::vector<std::string> PolicyNames() { return Policies().Names(); }

}  // namespace kvcache
