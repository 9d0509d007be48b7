// What one call to a DeviceLink works on. Internal to it.
#ifndef KVCACHE_BACKENDS_GPU_DEVICE_LINK_CALLS_H_
#define KVCACHE_BACKENDS_GPU_DEVICE_LINK_CALLS_H_

#include <memory>

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
  const int32_t* page_table;                        // as the device reads it
  PartOfTokens* parts;                              // [ops.size()], as the device reads it
  std::shared_ptr<const MutableBytes> descriptors;  // where these two are
};

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_GPU_DEVICE_LINK_CALLS_H_
