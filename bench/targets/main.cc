// What the store is to reach, measured against what it cannot be faster than.
//
//   bazel run -c opt //bench/targets -- [--only=TEXT] [--rounds=N] [--json=FILE]
#include <cstdio>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "kvcache/bench/targets/suite.h"
#include "kvcache/examples/demo/json.h"
#include "kvcache/examples/demo/terminal.h"

namespace {

constexpr const char* kUsage =
    "Usage: targets [--only=TEXT] [--rounds=N] [--json=FILE]\n\n"
    "Measures the store beside references in the same run, and says which targets are met.\n\n"
    "  --only=TEXT    only rows whose name contains TEXT (hit, put, memory, copy, threads,\n"
    "                 allocator, policy, advice, waits)\n"
    "  --rounds=N     rounds of each row, whose median counts (default: 9)\n"
    "  --json=FILE    also write the results there\n";

}  // namespace

int main(int argc, char** argv) {
  kvcache::examples::OpenStandardFiles();
  kvcache::bench::Suite::Options options;
  std::string json;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (argument == "--help") {
      return kvcache::examples::Print(kUsage).ok() ? 0 : 1;
    }
    if (absl::ConsumePrefix(&argument, "--only=")) {
      options.only = std::string(argument);
    } else if (absl::ConsumePrefix(&argument, "--json=")) {
      json = std::string(argument);
    } else if (!absl::ConsumePrefix(&argument, "--rounds=") ||
               !absl::SimpleAtoi(argument, &options.rounds) || options.rounds < 1) {
      std::fprintf(stderr, "'%s' is no flag, or no value of one; --help lists them\n", argv[i]);
      return 2;
    }
  }
  std::optional<kvcache::examples::ResultFile> file;
  if (!json.empty()) {
    absl::StatusOr<kvcache::examples::ResultFile> opened =
        kvcache::examples::ResultFile::Open(json);
    if (!opened.ok()) {
      std::fprintf(stderr, "--json: %s\n", std::string(opened.status().message()).c_str());
      return 2;
    }
    file.emplace(*std::move(opened));
  }
  kvcache::bench::Suite suite(options);
  kvcache::bench::MeasureLookups(suite);
  kvcache::bench::MeasureWrites(suite);
  kvcache::bench::MeasurePolicies(suite);
  kvcache::bench::MeasureAdvice(suite);
  kvcache::bench::MeasureCopies(suite);
  kvcache::bench::MeasurePages(suite);
  kvcache::bench::MeasureThreads(suite);
  kvcache::bench::MeasureAllocator(suite);
  kvcache::bench::MeasureWaits(suite);
  const std::string results = suite.Report();
  absl::Status written = file.has_value() ? file->Write(results) : absl::OkStatus();
  if (written.ok()) written = kvcache::examples::Print("");
  if (!written.ok()) std::fprintf(stderr, "%s\n", std::string(written.message()).c_str());
  return written.ok() ? 0 : 1;
}
