#include "kvcache/examples/demo/terminal.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace kvcache::examples {
namespace {

volatile sig_atomic_t interrupted = 0;

}  // namespace

void CatchInterrupt() {
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = 1; };
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
}

bool Interrupted() { return interrupted != 0; }

ProgressLine::ProgressLine(size_t total) : total_(total), visible_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (visible_) std::fprintf(stderr, "\r\033[K");
}

void ProgressLine::Show(size_t done) {
  if (visible_) std::fprintf(stderr, "\rrequest %zu of %zu", std::min(done + 1, total_), total_);
}

}  // namespace kvcache::examples
