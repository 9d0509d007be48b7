#ifndef KVCACHE_BENCH_PROCESS_SERVER_PROCESS_H_
#define KVCACHE_BENCH_PROCESS_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcache/bench/process/scratch_dir.h"

namespace kvcache::bench {

// A server of this process's own. It is killed when this goes, and also when the thread that
// started it ends in any other way. A Ctrl-C meant for this process does not reach it.
class ServerProcess {
 public:
  // Runs `command`, whose program is looked for in PATH, in `dir`, and waits until somebody listens
  // on the unix socket of the path `socket`. What it prints goes into `dir`/log. Errors:
  // kUnimplemented when there is no such program; kUnavailable, with the end of the log, when it
  // ends or nobody listens for 10 seconds.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const std::vector<std::string>& command, const ScratchDir& dir, const std::string& socket);
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  ~ServerProcess();

  pid_t pid() const { return pid_; }

 private:
  explicit ServerProcess(pid_t pid) : pid_(pid) {}
  bool Ended();

  const pid_t pid_;
  bool ended_ = false;
};

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_PROCESS_SERVER_PROCESS_H_
