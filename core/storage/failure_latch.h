// FailureLatch: how a backend fails for good.
#ifndef KVCACHE_CORE_STORAGE_FAILURE_LATCH_H_
#define KVCACHE_CORE_STORAGE_FAILURE_LATCH_H_

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {

// Keeps the first error after which a medium is of no use, and tells it as
// StorageBackend::OnFailure() promises. A backend that can fail has one: it asks status() at the
// beginning of each call and hands OnFailure() on.
//
// Thread-safe. Outlives its calls.
class FailureLatch {
 public:
  // OK, or the error with which everything ends from now on.
  absl::Status status() const;

  // Notes an error; only the first one counts. Returns whether this is it: then the caller calls
  // Tell(), on any thread, as soon as it holds no lock that the callback may want. REQUIRES:
  // `status` is not OK.
  bool Set(absl::Status status);

  // Calls the callback, if there is one that has not been called yet. REQUIRES: Set() was called.
  void Tell();

  // See StorageBackend::OnFailure().
  void OnFailure(std::function<void(const absl::Status&)> callback);

 private:
  mutable Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  Mutex callback_mu_;  // before mu_; held while the callback runs
  std::function<void(const absl::Status&)> callback_ ABSL_GUARDED_BY(callback_mu_);
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_FAILURE_LATCH_H_
