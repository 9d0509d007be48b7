#include "kvcache/bench/process/scratch_dir.h"

#include <linux/magic.h>
#include <stdlib.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvcache::bench {
namespace {

constexpr char kSharedMemory[] = "/dev/shm";
// The path of a unix socket has at most 107 characters.
constexpr size_t kLongestParent = 60;

std::string TemporaryParent() {
  const char* named = std::getenv("TMPDIR");
  if (named == nullptr || *named == '\0' || std::strlen(named) > kLongestParent) return "/tmp";
  return named;
}

}  // namespace

ScratchDir::ScratchDir(std::string path) : path_(std::move(path)) {}

ScratchDir::ScratchDir(ScratchDir&& other) noexcept : path_(std::exchange(other.path_, "")) {}

ScratchDir::~ScratchDir() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<ScratchDir> ScratchDir::Create(Kind kind) {
  struct statfs status;
  if (kind == Kind::kInMemory &&
      (statfs(kSharedMemory, &status) != 0 || status.f_type != TMPFS_MAGIC)) {
    return absl::UnimplementedError(absl::StrCat("there is no tmpfs in ", kSharedMemory));
  }
  std::string path = absl::StrCat(kind == Kind::kInMemory ? kSharedMemory : TemporaryParent(),
                                  "/kvcache-bench-", getpid(), "-XXXXXX");
  if (mkdtemp(path.data()) == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot make folder '", path, "': ", std::strerror(errno)));
  }
  return ScratchDir(std::move(path));
}

absl::Status ScratchDir::CheckFree(size_t bytes) const {
  struct statfs status;
  if (statfs(path_.c_str(), &status) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot look at '", path_, "': ", std::strerror(errno)));
  }
  const size_t available = static_cast<size_t>(status.f_bavail) * status.f_bsize;
  if (available >= bytes) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat("needs ", bytes >> 20, " MiB in ",
                                               std::filesystem::path(path_).parent_path().string(),
                                               ", where ", available >> 20, " MiB are free"));
}

}  // namespace kvcache::bench
