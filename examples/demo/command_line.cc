#include "kvcache/examples/demo/command_line.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"

namespace kvcache::examples {

void ParseFlags(int argc, char** argv, absl::string_view help) {
  for (int i = 1; i < argc && absl::string_view(argv[i]) != "--"; ++i) {
    const absl::string_view argument = argv[i];
    if (argument == "--help" || argument == "-help" || argument == "-h") {
      std::printf("%s", std::string(help).c_str());
      std::exit(std::fflush(stdout) == 0 ? 0 : 1);
    }
  }
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    std::fprintf(stderr, "'%s' is no flag; --help lists them\n", rest[1]);
    std::exit(2);
  }
}

absl::Status BadFlag(absl::string_view flag, absl::string_view value, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", value, ": ", problem));
}

absl::Status CheckRange(absl::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (low <= value && value <= high) return absl::OkStatus();
  return BadFlag(flag, absl::StrCat(value), absl::StrCat("expected from ", low, " to ", high));
}

}  // namespace kvcache::examples
