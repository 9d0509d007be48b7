// Transfer: a batch of copies that may still be under way. TransferSource: the side that performs
// it.
#ifndef KVCACHE_CORE_STORAGE_TRANSFER_H_
#define KVCACHE_CORE_STORAGE_TRANSFER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

class Transfer;

// For the cache and the backends, whose work goes with the end of copies. Everybody else learns of
// it by CompletionQueue: what runs here holds up a thread on whose next ops others wait, so it is
// short, takes leaf locks only and waits for no transfer.
namespace internal {

class TransferState;

// Runs `callback` once when an op, or the whole transfer, has ended: on the thread that ends it, or
// in this call for what has ended already. No lock is held while it runs. The whole transfer's
// callback gets what Wait() would return and runs after all callbacks of single ops.
void OnOpDone(const Transfer& transfer,
              std::function<void(size_t op, const absl::Status&)> callback);
void OnDone(const Transfer& transfer, std::function<void(const absl::Status&)> callback);

// Keeps `object` alive until every op has ended. It is destroyed before Wait() returns and before
// the callbacks of OnDone run.
void Keep(const Transfer& transfer, std::shared_ptr<void> object);

// Whether this thread is in a callback, or in the destructor of a kept object, of any transfer:
// then it may be one that a backend's destructor joins.
bool InTransferCallback();

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
  // Done, with `ops` ops that all succeeded; allocates nothing. What a synchronous copy returns.
  static Transfer Completed(size_t ops);
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
  friend void internal::OnOpDone(const Transfer&, std::function<void(size_t, const absl::Status&)>);
  friend void internal::OnDone(const Transfer&, std::function<void(const absl::Status&)>);
  friend void internal::Keep(const Transfer&, std::shared_ptr<void>);
  explicit Transfer(std::shared_ptr<internal::TransferState> state) : state_(std::move(state)) {}

  size_t completed_ops_ = 0;  // used only without a state
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

  // One op per element: the part that it carries.
  explicit TransferSource(absl::Span<const uint32_t> parts, Hooks hooks = {});

  Transfer transfer() const;

  // Ends an op. REQUIRES: op in range and not ended before; the caller holds no lock that a
  // callback might want.
  void Complete(size_t op, absl::Status result) const;

 private:
  class Owner;
  std::shared_ptr<Owner> owner_;
};

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_TRANSFER_H_
