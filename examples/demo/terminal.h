#ifndef KVCACHE_EXAMPLES_DEMO_TERMINAL_H_
#define KVCACHE_EXAMPLES_DEMO_TERMINAL_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvcache::examples {

// Opens those of stdin, stdout and stderr that are closed, so that no other file gets their
// numbers. What is written to them fails. To be called before any file is opened.
void OpenStandardFiles();

// Writes `text`, and all before it, to stdout. kUnavailable when that fails.
absl::Status Print(absl::string_view text);

// From now on Ctrl-C, a hang-up or SIGTERM makes Interrupted() true; a second one of its kind ends
// the program as usual.
void CatchInterrupt();
bool Interrupted();

// "request 7 of 100" on stderr, in one line that goes when this does; nothing unless stderr is a
// terminal.
class ProgressLine {
 public:
  // `what`, "request" say, outlives this.
  ProgressLine(const char* what, size_t total);
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ~ProgressLine();

  void Show(size_t done);

 private:
  const char* const what_;
  const size_t total_;
  const bool visible_;
};

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_TERMINAL_H_
