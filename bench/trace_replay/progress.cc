#include "kvcache/bench/trace_replay/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_format.h"

namespace kvcache::bench {
namespace {

constexpr size_t kWidth = 30;

}  // namespace

ProgressBar::ProgressBar() : visible_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (visible_) std::fprintf(stderr, "\r\033[K");
}

void ProgressBar::Show(size_t done, size_t all, absl::string_view next) {
  if (!visible_) return;
  const size_t full = kWidth * std::min(done, all) / std::max<size_t>(all, 1);
  const std::string bar = std::string(full, '#') + std::string(kWidth - full, ' ');
  absl::FPrintF(stderr, "\r\033[K[%s] %d of %d: %s", bar, done, all, next);
  std::fflush(stderr);
}

}  // namespace kvcache::bench
