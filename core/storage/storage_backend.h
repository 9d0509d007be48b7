// StorageBackend: a medium that can hold blocks.
#ifndef KVCACHE_CORE_STORAGE_STORAGE_BACKEND_H_
#define KVCACHE_CORE_STORAGE_STORAGE_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/stats/backend_stats.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

class PageCopier;

// What a backend is and can do: declared once, never discovered by a call that fails.
struct BackendTraits {
  std::string name = {};
  MemorySpace memory_space = {};
  // Whether Address() gives pointers into memory_space. False for media without pointers.
  bool addressable = true;
  // False for a backend that only counts: Write() succeeds, Read() fails with kFailedPrecondition.
  bool stores_bytes = true;
  size_t capacity_bytes = 0;
  // Offsets and sizes of extents are multiples of this power of two.
  size_t alignment = 64;
  // Whether every copy has ended when Write() or Read() returns. The cache then makes nothing ready
  // for one that goes on.
  bool copies_in_call = false;
};

// The memory of a backend as another process, a device or a network adapter can map it, once: byte
// `i` of an extent is byte extent.offset + i of the file and of the memory at `base`.
struct ExportedMemory {
  int fd = -1;                // the backend's, open as long as it lives; dup() it to keep it
  std::byte* base = nullptr;  // where this process has it
  size_t size = 0;
};

// Gathers `source`, in order, into the extent from `offset` on.
struct WriteOp {
  Extent destination = {};
  size_t offset = 0;
  absl::Span<const ConstBytes> source = {};
  MemorySpace source_space = {};
  uint32_t part = 0;
  // Empty, or one for each of as many equal stretches of the bytes, in order: set to their
  // checksums (core/copy/checksum.h) before the op ends well; left as they are when neither side is
  // the host's memory.
  absl::Span<uint64_t> checksums = {};
};

// Scatters the extent's bytes from `offset` on into `destination`, in order.
struct ReadOp {
  Extent source = {};
  size_t offset = 0;
  absl::Span<const MutableBytes> destination = {};
  MemorySpace destination_space = {};
  uint32_t part = 0;
  // Likewise, what the checksums of the bytes should be; 0: not known. When one is different, the
  // op ends with kDataLoss, and nothing is promised about the destination.
  absl::Span<const uint64_t> checksums = {};
};

// Whether a read that ended with `status` says that the extent's bytes cannot be had: then the
// block is of no use. See the codes at StorageBackend.
bool IsMediumFault(const absl::Status& status);

// Holds extents of bytes and copies to and from them. It knows nothing of keys, leases or eviction;
// the cache above it guarantees that nobody reads an extent that is being written and that no
// extent is freed while a copy uses it.
//
// An op ends with one of these codes:
//   kOk                  the bytes were copied
//   kInvalidArgument     the caller's fault, see Write()
//   kFailedPrecondition  neither the caller's fault nor the medium's: the medium stores no bytes,
//                        or the other side cannot be reached any more, as a failed device
//   kResourceExhausted   nor this: there was no memory to do it with
//   kCancelled           Transfer::Cancel() came first
//   kDataLoss            a read: the bytes are there, but they are not those that were written
//   any other            the medium could not do it
// What a read has left in its destination after an error is not defined; a failed write leaves the
// bytes of its op, and no others, undefined. The last two lines are IsMediumFault(): the cache
// drops the block, so that a bad place is a miss from then on.
//
// Thread-safe: every method may be called by any thread at any time. No method throws, but for
// stats(): one that finds no memory says kResourceExhausted, after which no copy is under way but
// those whose ops say so.
class StorageBackend {
 public:
  // Waits for the copies under way, or cuts them short: when it returns, every op has ended and no
  // memory of a caller is used any more. Extents need not be freed before. REQUIRES: nobody is in a
  // call.
  virtual ~StorageBackend() = default;

  virtual const BackendTraits& traits() const = 0;

  // An extent of `bytes` rounded up to traits().alignment. Errors: kInvalidArgument for 0 bytes or
  // more than the capacity; kResourceExhausted when no free extent is large enough (for lack of
  // room or because what is free is in pieces); other codes when the medium has failed. `owner` is
  // whatever the caller wants ListExtents() to say of the extent.
  virtual absl::StatusOr<Extent> Allocate(size_t bytes, uint32_t owner = 0) = 0;

  // REQUIRES: `extent` came from Allocate() and was not freed since; no copy uses it.
  virtual void Free(Extent extent) = 0;

  // For backends whose free memory may be in pieces: what there is side by side, so that the cache
  // can evict neighbours for a block that fits nowhere. As ExtentAllocator::List() and SetOwner().
  // These implementations are for backends without places: they list nothing.
  virtual size_t ListExtents(const Extent& from, bool around, size_t bytes,
                             absl::Span<Neighbour> out) {
    return 0;
  }
  virtual void SetOwner(const Extent& extent, uint32_t owner) {}

  // A pointer to the extent's first byte in traits().memory_space, stable until Free(); nullptr
  // when not traits().addressable.
  virtual std::byte* Address(Extent extent) const = 0;

  // Starts the copies; they may have ended when the call returns. The op lists are read before the
  // call returns; the memory that they name must stay valid and unchanged until the op has ended.
  // A source in host memory must be final when the call is made, whatever is on the stream.
  // Every backend that stores bytes computes the checksums that ops ask for, on the host; where a
  // copy need not wait for that, an op may end with kDataLoss after its bytes have arrived.
  // An op that does not fit its extent, names null memory or a memory space that this backend
  // cannot reach ends with kInvalidArgument; the others are not affected. All ops do when the
  // copies cannot be put behind the work on `stream`. No order among the ops of a call.
  virtual Transfer Write(absl::Span<const WriteOp> ops, Stream stream) = 0;
  virtual Transfer Read(absl::Span<const ReadOp> ops, Stream stream) = 0;

  // What moves an engine's pages to and from extents, where the backend does better than copies of
  // host memory do (core/pages/page_copier.h). Lives as long as the backend. Default: nullptr,
  // none.
  virtual PageCopier* page_copier() { return nullptr; }

  // A transfer of one op that ends once the work that is on `stream` already has ended: for bytes
  // that somebody uses in place, in the order of a stream. Ends with kInvalidArgument when the
  // backend knows no such streams. This implementation knows none but Stream::None().
  virtual Transfer After(Stream stream);

  // `callback` is called, once, from any thread and without locks of the backend's calls, when the
  // medium has failed for good: from then on Allocate() and every op that is valid fail with what
  // it says. It is called at once, before this returns, when that has happened already. Replaces
  // the callback of an earlier call and returns when that is not running, so a callback must not
  // call it; nullptr: none. FailureLatch does all of this. This implementation never fails.
  virtual void OnFailure(std::function<void(const absl::Status&)> callback) {}

  // nullopt for media that cannot be mapped, and for backends that were not asked to make it so.
  virtual std::optional<ExportedMemory> exported_memory() const { return std::nullopt; }

  // What the backend says of itself: its own figures, for Cache::stats(). Never blocks for long.
  virtual BackendStats stats() const { return {}; }
};

// The checks that every backend makes of an op before it copies: kInvalidArgument, naming the
// values, for bytes outside the extent (also by overflow), a null piece that is not empty, or bytes
// that the checksums do not divide. A backend adds its own check of the memory space.
absl::Status ValidateOp(const WriteOp& op);
absl::Status ValidateOp(const ReadOp& op);

}  // namespace kvcache

#endif  // KVCACHE_CORE_STORAGE_STORAGE_BACKEND_H_
