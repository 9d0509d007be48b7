#include "kvcache/core/storage/completion_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "kvcache/core/base/check.h"
#include "kvcache/core/base/mutex.h"
#include "kvcache/core/base/no_memory.h"

namespace kvcache {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

}  // namespace

class CompletionQueue::State {
 public:
  explicit State(size_t most) : most_(std::min<size_t>(most, kNone)) {}
  ~State() {
    if (fd_ >= 0) close(fd_);
  }

  // An entry that ends after `transfers` calls of End().
  absl::StatusOr<uint32_t> Begin(size_t transfers, uint64_t tag) {
    MutexLock lock(mu_);
    if (size_ == most_) {
      return internal::Error(absl::StatusCode::kResourceExhausted, "a completion queue of ", most_,
                             ": nobody takes what is there");
    }
    uint32_t i = free_;
    if (i != kNone) {
      free_ = entries_[i].next;
    } else {
      i = static_cast<uint32_t>(entries_.size());
      entries_.emplace_back();
    }
    entries_[i] = {tag, transfers, {}, kNone};
    ++size_;
    return i;
  }

  void End(uint32_t i, const absl::Status& status) {
    MutexLock lock(mu_);
    if (closed_) return;
    Entry& entry = entries_[i];
    entry.status.Update(status);
    if (--entry.left > 0) return;
    if (first_ == kNone) {
      first_ = i;
      Signal();
    } else {
      entries_[last_].next = i;
    }
    last_ = i;
    ended_.NotifyAll();
  }

  size_t Poll(absl::Span<Completion> completions) {
    MutexLock lock(mu_);
    size_t taken = 0;
    for (; taken < completions.size() && first_ != kNone; ++taken) {
      const uint32_t i = first_;
      Entry& entry = entries_[i];
      completions[taken] = {entry.tag, std::move(entry.status)};
      first_ = std::exchange(entry.next, free_);
      free_ = i;
    }
    size_ -= taken;
    if (taken > 0 && first_ == kNone && fd_ >= 0) {
      eventfd_t count;
      KVCACHE_CHECK(eventfd_read(fd_, &count) == 0, "reading an eventfd: errno ", errno);
    }
    return taken;
  }

  bool Wait(std::chrono::steady_clock::time_point deadline) {
    constexpr auto kForEver = std::chrono::steady_clock::time_point::max();
    MutexLock lock(mu_);
    while (first_ == kNone) {
      if (deadline == kForEver) {
        ended_.Wait(mu_);
        continue;
      }
      if (std::chrono::steady_clock::now() >= deadline) return false;
      ended_.WaitUntil(mu_, deadline);
    }
    return true;
  }

  size_t size() {
    MutexLock lock(mu_);
    return size_;
  }

  absl::StatusOr<int> fd() {
    MutexLock lock(mu_);
    if (fd_ < 0) {
      fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
      if (fd_ < 0)
        return internal::WithoutThrowing([] { return absl::ErrnoToStatus(errno, "eventfd"); });
      if (first_ != kNone) Signal();
    }
    return fd_;
  }

  void Close() {
    MutexLock lock(mu_);
    closed_ = true;
    entries_ = {};
  }

 private:
  struct Entry {
    uint64_t tag = 0;
    size_t left = 0;  // transfers that have not ended
    absl::Status status = {};
    uint32_t next = kNone;  // of those that ended, or of the free ones
  };

  void Signal() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (fd_ < 0) return;
    KVCACHE_CHECK(eventfd_write(fd_, 1) == 0, "writing an eventfd: errno ", errno);
  }

  const size_t most_;
  Mutex mu_;
  CondVar ended_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mu_);
  uint32_t free_ ABSL_GUARDED_BY(mu_) = kNone;
  uint32_t first_ ABSL_GUARDED_BY(mu_) = kNone;  // of those that ended
  uint32_t last_ ABSL_GUARDED_BY(mu_) = kNone;
  size_t size_ ABSL_GUARDED_BY(mu_) = 0;
  int fd_ ABSL_GUARDED_BY(mu_) = -1;  // readable while first_ is there
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

CompletionQueue::CompletionQueue(size_t most) : state_(std::make_shared<State>(most)) {}

CompletionQueue::~CompletionQueue() { state_->Close(); }

class CompletionQueue::Hook final : public internal::TransferHook {
 public:
  explicit Hook(std::shared_ptr<State> state) : TransferHook(Hears::kWhole), state_(state) {}
  void Done(const absl::Status& status) override { state_->End(entry, status); }

  uint32_t entry = kNone;

 private:
  const std::shared_ptr<State> state_;
};

absl::Status CompletionQueue::Add(absl::Span<const Transfer> batch, uint64_t tag) {
  return internal::WithoutThrowing([&]() -> absl::Status {
    absl::InlinedVector<std::unique_ptr<Hook>, 1> hooks(batch.size());
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!batch[i].Done()) hooks[i] = std::make_unique<Hook>(state_);
    }
    // One more, for this call, so that the entry does not end under it.
    const absl::StatusOr<uint32_t> entry = state_->Begin(batch.size() + 1, tag);
    if (!entry.ok()) return entry.status();
    for (size_t i = 0; i < batch.size(); ++i) {
      if (hooks[i] == nullptr) {
        state_->End(*entry, batch[i].Wait());
        continue;
      }
      hooks[i]->entry = *entry;
      internal::Attach(batch[i], std::move(hooks[i]));
    }
    state_->End(*entry, absl::OkStatus());
    return absl::OkStatus();
  });
}

size_t CompletionQueue::Poll(absl::Span<Completion> completions) {
  return state_->Poll(completions);
}

bool CompletionQueue::Wait(std::chrono::steady_clock::time_point deadline) {
  return state_->Wait(deadline);
}

size_t CompletionQueue::size() const { return state_->size(); }

absl::StatusOr<int> CompletionQueue::fd() { return state_->fd(); }

}  // namespace kvcache
