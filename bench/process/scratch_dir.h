#ifndef KVCACHE_BENCH_PROCESS_SCRATCH_DIR_H_
#define KVCACHE_BENCH_PROCESS_SCRATCH_DIR_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvcache::bench {

// A folder of this process and its user only (0700), named kvcache-bench-PID-..., that goes, with
// all in it, when this does. Move-only.
class ScratchDir {
 public:
  enum class Kind {
    kTemporary,  // in $TMPDIR, or /tmp; short enough for the path of a socket in it
    kInMemory,   // in /dev/shm
  };

  // kUnimplemented, saying so, without a tmpfs in /dev/shm; others name the path and the reason.
  static absl::StatusOr<ScratchDir> Create(Kind kind);
  ScratchDir(ScratchDir&& other) noexcept;
  ScratchDir& operator=(ScratchDir&&) = delete;
  ~ScratchDir();

  const std::string& path() const { return path_; }

  // kUnimplemented, with the values, unless so many bytes are free there.
  absl::Status CheckFree(size_t bytes) const;

 private:
  explicit ScratchDir(std::string path);
  std::string path_;  // empty after a move
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_PROCESS_SCRATCH_DIR_H_
