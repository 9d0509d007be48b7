// What one call to a DeviceLink works on. Internal to it.
#ifndef KVCACHE_BACKENDS_GPU_DEVICE_LINK_CALLS_H_
#define KVCACHE_BACKENDS_GPU_DEVICE_LINK_CALLS_H_

#include <memory>
#include <vector>

#include "kvcache/backends/gpu/device_link.h"

namespace kvcache {

struct DeviceLink::Call {
  std::shared_ptr<LinkBatch> batch;
  absl::Span<const CopyPiece> pieces;
  absl::Span<const Op> ops;
  EventRef after;
};

struct DeviceLink::PagedCall {
  std::shared_ptr<LinkBatch> batch;
  const PagedKv& kv;
  absl::Span<const PagedOp> ops;
  PagesSide side;
  bool parts_on_host;
  EventRef after;
  // The page table goes to the device, since every thread reads it, with the first group.
  CopyPiece table;
  bool table_copied;
  // [ops.size()], in pinned memory.
  PartOfTokens* parts;
  std::vector<std::shared_ptr<const void>> descriptors;  // where these two are
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_DEVICE_LINK_CALLS_H_
