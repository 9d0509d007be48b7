#include "kvcache/backends/gpu/extent_uses.h"

#include "kvcache/core/check.h"

namespace kvcache {

void ExtentUses::Begin(const Extent& extent, int stream, bool write,
                       std::vector<EventRef>* wait_for) {
  Use& use = uses_[extent.offset];
  KVCACHE_CHECK(!use.freed, "a copy of an extent that was freed, at offset ", extent.offset);
  ++use.copies;
  if (use.last_write != nullptr && use.write_stream != stream) wait_for->push_back(use.last_write);
  for (int other = 0; write && other < kStreams; ++other) {
    if (other != stream && use.last_reads[other] != nullptr) {
      wait_for->push_back(use.last_reads[other]);
    }
  }
}

void ExtentUses::SetEvent(const Extent& extent, int stream, bool write, const EventRef& event) {
  Use& use = uses_[extent.offset];
  if (!write) {
    use.last_reads[stream] = event;
    return;
  }
  use.last_write = event;
  use.write_stream = stream;
  use.last_reads = {};
}

void ExtentUses::End(const Extent& extent) {
  bool freed;
  {
    MutexLock lock(mu_);
    const auto it = uses_.find(extent.offset);
    KVCACHE_CHECK(it != uses_.end(), "no copy uses the extent at offset ", extent.offset);
    if (--it->second.copies > 0) return;
    freed = it->second.freed;
    uses_.erase(it);
  }
  if (freed) free_(extent);
}

std::vector<EventRef> ExtentUses::Conflicts(const Extent& extent, bool write) {
  std::vector<EventRef> events;
  MutexLock lock(mu_);
  const auto it = uses_.find(extent.offset);
  if (it == uses_.end()) return events;
  if (it->second.last_write != nullptr) events.push_back(it->second.last_write);
  for (const EventRef& read : it->second.last_reads) {
    if (write && read != nullptr) events.push_back(read);
  }
  return events;
}

void ExtentUses::Free(const Extent& extent) {
  {
    MutexLock lock(mu_);
    const auto it = uses_.find(extent.offset);
    if (it != uses_.end()) {
      it->second.freed = true;
      return;
    }
  }
  free_(extent);
}

}  // namespace kvcache
