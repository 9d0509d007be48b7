#include "kvcache/backends/host_memory/available_memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace kvcache {
namespace {

// What the two versions of control groups call the same things.
struct GroupFiles {
  const char* mount;
  const char* limit;
  const char* used;
  const char* droppable;  // a field of memory.stat
};
constexpr GroupFiles kVersion1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                  "memory.usage_in_bytes", "total_inactive_file"};
constexpr GroupFiles kVersion2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                  "inactive_file"};

// Empty when the file is missing, or too long to be one of those that are read here.
std::string ReadFile(const std::string& path) {
  constexpr std::streamsize kMaxBytes = 64 << 10;
  std::ifstream file(path, std::ios::binary);
  std::string contents(kMaxBytes, '\0');
  file.read(contents.data(), kMaxBytes);
  contents.resize(file.gcount());
  return file.gcount() < kMaxBytes ? contents : "";
}

std::optional<uint64_t> Number(absl::string_view text) {
  uint64_t number;
  if (!absl::SimpleAtoi(text, &number)) return std::nullopt;
  return number;
}

// The number behind `name` on a line of its own: "inactive_file 4096", "MemAvailable:  17 kB".
std::optional<uint64_t> Field(absl::string_view contents, absl::string_view name,
                              absl::string_view unit = "") {
  for (absl::string_view line : absl::StrSplit(contents, '\n')) {
    if (!absl::ConsumePrefix(&line, absl::StrCat(name, " "))) continue;
    if (!absl::ConsumeSuffix(&line, unit)) return std::nullopt;
    return Number(line);
  }
  return std::nullopt;
}

void Lower(AvailableMemory& available, uint64_t bytes, std::string limit) {
  if (bytes >= available.bytes) return;
  available = {static_cast<size_t>(bytes), std::move(limit)};
}

// Applies the limits of the group `path` and of all above it. The files of the topmost groups are
// missing where a container sees only its own part of the tree.
void LowerToGroup(const std::string& root, const GroupFiles& files, std::string path,
                  AvailableMemory& available) {
  // A process that is outside the part of the tree that it sees.
  if (absl::StartsWith(path, "/..")) path.clear();
  while (true) {
    while (absl::EndsWith(path, "/")) path.pop_back();
    const std::string folder = absl::StrCat(files.mount, path, "/");
    const std::string limit_path = absl::StrCat(folder, files.limit);
    // "max", which is no number, is no limit.
    if (const auto limit = Number(ReadFile(root + limit_path))) {
      const uint64_t used = Number(ReadFile(absl::StrCat(root, folder, files.used))).value_or(0);
      const uint64_t droppable =
          Field(ReadFile(absl::StrCat(root, folder, "memory.stat")), files.droppable).value_or(0);
      const uint64_t needed = used - std::min(used, droppable);
      Lower(available, *limit - std::min(*limit, needed), limit_path);
    }
    if (path.empty()) return;
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

}  // namespace

AvailableMemory ReadAvailableMemory(std::optional<int> numa_node, const std::string& root) {
  AvailableMemory available = {std::numeric_limits<size_t>::max(), "no limit"};
  const auto lower_kib = [&](std::optional<uint64_t> kib, std::string limit) {
    if (!kib || *kib > std::numeric_limits<size_t>::max() / 1024) return;
    Lower(available, *kib * 1024, std::move(limit));
  };
  lower_kib(Field(ReadFile(root + "/proc/meminfo"), "MemAvailable:", "kB"),
            "MemAvailable in /proc/meminfo");
  if (numa_node.has_value()) {
    const std::string path = absl::StrCat("/sys/devices/system/node/node", *numa_node, "/meminfo");
    const std::string contents = ReadFile(root + path);
    const std::string node = absl::StrCat("Node ", *numa_node, " ");
    std::optional<uint64_t> kib = Field(contents, node + "MemFree:", "kB");
    if (kib) *kib += Field(contents, node + "Inactive(file):", "kB").value_or(0);
    lower_kib(kib, absl::StrCat("MemFree and Inactive(file) in ", path));
  }
  // Lines of "number:controllers:path"; version 2 has no controllers.
  const std::string groups = ReadFile(root + "/proc/self/cgroup");
  for (const absl::string_view line : absl::StrSplit(groups, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (fields[1].empty()) {
      LowerToGroup(root, kVersion2, std::string(fields[2]), available);
    } else {
      for (const absl::string_view controller : absl::StrSplit(fields[1], ',')) {
        if (controller != "memory") continue;
        LowerToGroup(root, kVersion1, std::string(fields[2]), available);
      }
    }
  }
  return available;
}

}  // namespace kvcache
