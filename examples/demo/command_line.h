#ifndef KVCACHE_EXAMPLES_DEMO_COMMAND_LINE_H_
#define KVCACHE_EXAMPLES_DEMO_COMMAND_LINE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvcache::examples {

// Opens the standard files and parses the command line. Ends the program, with code 0 after
// printing `help` for --help, with code 2 after a line on stderr for what is not understood.
void ParseFlags(int argc, char** argv, absl::string_view help);

// kInvalidArgument, naming the flag, its value and the problem.
absl::Status BadFlag(absl::string_view flag, absl::string_view value, absl::string_view problem);

// kInvalidArgument, naming the flag, its value and the range, unless low <= value <= high.
absl::Status CheckRange(absl::string_view flag, int64_t value, int64_t low, int64_t high);

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_DEMO_COMMAND_LINE_H_
