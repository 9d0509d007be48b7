#include "kvcache/bench/trace_replay/flags.h"

#include <algorithm>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvcache/core/plugins/registry.h"
#include "kvcache/examples/demo/command_line.h"
#include "kvcache/examples/demo/json.h"

ABSL_FLAG(std::string, trace, "", "the trace");
ABSL_FLAG(std::string, policy, "all", "policies");
ABSL_FLAG(std::string, capacity_blocks, "", "capacities");
ABSL_FLAG(std::string, touch_order, "forward", "how blocks are accessed");
ABSL_FLAG(uint64_t, bytes_per_token, 0, "bytes of the K and V of a token");
ABSL_FLAG(uint32_t, tokens_per_block, 0, "tokens of a block");
ABSL_FLAG(std::string, ttl, "inf", "lifetime of a block");
ABSL_FLAG(std::string, json, "", "file for the results");
ABSL_FLAG(std::string, html, "", "file for a page with the results");
ABSL_FLAG(bool, payload, false, "move real bytes");
ABSL_FLAG(bool, skip_bad_lines, false, "count malformed lines");

namespace kvcache::bench {
namespace {

using examples::BadFlag;

constexpr uint64_t kMostBytesPerToken = uint64_t{1} << 30;
constexpr size_t kMostBlocks = 4'000'000'000;

absl::StatusOr<std::vector<std::string>> ParsePolicies(const std::string& text) {
  const std::vector<std::string> known = PolicyNames();
  if (text == "all") return known;
  std::vector<std::string> policies;
  for (absl::string_view name : absl::StrSplit(text, ',')) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return BadFlag(
          "policy", text,
          absl::StrCat("'", name, "' is not one of ", absl::StrJoin(known, ", "), ", all"));
    }
    if (std::find(policies.begin(), policies.end(), name) != policies.end()) {
      return BadFlag("policy", text, absl::StrCat("'", name, "' is there twice"));
    }
    policies.emplace_back(name);
  }
  return policies;
}

absl::StatusOr<std::vector<size_t>> ParseCapacities(const std::string& text) {
  std::vector<size_t> capacities;
  if (text.empty()) return capacities;
  for (absl::string_view number : absl::StrSplit(text, ',')) {
    size_t blocks = 0;
    if (!absl::SimpleAtoi(number, &blocks) || blocks == 0 || blocks > kMostBlocks) {
      return BadFlag("capacity_blocks", text,
                     absl::StrCat("'", number, "' is not a number from 1 to ", kMostBlocks));
    }
    capacities.push_back(blocks);
  }
  std::sort(capacities.begin(), capacities.end());
  capacities.erase(std::unique(capacities.begin(), capacities.end()), capacities.end());
  return capacities;
}

}  // namespace

std::string Usage() {
  return absl::StrCat(
      "Replays the requests of a serving trace through the cache, and shows which hit rate each\n"
      "policy has with which memory, beside the optimum.\n\n"
      "  --trace=FILE             a JSON object for each request: {\"timestamp\": ms,\n"
      "                           \"input_length\": tokens, \"output_length\": tokens,\n"
      "                           \"hash_ids\": [ids of the prompt's blocks]}\n"
      "  --policy=NAME,...        ",
      absl::StrJoin(PolicyNames(), ", "),
      ", or all (default)\n"
      "  --capacity_blocks=N,...  blocks that the cache may hold (default: some, up to all)\n"
      "  --touch_order=ORDER      forward (default): blocks without parents, in prompt order, as\n"
      "                           simulators do; chain: Match, then put what is missing, as "
      "engines\n"
      "                           do\n"
      "  --bytes_per_token=N      of K and V, to say capacities in GiB (default: 0, do not)\n"
      "  --tokens_per_block=N     (default: 0, as the trace has it)\n"
      "  --ttl=DURATION           blocks live that long, by the trace's clock: 90s, 2h (default: "
      "inf)\n"
      "  --payload                also move real bytes: bytes_per_token of each token of a block,\n"
      "                           or 64 KiB for each block\n"
      "  --skip_bad_lines         count malformed lines instead of failing at the first\n"
      "  --json=FILE              also write the results there\n"
      "  --html=FILE              also write a page with curves there, and the memory that each\n"
      "                           policy needs for 95 % of the possible hits\n");
}

absl::StatusOr<ReplayFlags> CheckFlags() {
  ReplayFlags flags;
  flags.trace = absl::GetFlag(FLAGS_trace);
  if (flags.trace.empty()) {
    return absl::InvalidArgumentError("--trace=FILE is missing; --help lists the flags");
  }
  absl::StatusOr<std::vector<std::string>> policies = ParsePolicies(absl::GetFlag(FLAGS_policy));
  if (!policies.ok()) return policies.status();
  flags.policies = *std::move(policies);
  absl::StatusOr<std::vector<size_t>> capacities =
      ParseCapacities(absl::GetFlag(FLAGS_capacity_blocks));
  if (!capacities.ok()) return capacities.status();
  flags.capacities = *std::move(capacities);
  const std::string order = absl::GetFlag(FLAGS_touch_order);
  if (order != Name(TouchOrder::kForward) && order != Name(TouchOrder::kChain)) {
    return BadFlag("touch_order", order, "expected forward or chain");
  }
  flags.touch_order = order == Name(TouchOrder::kChain) ? TouchOrder::kChain : TouchOrder::kForward;
  flags.bytes_per_token = absl::GetFlag(FLAGS_bytes_per_token);
  if (flags.bytes_per_token > kMostBytesPerToken) {
    return BadFlag("bytes_per_token", absl::StrCat(flags.bytes_per_token),
                   absl::StrCat("expected from 0 to ", kMostBytesPerToken));
  }
  flags.tokens_per_block = absl::GetFlag(FLAGS_tokens_per_block);
  const std::string ttl = absl::GetFlag(FLAGS_ttl);
  if (!absl::ParseDuration(ttl, &flags.ttl) || flags.ttl <= absl::ZeroDuration()) {
    return BadFlag("ttl", ttl, "expected a duration of more than 0, as 90s or 2h30m");
  }
  flags.json = absl::GetFlag(FLAGS_json);
  flags.html = absl::GetFlag(FLAGS_html);
  const auto differ = [](absl::string_view name, const std::string& output,
                         absl::string_view other_name, const std::string& other) {
    if (output.empty() || other.empty() || !examples::SameFile(output, other)) {
      return absl::OkStatus();
    }
    return BadFlag(name, output, absl::StrCat("the file of --", other_name, "=", other));
  };
  if (absl::Status s = differ("json", flags.json, "trace", flags.trace); !s.ok()) return s;
  if (absl::Status s = differ("html", flags.html, "trace", flags.trace); !s.ok()) return s;
  if (absl::Status s = differ("html", flags.html, "json", flags.json); !s.ok()) return s;
  flags.payload = absl::GetFlag(FLAGS_payload);
  flags.skip_bad_lines = absl::GetFlag(FLAGS_skip_bad_lines);
  return flags;
}

}  // namespace kvcache::bench
