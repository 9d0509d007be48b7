#include "kvcache/backends/gpu/extent_uses.h"

#include <algorithm>

#include "kvcache/core/base/check.h"

namespace kvcache {

void ExtentUses::Begin(const Extent& extent, GpuStream stream, bool write,
                       std::vector<EventRef>* wait_for) {
  MutexLock lock(mu_);
  Use& use = uses_[extent.offset];
  KVCACHE_CHECK(!use.freed, "a copy of an extent that was freed, at offset ", extent.offset);
  ++use.copies;
  const auto wait = [&](const StreamEvent& last) {
    if (last.event != nullptr && last.stream != stream) wait_for->push_back(last.event);
  };
  wait(use.last_write);
  if (write) std::for_each(use.last_reads.begin(), use.last_reads.end(), wait);
}

void ExtentUses::SetEvent(const Extent& extent, GpuStream stream, bool write,
                          const EventRef& event) {
  MutexLock lock(mu_);
  Use& use = uses_[extent.offset];
  if (write) {
    use.last_write = {stream, event};
    use.last_reads.clear();
    return;
  }
  const auto last = std::find_if(use.last_reads.begin(), use.last_reads.end(),
                                 [&](const StreamEvent& read) { return read.stream == stream; });
  if (last != use.last_reads.end()) {
    last->event = event;
  } else {
    use.last_reads.push_back({stream, event});
  }
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
  if (it->second.last_write.event != nullptr) events.push_back(it->second.last_write.event);
  for (const StreamEvent& read : it->second.last_reads) {
    if (write) events.push_back(read.event);
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
