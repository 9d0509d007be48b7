#include "kvcache/examples/demo/command_line.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "kvcache/examples/demo/terminal.h"

namespace kvcache::examples {
namespace {

bool parsing = false;

// absl::ParseCommandLine() ends the program with 1 for what it does not understand.
void EndWith2(int code, void*) {
  if (!parsing || code == 0) return;
  std::fflush(nullptr);
  _exit(2);
}

}  // namespace

void ParseFlags(int argc, char** argv, absl::string_view help) {
  OpenStandardFiles();
  for (int i = 1; i < argc && absl::string_view(argv[i]) != "--"; ++i) {
    const absl::string_view argument = argv[i];
    if (argument == "--help" || argument == "-help" || argument == "-h") {
      const absl::Status printed = Print(help);
      if (!printed.ok()) std::fprintf(stderr, "%s\n", std::string(printed.message()).c_str());
      std::exit(printed.ok() ? 0 : 1);
    }
  }
  parsing = true;
  on_exit(EndWith2, nullptr);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  parsing = false;
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
