#ifndef KVCACHE_BACKENDS_HOST_MEMORY_AVAILABLE_MEMORY_H_
#define KVCACHE_BACKENDS_HOST_MEMORY_AVAILABLE_MEMORY_H_

#include <cstddef>
#include <optional>
#include <string>

namespace kvcache {

struct AvailableMemory {
  // The largest size_t when no limit could be read.
  size_t bytes = 0;
  // What sets it, for messages: "MemAvailable in /proc/meminfo", "/sys/fs/cgroup/a/memory.max".
  std::string limit;
};

// How much more memory this process can take before the system kills something for it: the smallest
// of MemAvailable and of what is left in its control group and in each group above that one
// (version 2, or the memory controller of version 1). What a group's limit counts but the system
// can drop, its inactive file pages, is not in use. A file that is missing or makes no sense limits
// nothing. With a NUMA node: of memory that must be there, which is also what is free there, and
// its inactive file pages.
//
// A snapshot: other processes take and give memory all the time. `root` goes before every path;
// tests keep files of their own there.
AvailableMemory ReadAvailableMemory(std::optional<int> numa_node = std::nullopt,
                                    const std::string& root = "");

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_HOST_MEMORY_AVAILABLE_MEMORY_H_
