// The one copy routine of the store.
#ifndef KVCACHE_CORE_COPY_COPY_BYTES_H_
#define KVCACHE_CORE_COPY_COPY_BYTES_H_

#include <cstddef>

#include "kvcache/core/copy/memory_space.h"

namespace kvcache {

// When the destination of a copy is read, which decides whether it should be in the caches then. It
// is a matter of speed only: each gives the same bytes.
enum class NextRead {
  kSoon,   // by this thread, right after the copy: a get into the caller's buffer
  kLater,  // after the caches have seen much else: a put into the store
};

// Copies `from` to the as many bytes at `to`, which must not overlap. Any alignment and size. Under
// kLater large copies use stores that bypass the caches. Either way the bytes are published to
// other threads like those of memcpy: by whatever synchronisation follows. Safe for concurrent use.
void CopyBytes(std::byte* to, ConstBytes from, NextRead next_read);

}  // namespace kvcache

#endif  // KVCACHE_CORE_COPY_COPY_BYTES_H_
