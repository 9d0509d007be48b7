#include "kvcache/core/storage/transfer.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"

namespace kvcache {
namespace internal {

// Of an op that may carry any part: when it fails, all parts do.
constexpr uint32_t kUnknownPart = 0xffffffff;

// Lives while what belongs to callbacks runs on this thread.
class CallbackScope {
 public:
  CallbackScope() { ++depth; }
  ~CallbackScope() { --depth; }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

  static inline thread_local int depth = 0;
};

class TransferState {
 public:
  using OpCallback = std::function<void(size_t, const absl::Status&)>;
  using DoneCallback = std::function<void(const absl::Status&)>;

  TransferState(absl::Span<const uint32_t> parts, TransferSource::Hooks hooks)
      : parts_(parts.begin(), parts.end()),
        hooks_(std::move(hooks)),
        ended_(parts.size(), false),
        results_(parts.size()),
        remaining_(parts.size()),
        done_(parts.empty()) {
    for (uint32_t part : parts_) ++remaining_of_part_[part];
  }

  size_t size() const { return parts_.size(); }

  bool Done() {
    MutexLock lock(mu_);
    return done_;
  }

  bool PartDone(uint32_t part) {
    MutexLock lock(mu_);
    return PartDoneLocked(part);
  }

  absl::Status result(size_t op) {
    MutexLock lock(mu_);
    KVCACHE_CHECK(op < results_.size(),
                  absl::StrCat("op ", op, " of a transfer with ", results_.size(), " ops"));
    return ended_[op] ? results_[op] : absl::UnavailableError("the copy is under way");
  }

  absl::Status Wait() {
    MutexLock lock(mu_);
    while (!done_) changed_.Wait(mu_);
    return FirstFailure();
  }

  absl::Status WaitPart(uint32_t part) {
    MutexLock lock(mu_);
    while (!PartDoneLocked(part)) changed_.Wait(mu_);
    for (size_t op = 0; op < parts_.size(); ++op) {
      if ((parts_[op] == part || parts_[op] == kUnknownPart) && !results_[op].ok()) {
        return results_[op];
      }
    }
    return absl::OkStatus();
  }

  const TransferSource::Hooks& hooks() const { return hooks_; }

  void OnOpDone(OpCallback callback) {
    std::vector<size_t> ended;
    auto shared = std::make_shared<OpCallback>(std::move(callback));
    bool holds_back_the_end;
    {
      MutexLock lock(mu_);
      for (size_t op = 0; op < ended_.size(); ++op) {
        if (ended_[op]) ended.push_back(op);
      }
      if (ended.size() < ended_.size()) op_callbacks_.push_back(shared);
      holds_back_the_end = !finishing_ && !done_;
      if (holds_back_the_end) ++completing_;
    }
    {
      const CallbackScope scope;
      for (size_t op : ended) (*shared)(op, result(op));
      shared.reset();
    }
    if (holds_back_the_end) FinishIfLast();
  }

  void OnDone(DoneCallback callback) {
    absl::Status status;
    {
      MutexLock lock(mu_);
      if (!done_) {
        done_callbacks_.push_back(std::move(callback));
        return;
      }
      status = FirstFailure();
    }
    const CallbackScope scope;
    callback(status);
  }

  void Keep(std::shared_ptr<void> object) {
    MutexLock lock(mu_);
    // After the end the object dies with the argument, without the lock.
    if (!finishing_ && !done_) kept_.push_back(std::move(object));
  }

  void Complete(size_t op, absl::Status status) {
    const CallbackScope scope;
    absl::InlinedVector<std::shared_ptr<OpCallback>, 2> callbacks;
    absl::Status result;
    {
      MutexLock lock(mu_);
      KVCACHE_CHECK(op < ended_.size() && !ended_[op],
                    absl::StrCat("op ", op, " of ", ended_.size(), " ended twice or is unknown"));
      ended_[op] = true;
      result = results_[op] = std::move(status);
      --remaining_;
      --remaining_of_part_[parts_[op]];
      ++completing_;
      callbacks.assign(op_callbacks_.begin(), op_callbacks_.end());
      changed_.NotifyAll();
    }
    for (const auto& callback : callbacks) (*callback)(op, result);
    callbacks.clear();
    FinishIfLast();
  }

  // Ends what its source will never end.
  void Abandon() {
    for (size_t op = 0; op < size(); ++op) {
      {
        MutexLock lock(mu_);
        if (ended_[op]) continue;
      }
      Complete(op, absl::AbortedError("the copy was given up by its source"));
    }
  }

 private:
  bool PartDoneLocked(uint32_t part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    auto it = remaining_of_part_.find(part);
    return it == remaining_of_part_.end() || it->second == 0;
  }

  absl::Status FirstFailure() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    auto it = std::find_if(results_.begin(), results_.end(),
                           [](const absl::Status& status) { return !status.ok(); });
    return it == results_.end() ? absl::OkStatus() : *it;
  }

