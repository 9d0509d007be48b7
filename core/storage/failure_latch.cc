#include "kvcache/core/storage/failure_latch.h"

#include <utility>

#include "kvcache/core/base/check.h"

namespace kvcache {

absl::Status FailureLatch::status() const {
  MutexLock lock(mu_);
  return status_;
}

bool FailureLatch::Set(absl::Status status) {
  KVCACHE_CHECK(!status.ok(), "a failure with an OK status");
  MutexLock lock(mu_);
  if (!status_.ok()) return false;
  status_ = std::move(status);
  return true;
}

void FailureLatch::Tell() {
  MutexLock lock(callback_mu_);
  if (callback_ != nullptr) std::exchange(callback_, nullptr)(status());
}

void FailureLatch::OnFailure(std::function<void(const absl::Status&)> callback) {
  {
    MutexLock lock(callback_mu_);
    callback_ = std::move(callback);
  }
  if (!status().ok()) Tell();
}

}  // namespace kvcache
