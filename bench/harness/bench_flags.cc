#include "kvcache/bench/harness/bench_flags.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "kvcache/examples/demo/command_line.h"

ABSL_FLAG(std::string, payloads, "128KiB,1MiB,4MiB", "sizes of the blocks");
ABSL_FLAG(std::string, systems, "all", "what is compared");
ABSL_FLAG(int, rounds, 5, "runs of everything");
ABSL_FLAG(int64_t, working_set_mb, 1024, "MiB that each store may take");
ABSL_FLAG(std::string, json, "", "file for the results");

namespace kvcache::bench {
namespace {

constexpr absl::string_view kFlags[] = {"help",   "json",    "payloads",
                                        "rounds", "systems", "working_set_mb"};
constexpr size_t kSmallestPayload = 4096;
constexpr size_t kLargestPayload = size_t{16} << 20;
// A payload has room in every part of a store: its buffers, slabs and files.
constexpr size_t kPayloadsInWorkingSet = 32;

std::string SystemNames(absl::string_view separator) {
  return absl::StrJoin(AllContenders(), separator,
                       [](std::string* out, const ContenderInfo& info) { *out += info.name; });
}

std::string Help() {
  std::string help =
      "Measures kvcache beside what else could hold the same blocks, and beside plain copies.\n"
      "One thread; what is not installed is skipped. Servers run while they are measured,\n"
      "on private unix sockets.\n"
      "\n"
      "  --payloads=LIST         sizes of the blocks, in KiB or MiB (default: 128KiB,1MiB,4MiB)\n"
      "  --systems=LIST          which of those below, separated by commas (default: all)\n"
      "  --rounds=N              runs of everything; medians are reported (default: 5)\n"
      "  --working_set_mb=N      MiB that each store may take (default: 1024)\n"
      "  --json=FILE             also write the results there\n"
      "  --help                  this text\n"
      "\n"
      "Systems:\n";
  for (const ContenderInfo& info : AllContenders()) {
    absl::StrAppend(&help, "  ", info.name,
                    std::string(info.name.size() < 22 ? 24 - info.name.size() : 2, ' '),
                    info.description, "\n");
  }
  return help;
}

// Ends the program at the first flag that is none of this program's; absl knows many more.
void RefuseUnknownFlags(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view name = argv[i];
    if (!absl::ConsumePrefix(&name, "-")) continue;
    absl::ConsumePrefix(&name, "-");
    name = name.substr(0, name.find('='));
    if (name == "h" || std::count(std::begin(kFlags), std::end(kFlags), name) > 0) continue;
    std::fprintf(stderr, "'%s' is an unknown flag; known are --%s\n", argv[i],
                 absl::StrJoin(kFlags, ", --").c_str());
    std::exit(2);
  }
}

// 0 when it is not a size.
size_t ParseSize(absl::string_view text) {
  size_t unit = 0;
  if (absl::ConsumeSuffix(&text, "KiB")) unit = size_t{1} << 10;
  if (absl::ConsumeSuffix(&text, "MiB")) unit = size_t{1} << 20;
  uint32_t count = 0;
  return absl::SimpleAtoi(text, &count) ? count * unit : 0;
}

absl::StatusOr<std::vector<size_t>> ParsePayloads(const std::string& list) {
  std::vector<size_t> payloads;
  for (const absl::string_view text : absl::StrSplit(list, ',')) {
    const size_t bytes = ParseSize(text);
    if (bytes < kSmallestPayload || bytes > kLargestPayload || bytes % kSmallestPayload != 0) {
      return examples::BadFlag("payloads", list,
                               absl::StrCat("'", text,
                                            "' is no size from 4KiB to 16MiB, in steps "
                                            "of 4 KiB, such as 128KiB, 1MiB or 4MiB"));
    }
    if (std::count(payloads.begin(), payloads.end(), bytes) > 0) {
      return examples::BadFlag("payloads", list, absl::StrCat("'", text, "' is there twice"));
    }
    payloads.push_back(bytes);
  }
  return payloads;
}

absl::StatusOr<std::vector<const ContenderInfo*>> ParseSystems(const std::string& list) {
  const bool all = list == "all";
  std::vector<std::string> wanted;
  if (!all) wanted = absl::StrSplit(list, ',');
  std::vector<const ContenderInfo*> systems;
  for (const ContenderInfo& info : AllContenders()) {
    const auto removed = std::remove(wanted.begin(), wanted.end(), info.name);
    if (all || removed != wanted.end()) systems.push_back(&info);
    wanted.erase(removed, wanted.end());
  }
  if (wanted.empty()) return systems;
  return examples::BadFlag(
      "systems", list,
      absl::StrCat("there is no '", wanted[0], "'; known are ", SystemNames(", ")));
}

}  // namespace

absl::StatusOr<BenchFlags> ParseBenchFlags(int argc, char** argv) {
  RefuseUnknownFlags(argc, argv);
  examples::ParseFlags(argc, argv, Help());
  BenchFlags flags;
  absl::StatusOr<std::vector<size_t>> payloads = ParsePayloads(absl::GetFlag(FLAGS_payloads));
  if (!payloads.ok()) return payloads.status();
  flags.payloads = *std::move(payloads);
  absl::StatusOr<std::vector<const ContenderInfo*>> systems =
      ParseSystems(absl::GetFlag(FLAGS_systems));
  if (!systems.ok()) return systems.status();
  flags.systems = *std::move(systems);

  const int rounds = absl::GetFlag(FLAGS_rounds);
  if (absl::Status s = examples::CheckRange("rounds", rounds, 1, 1000); !s.ok()) return s;
  flags.rounds = static_cast<size_t>(rounds);

  const int64_t mib = absl::GetFlag(FLAGS_working_set_mb);
  const size_t largest = *std::max_element(flags.payloads.begin(), flags.payloads.end());
  // Below 64 MiB Redis and memcached are filled by what they need for themselves.
  const int64_t least =
      std::max<int64_t>(64, static_cast<int64_t>(largest * kPayloadsInWorkingSet >> 20));
  if (absl::Status s = examples::CheckRange("working_set_mb", mib, least, 1 << 20); !s.ok()) {
    return s;
  }
  flags.working_set_mb = static_cast<size_t>(mib);
  flags.json = absl::GetFlag(FLAGS_json);
  return flags;
}

}  // namespace kvcache::bench
