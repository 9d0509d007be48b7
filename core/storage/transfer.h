// Transfer: a batch of copies that may still be under way. TransferSource: the side that performs
// it.
#ifndef KVCACHE_CORE_STORAGE_TRANSFER_H_
#define KVCACHE_CORE_STORAGE_TRANSFER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/base/no_memory.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

class Transfer;

// For the cache and the backends, whose work goes with the end of copies. Everybody else learns of
// it by CompletionQueue: what runs here holds up a thread on whose next ops others wait, so it is
// short, takes leaf locks only and waits for no transfer.
namespace internal {

class TransferState;

// What somebody does at the end of copies. An object, so that it can be made before they start:
// once they are under way, nothing may fail for lack of memory. Its functions are called on the
// threads that end the ops, without a lock, and allocate nothing.
class TransferHook {
 public:
  virtual ~TransferHook() = default;
  // Once for each op that has ended.
  virtual void OpEnded(size_t op, const absl::Status& status) {}
  // After that of all ops, and before Wait() returns: what the hook keeps for the copies goes.
  virtual void AllEnded() {}
  // Behind that; gets what Wait() returns.
  virtual void Done(const absl::Status& status) {}

 protected:
  enum class Hears { kOps, kWhole };  // kWhole: OpEnded() is not called
  explicit TransferHook(Hears hears = Hears::kOps) : hears_(hears) {}

 private:
  friend class TransferState;
  const Hears hears_;
  size_t first_ = 0;  // how many ops had ended before it came
  std::unique_ptr<TransferHook> next_;
};

// In this call for what has ended already. Allocates nothing.
void Attach(const Transfer& transfer, std::unique_ptr<TransferHook> hook);

// Hooks with one of the three functions. Throw std::bad_alloc.
void OnOpDone(const Transfer& transfer,
              std::function<void(size_t op, const absl::Status&)> callback);
void OnDone(const Transfer& transfer, std::function<void(const absl::Status&)> callback);
void Keep(const Transfer& transfer, std::shared_ptr<void> object);

// Whether this thread is in a function of a hook of any transfer: then it may be one that a
// backend's destructor joins.
bool InTransferCallback();

// What `f` returns, or, when it throws std::bad_alloc, a transfer of `ops` ops that end with
// NoMemory(). `f` must leave nothing half done, and no copy under way.
template <typename F>
Transfer WithoutThrowing(size_t ops, const F& f);

}  // namespace internal

// A move-only handle on a batch of copies ("ops"), each with a result of its own: one failed op
// says nothing about the others. Every op carries one part (a layer of a block); several ops may
// carry the same part.
//
// Dropping the handle never blocks and never cuts a copy short: source and destination stay in use
// until the copies have ended, which is what Done() or Wait() tells.
//
// Thread-safe, except that a Transfer must not be moved or destroyed while another thread uses it.
class Transfer {
 public:
  // Done, with no ops.
  Transfer() = default;
  // Done, with `ops` ops that all have this result; allocates nothing. What a synchronous copy
  // returns.
  static Transfer Completed(size_t ops, absl::Status result = absl::OkStatus());
  // Done, with these results. Which parts they carry is not known: a failure fails every part.
  static Transfer Completed(std::vector<absl::Status> results);

  Transfer(Transfer&&) = default;
  Transfer& operator=(Transfer&&) = default;

  size_t size() const;
  bool Done() const;
  bool PartDone(uint32_t part) const;

  // The result of one op; kUnavailable while it is under way. REQUIRES: op < size().
  absl::Status result(size_t op) const;

  // Blocks until all ops (of one part) have ended. Returns the first failure in the order of ops.
  absl::Status Wait() const;
  absl::Status WaitPart(uint32_t part) const;

  // Makes later work on `stream` wait for all ops (of one part) without blocking the calling thread
  // where the source of the copies can do that; otherwise, and for Stream::None(), blocks. An OK
  // status after a wait on a device says that the order is established, not that the copies
  // succeeded.
  absl::Status WaitOn(Stream stream) const;
  absl::Status WaitPartOn(Stream stream, uint32_t part) const;

  // Asks for the ops that have not started to end with kCancelled. Best effort: an op may still
  // succeed.
  void Cancel() const;

 private:
  friend class TransferSource;
  friend void internal::Attach(const Transfer&, std::unique_ptr<internal::TransferHook>);
  explicit Transfer(std::shared_ptr<internal::TransferState> state) : state_(std::move(state)) {}

  size_t completed_ops_ = 0;  // these two are used only without a state
  absl::Status completed_result_;
  std::shared_ptr<internal::TransferState> state_;
};

// The producing side: whoever performs the copies makes one, hands out transfer() and ends every op
// exactly once. If the last copy of a source goes before that, the remaining ops end with kAborted,
// so that nobody waits for ever. Copyable; copies share one transfer. Thread-safe.
class TransferSource {
 public:
  // What a device can do better than the host. Both are optional and are called without locks.
  struct Hooks {
    // Orders `stream` behind all ops (part < 0) or behind those of one part.
    std::function<absl::Status(Stream stream, int64_t part)> order;
    std::function<void()> cancel;
  };

  // One op per element: the part that it carries. Throws std::bad_alloc, as nothing else here does.
  explicit TransferSource(absl::Span<const uint32_t> parts, Hooks hooks = {});

  Transfer transfer() const;

  // Ends an op. REQUIRES: op in range and not ended before; the caller holds no lock that a
  // callback might want.
  void Complete(size_t op, absl::Status result) const;

 private:
  class Owner;
  std::shared_ptr<Owner> owner_;
};

template <typename F>
Transfer internal::WithoutThrowing(size_t ops, const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return Transfer::Completed(ops, NoMemory());
  }
}

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_TRANSFER_H_
