// CompletionQueue: tells one thread which of many transfers have ended.
#ifndef KVCACHE_CORE_STORAGE_COMPLETION_QUEUE_H_
#define KVCACHE_CORE_STORAGE_COMPLETION_QUEUE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

// Transfers and batches of them are given to a queue with a tag of the caller's; what has ended is
// taken out of it, in the order in which it ended. This is how a program reacts to the end of
// copies: none of its code runs on the threads that end them.
//
//   CompletionQueue queue;
//   queue.Add(cache.ReadInto(requests), /*tag=*/7);
//   std::array<CompletionQueue::Completion, 16> ended;
//   for (size_t n; queue.Wait(deadline) && (n = queue.Poll(absl::MakeSpan(ended))) > 0;) ...
//
// A transfer may be dropped once it was added, and may outlive the queue: what nobody has taken is
// then forgotten. The end of a transfer allocates nothing here and costs some 100 ns, and a system
// call when it makes fd() readable. Thread-safe, but for the destructor.
class CompletionQueue {
 public:
  struct Completion {
    uint64_t tag = 0;
    absl::Status status = {};  // of a transfer: what Wait() returns; of a batch: the first failure
  };

  // `most` bounds what was added and has not been taken, at some 50 bytes each.
  explicit CompletionQueue(size_t most = size_t{1} << 20);
  ~CompletionQueue();
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  // One completion for the transfer, or for all of a batch; at once for what has ended already and
  // for an empty batch. Errors, after which there will be none: kResourceExhausted when `most` are
  // there, or for lack of memory.
  absl::Status Add(const Transfer& transfer, uint64_t tag) { return Add({&transfer, 1}, tag); }
  absl::Status Add(absl::Span<const Transfer> batch, uint64_t tag);

  // Takes up to completions.size() and returns how many. Never waits.
  size_t Poll(absl::Span<Completion> completions);

  // Waits until there is something to take, or until `deadline`; returns whether there is.
  bool Wait(std::chrono::steady_clock::time_point deadline =
                std::chrono::steady_clock::time_point::max());

  // What was added and has not been taken, ended or not.
  size_t size() const;

  // A descriptor that is readable while there is something to take (level-triggered), for poll()
  // and epoll: made by the first call, non-blocking, closed with the queue, and not to be read or
  // written by the caller. Errors: those of eventfd(2), kResourceExhausted when there are too many.
  absl::StatusOr<int> fd();

 private:
  class State;
  class Hook;
  const std::shared_ptr<State> state_;  // shared with the transfers
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_COMPLETION_QUEUE_H_
