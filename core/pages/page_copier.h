// Copies between an engine's pages and blocks of a StorageBackend.
#ifndef KVCACHE_CORE_PAGES_PAGE_COPIER_H_
#define KVCACHE_CORE_PAGES_PAGE_COPIER_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kvcache/core/copy/memory_space.h"
#include "kvcache/core/pages/paged_kv.h"
#include "kvcache/core/storage/extent.h"
#include "kvcache/core/storage/storage_backend.h"
#include "kvcache/core/storage/transfer.h"

namespace kvcache {

// Between the pages of an engine and one part, layer `part`, of a block of tokens.count tokens: the
// part is at [offset, offset + layout.PartBytes(tokens.count)) of the extent. Checksums as those of
// WriteOp and ReadOp.
struct PagedWriteOp {
  Extent destination = {};
  size_t offset = 0;
  uint32_t part = 0;
  TokenRange tokens = {};
  uint64_t* checksum = nullptr;
};

struct PagedReadOp {
  Extent source = {};
  size_t offset = 0;
  uint32_t part = 0;
  TokenRange tokens = {};
  uint64_t checksum = 0;     // of the whole part
  uint32_t skip_tokens = 0;  // leading ones, below tokens.count, whose pages stay as they are
};

// What a backend offers that can move pages by itself: see StorageBackend::page_copier().
// Thread-safe.
class PageCopier {
 public:
  virtual ~PageCopier() = default;

  // As WritePages() and ReadPages() of the backend below.
  virtual Transfer WritePages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                              absl::Span<const PagedWriteOp> ops, Stream stream) = 0;
  virtual Transfer ReadPages(const PagedKv& kv, absl::Span<const int32_t> page_table,
                             absl::Span<const PagedReadOp> ops, Stream stream) = 0;
};

// Like Write() and Read() of `backend`, from and to pages: by its page copier, or as those below.
// All ops end with kInvalidArgument when `kv` is not valid or the backend cannot reach its memory;
// one does when the tokens to copy are not in the page table, its part is none of the layers, or
// its bytes not in the extent. `kv`, the page table and the ops are read before the call returns.
// The backend must outlive the transfer.
Transfer WritePages(StorageBackend& backend, const PagedKv& kv,
                    absl::Span<const int32_t> page_table, absl::Span<const PagedWriteOp> ops,
                    Stream stream);
Transfer ReadPages(StorageBackend& backend, const PagedKv& kv, absl::Span<const int32_t> page_table,
                   absl::Span<const PagedReadOp> ops, Stream stream);

// For pages in host memory, by this processor. Where it can reach the extents the copies have ended
// when the call returns. Elsewhere they go through buffers and Write() or Read(), and pages are
// filled on the thread that ends the read. Buffers of up to 64 MiB, or 4 parts, are in use at once;
// a call that needs more waits for the first of its own copies.
Transfer WriteHostPages(StorageBackend& backend, const PagedKv& kv,
                        absl::Span<const int32_t> page_table, absl::Span<const PagedWriteOp> ops,
                        Stream stream);
Transfer ReadHostPages(StorageBackend& backend, const PagedKv& kv,
                       absl::Span<const int32_t> page_table, absl::Span<const PagedReadOp> ops,
                       Stream stream);

// The checks that every page copier makes of an op of valid `kv`: kInvalidArgument, naming the
// values, for bytes outside the extent, no such layer, or tokens that are not in the page table.
absl::Status ValidateOp(const PagedKv& kv, absl::Span<const int32_t> page_table,
                        const PagedWriteOp& op);
absl::Status ValidateOp(const PagedKv& kv, absl::Span<const int32_t> page_table,
                        const PagedReadOp& op);

}  // namespace kvcache

#endif  // KVCACHE_CORE_PAGES_PAGE_COPIER_H_
