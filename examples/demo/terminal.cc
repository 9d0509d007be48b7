#include "kvcache/examples/demo/terminal.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace kvcache::examples {
namespace {

volatile sig_atomic_t interrupted = 0;

}  // namespace

void OpenStandardFiles() {
  int fd = 0;
  while (fd >= 0 && fd <= STDERR_FILENO) fd = open("/dev/null", O_RDONLY);
  if (fd >= 0) close(fd);
}

absl::Status Print(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return absl::OkStatus();
  return absl::UnavailableError("cannot write to the standard output");
}

void CatchInterrupt() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = 1; };
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  for (const int signal : {SIGINT, SIGHUP, SIGTERM}) sigaction(signal, &action, nullptr);
}

bool Interrupted() { return interrupted != 0; }

ProgressLine::ProgressLine(const char* what, size_t total)
    : what_(what), total_(total), visible_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (visible_) std::fprintf(stderr, "\r\033[K");
}

void ProgressLine::Show(size_t done) {
  if (!visible_) return;
  std::fprintf(stderr, "\r%s %zu of %zu", what_, std::min(done + 1, total_), total_);
}

}  // namespace kvcache::examples