  // The last thread that runs callbacks of single ops ends the transfer: objects go first, also
  // those that the callbacks captured and without the lock, then waiters wake.
  void FinishIfLast() {
    const CallbackScope scope;
    std::vector<std::shared_ptr<OpCallback>> op_callbacks;
    std::vector<std::shared_ptr<void>> kept;
    {
      MutexLock lock(mu_);
      if (--completing_ > 0 || remaining_ > 0) return;
      finishing_ = true;
      op_callbacks.swap(op_callbacks_);
      kept.swap(kept_);
    }
    op_callbacks.clear();
    kept.clear();
    std::vector<DoneCallback> callbacks;
    absl::Status status;
    {
      MutexLock lock(mu_);
      done_ = true;
      status = FirstFailure();
      callbacks.swap(done_callbacks_);
      changed_.NotifyAll();
    }
    for (const DoneCallback& callback : callbacks) callback(status);
  }

  const std::vector<uint32_t> parts_;
  const TransferSource::Hooks hooks_;
  Mutex mu_;
  CondVar changed_;
  std::vector<bool> ended_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> results_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint32_t, size_t> remaining_of_part_ ABSL_GUARDED_BY(mu_);
  size_t remaining_ ABSL_GUARDED_BY(mu_);
  size_t completing_ ABSL_GUARDED_BY(mu_) = 0;  // calls that run callbacks of single ops
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<OpCallback>> op_callbacks_ ABSL_GUARDED_BY(mu_);
  std::vector<DoneCallback> done_callbacks_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<void>> kept_ ABSL_GUARDED_BY(mu_);
};

}  // namespace internal

Transfer Transfer::Completed(size_t ops) {
  Transfer transfer;
  transfer.completed_ops_ = ops;
  return transfer;
}

Transfer Transfer::Completed(std::vector<absl::Status> results) {
  const bool all_ok = std::all_of(results.begin(), results.end(),
                                  [](const absl::Status& status) { return status.ok(); });
  if (all_ok) return Completed(results.size());
  TransferSource source(std::vector<uint32_t>(results.size(), internal::kUnknownPart));
  for (size_t op = 0; op < results.size(); ++op) source.Complete(op, std::move(results[op]));
  return source.transfer();
}

size_t Transfer::size() const { return state_ == nullptr ? completed_ops_ : state_->size(); }

bool Transfer::Done() const { return state_ == nullptr || state_->Done(); }

bool Transfer::PartDone(uint32_t part) const { return state_ == nullptr || state_->PartDone(part); }

absl::Status Transfer::result(size_t op) const {
  KVCACHE_CHECK(op < size(), absl::StrCat("op ", op, " of a transfer with ", size(), " ops"));
  return state_ == nullptr ? absl::OkStatus() : state_->result(op);
}

absl::Status Transfer::Wait() const {
  return state_ == nullptr ? absl::OkStatus() : state_->Wait();
}

absl::Status Transfer::WaitPart(uint32_t part) const {
  return state_ == nullptr ? absl::OkStatus() : state_->WaitPart(part);
}

absl::Status Transfer::WaitOn(Stream stream) const {
  if (state_ == nullptr) return absl::OkStatus();
  if (stream.is_none() || !state_->hooks().order) return state_->Wait();
  return state_->hooks().order(stream, -1);
}

absl::Status Transfer::WaitPartOn(Stream stream, uint32_t part) const {
  if (state_ == nullptr) return absl::OkStatus();
  if (stream.is_none() || !state_->hooks().order) return state_->WaitPart(part);
  return state_->hooks().order(stream, part);
}

void internal::OnOpDone(const Transfer& transfer,
                        std::function<void(size_t, const absl::Status&)> callback) {
  if (transfer.state_ != nullptr) return transfer.state_->OnOpDone(std::move(callback));
  const CallbackScope scope;
  for (size_t op = 0; op < transfer.completed_ops_; ++op) callback(op, absl::OkStatus());
}

void internal::OnDone(const Transfer& transfer, std::function<void(const absl::Status&)> callback) {
  if (transfer.state_ != nullptr) return transfer.state_->OnDone(std::move(callback));
  const CallbackScope scope;
  callback(absl::OkStatus());
}

void internal::Keep(const Transfer& transfer, std::shared_ptr<void> object) {
  if (transfer.state_ != nullptr) transfer.state_->Keep(std::move(object));
}

bool internal::InTransferCallback() { return CallbackScope::depth > 0; }

void Transfer::Cancel() const {
  if (state_ != nullptr && state_->hooks().cancel) state_->hooks().cancel();
}

// Shared by all copies of a source; what is left when the last one goes is abandoned.
class TransferSource::Owner {
 public:
  explicit Owner(std::shared_ptr<internal::TransferState> state) : state_(std::move(state)) {}
  ~Owner() { state_->Abandon(); }
  const std::shared_ptr<internal::TransferState>& state() const { return state_; }

 private:
  const std::shared_ptr<internal::TransferState> state_;
};

TransferSource::TransferSource(absl::Span<const uint32_t> parts, Hooks hooks)
    : owner_(std::make_shared<Owner>(
          std::make_shared<internal::TransferState>(parts, std::move(hooks)))) {}

Transfer TransferSource::transfer() const { return Transfer(owner_->state()); }

void TransferSource::Complete(size_t op, absl::Status result) const {
  // A callback may destroy this source, and with it the last owner.
  const std::shared_ptr<internal::TransferState> state = owner_->state();
  state->Complete(op, std::move(result));
}

}  // namespace kvcache
