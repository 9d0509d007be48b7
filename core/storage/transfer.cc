#include "kvcache/core/storage/transfer.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

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
  TransferState(absl::Span<const uint32_t> parts, TransferSource::Hooks hooks)
      : parts_(parts.begin(), parts.end()),
        hooks_(std::move(hooks)),
        ended_(parts.size(), false),
        results_(parts.size()),
        done_(parts.empty()) {
    in_order_.reserve(parts.size());
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
    if (ended_[op]) return results_[op];
    return Error(absl::StatusCode::kUnavailable, "the copy is under way");
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

  void Attach(std::unique_ptr<TransferHook> hook) {
    const CallbackScope scope;
    TransferHook& attached = *hook;
    const bool hears_ops = hook->hears_ == TransferHook::Hears::kOps;
    size_t before;
    bool ended;
    {
      MutexLock lock(mu_);
      before = attached.first_ = in_order_.size();
      ended = finishing_ || done_;
      if (!ended) {
        Append(std::move(hook));
        completing_ += hears_ops;
      }
    }
    for (size_t i = 0; i < before && hears_ops; ++i) {
      size_t op;
      absl::Status status;
      {
        MutexLock lock(mu_);
        op = in_order_[i];
        status = results_[op];
      }
      attached.OpEnded(op, status);
    }
    if (!ended) {
      if (hears_ops) FinishIfLast();
      return;
    }
    attached.AllEnded();
    absl::Status status;
    {
      MutexLock lock(mu_);
      if (!done_) return Append(std::move(hook));
      status = FirstFailure();
    }
    attached.Done(status);
  }

  void Complete(size_t op, absl::Status status) {
    const CallbackScope scope;
    size_t number;
    absl::Status result;
    {
      MutexLock lock(mu_);
      KVCACHE_CHECK(op < ended_.size() && !ended_[op],
                    absl::StrCat("op ", op, " of ", ended_.size(), " ended twice or is unknown"));
      ended_[op] = true;
      result = results_[op] = std::move(status);
      number = in_order_.size();
      in_order_.push_back(static_cast<uint32_t>(op));
      --remaining_of_part_.find(parts_[op])->second;
      ++completing_;
      changed_.NotifyAll();
    }
    TransferHook* hook = nullptr;
    while ((hook = NextHearing(number, hook)) != nullptr) hook->OpEnded(op, result);
    FinishIfLast();
  }

  // Ends what its source will never end.
  void Abandon() {
    for (size_t op = 0; op < size(); ++op) {
      {
        MutexLock lock(mu_);
        if (ended_[op]) continue;
      }
      Complete(op, Error(absl::StatusCode::kAborted, "the copy was given up by its source"));
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

  void Append(std::unique_ptr<TransferHook> hook) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    TransferHook* const last = hook.get();
    (last_hook_ == nullptr ? first_hook_ : last_hook_->next_) = std::move(hook);
    last_hook_ = last;
  }

  // The first hook behind `previous`, or of all, that came before the op with this number ended.
  TransferHook* NextHearing(size_t number, TransferHook* previous) {
    MutexLock lock(mu_);
    TransferHook* hook = previous == nullptr ? first_hook_.get() : previous->next_.get();
    while (hook != nullptr &&
           (hook->first_ > number || hook->hears_ != TransferHook::Hears::kOps)) {
      hook = hook->next_.get();
    }
    return hook;
  }

  // The last thread that calls hooks for single ops ends the transfer: what they keep goes first,
  // without the lock, then waiters wake.
  void FinishIfLast() {
    const CallbackScope scope;
    TransferHook* hook;
    TransferHook* last;  // those that come later are told by Attach()
    {
      MutexLock lock(mu_);
      if (--completing_ > 0 || in_order_.size() < size()) return;
      finishing_ = true;
      hook = first_hook_.get();
      last = last_hook_;
    }
    while (hook != nullptr) {
      hook->AllEnded();
      MutexLock lock(mu_);
      hook = hook == last ? nullptr : hook->next_.get();
    }
    std::unique_ptr<TransferHook> hooks;
    absl::Status status;
    {
      MutexLock lock(mu_);
      done_ = true;
      status = FirstFailure();
      hooks = std::move(first_hook_);
      last_hook_ = nullptr;
      changed_.NotifyAll();
    }
    while (hooks != nullptr) {
      hooks->Done(status);
      hooks = std::exchange(hooks->next_, nullptr);
    }
  }

  const std::vector<uint32_t> parts_;
  const TransferSource::Hooks hooks_;
  Mutex mu_;
  CondVar changed_;
  std::vector<bool> ended_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> results_ ABSL_GUARDED_BY(mu_);
  std::vector<uint32_t> in_order_ ABSL_GUARDED_BY(mu_);  // the ops that have ended
  // Not a flat_hash_map: one that could not grow cannot even be destroyed.
  std::unordered_map<uint32_t, size_t> remaining_of_part_ ABSL_GUARDED_BY(mu_);
  size_t completing_ ABSL_GUARDED_BY(mu_) = 0;  // calls that call hooks for single ops
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<TransferHook> first_hook_ ABSL_GUARDED_BY(mu_);
  TransferHook* last_hook_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace internal

Transfer Transfer::Completed(size_t ops, absl::Status result) {
  Transfer transfer;
  transfer.completed_ops_ = ops;
  transfer.completed_result_ = std::move(result);
  return transfer;
}

Transfer Transfer::Completed(std::vector<absl::Status> results) {
  if (results.empty()) return {};
  const bool all_same =
      std::all_of(results.begin(), results.end(),
                  [&](const absl::Status& status) { return status == results[0]; });
  if (all_same) return Completed(results.size(), std::move(results[0]));
  TransferSource source(std::vector<uint32_t>(results.size(), internal::kUnknownPart));
  for (size_t op = 0; op < results.size(); ++op) source.Complete(op, std::move(results[op]));
  return source.transfer();
}

size_t Transfer::size() const { return state_ == nullptr ? completed_ops_ : state_->size(); }

bool Transfer::Done() const { return state_ == nullptr || state_->Done(); }

bool Transfer::PartDone(uint32_t part) const { return state_ == nullptr || state_->PartDone(part); }

absl::Status Transfer::result(size_t op) const {
  KVCACHE_CHECK(op < size(), absl::StrCat("op ", op, " of a transfer with ", size(), " ops"));
  return state_ == nullptr ? completed_result_ : state_->result(op);
}

absl::Status Transfer::Wait() const {
  return state_ == nullptr ? completed_result_ : state_->Wait();
}

absl::Status Transfer::WaitPart(uint32_t part) const {
  return state_ == nullptr ? completed_result_ : state_->WaitPart(part);
}

absl::Status Transfer::WaitOn(Stream stream) const {
  if (state_ == nullptr) return completed_result_;
  if (stream.is_none() || !state_->hooks().order) return state_->Wait();
  return state_->hooks().order(stream, -1);
}

absl::Status Transfer::WaitPartOn(Stream stream, uint32_t part) const {
  if (state_ == nullptr) return completed_result_;
  if (stream.is_none() || !state_->hooks().order) return state_->WaitPart(part);
  return state_->hooks().order(stream, part);
}

void internal::Attach(const Transfer& transfer, std::unique_ptr<TransferHook> hook) {
  if (transfer.state_ != nullptr) return transfer.state_->Attach(std::move(hook));
  const CallbackScope scope;
  for (size_t op = 0; op < transfer.completed_ops_; ++op) {
    hook->OpEnded(op, transfer.completed_result_);
  }
  hook->AllEnded();
  hook->Done(transfer.completed_result_);
}

namespace internal {
namespace {

class OpDoneHook final : public TransferHook {
 public:
  explicit OpDoneHook(std::function<void(size_t, const absl::Status&)> callback)
      : callback_(std::move(callback)) {}
  void OpEnded(size_t op, const absl::Status& status) override { callback_(op, status); }
  void AllEnded() override { callback_ = nullptr; }

 private:
  std::function<void(size_t, const absl::Status&)> callback_;
};

class DoneHook final : public TransferHook {
 public:
  explicit DoneHook(std::function<void(const absl::Status&)> callback)
      : TransferHook(Hears::kWhole), callback_(std::move(callback)) {}
  void Done(const absl::Status& status) override { callback_(status); }

 private:
  const std::function<void(const absl::Status&)> callback_;
};

class KeepHook final : public TransferHook {
 public:
  explicit KeepHook(std::shared_ptr<void> object)
      : TransferHook(Hears::kWhole), object_(std::move(object)) {}
  void AllEnded() override { object_ = nullptr; }

 private:
  std::shared_ptr<void> object_;
};

}  // namespace
}  // namespace internal

void internal::OnOpDone(const Transfer& transfer,
                        std::function<void(size_t, const absl::Status&)> callback) {
  Attach(transfer, std::make_unique<OpDoneHook>(std::move(callback)));
}

void internal::OnDone(const Transfer& transfer, std::function<void(const absl::Status&)> callback) {
  Attach(transfer, std::make_unique<DoneHook>(std::move(callback)));
}

void internal::Keep(const Transfer& transfer, std::shared_ptr<void> object) {
  Attach(transfer, std::make_unique<KeepHook>(std::move(object)));
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
