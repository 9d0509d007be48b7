// Which hit rate does a cache have on a trace, with how much memory, under which policy?
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kvcache/bench/trace_replay/flags.h"
#include "kvcache/bench/trace_replay/html.h"
#include "kvcache/bench/trace_replay/progress.h"
#include "kvcache/bench/trace_replay/replay.h"
#include "kvcache/bench/trace_replay/report.h"
#include "kvcache/bench/trace_replay/sweep.h"
#include "kvcache/bench/trace_replay/trace.h"
#include "kvcache/examples/demo/command_line.h"
#include "kvcache/examples/demo/json.h"
#include "kvcache/examples/demo/terminal.h"

namespace kvcache::bench {
namespace {

using examples::ResultFile;

constexpr size_t kPayloadBytes = 64 << 10;  // of a block, when the flags do not say

// Opens the file that a flag names, if it names one.
absl::Status Open(const std::string& path, std::optional<ResultFile>* file) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<ResultFile> opened = ResultFile::Open(path);
  if (!opened.ok()) return opened.status();
  file->emplace(*std::move(opened));
  return absl::OkStatus();
}

size_t PayloadBytes(const ReplayFlags& flags, const Workload& workload) {
  if (!flags.payload) return 0;
  const size_t bytes = size_t{workload.tokens_per_block} * flags.bytes_per_token;
  return bytes == 0 ? kPayloadBytes : (bytes + 7) / 8 * 8;
}

absl::Status Run(const ReplayFlags& flags) {
  std::optional<ResultFile> json;
  std::optional<ResultFile> html;
  if (absl::Status s = Open(flags.json, &json); !s.ok()) return s;
  if (absl::Status s = Open(flags.html, &html); !s.ok()) return s;

  absl::StatusOr<TraceFile> file = ReadTrace(flags.trace, {.skip_bad_lines = flags.skip_bad_lines});
  if (!file.ok()) return file.status();
  const Workload workload = Workload::Make(std::move(file->trace), flags.tokens_per_block);
  if (workload.tokens_per_block == 0 && flags.bytes_per_token > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(flags.trace,
                     ": the lengths of the requests do not say how many tokens a block has: give "
                     "--tokens_per_block for --bytes_per_token"));
  }
  Report report = {.trace = flags.trace,
                   .requests = workload.trace.requests.size(),
                   .block_references = workload.trace.blocks.size(),
                   .unique_blocks = workload.trace.unique_blocks,
                   .skipped_lines = file->skipped_lines,
                   .tokens_per_block = workload.tokens_per_block,
                   .bytes_per_token = flags.bytes_per_token,
                   .touch_order = flags.touch_order,
                   .policies = flags.policies,
                   .capacities = flags.capacities,
                   .sweep = {}};
  if (report.capacities.empty()) report.capacities = DefaultCapacities(report.unique_blocks);

  {
    ProgressBar bar;
    absl::StatusOr<Sweep> sweep = RunSweep(
        workload,
        {.policies = report.policies,
         .capacities = report.capacities,
         .replay = {.touch_order = flags.touch_order,
                    .ttl = flags.ttl,
                    .payload_bytes = PayloadBytes(flags, workload)},
         .find_needs = html.has_value()},
        [&bar](size_t done, size_t all, absl::string_view next) { bar.Show(done, all, next); });
    if (!sweep.ok()) return sweep.status();
    report.sweep = *std::move(sweep);
  }

  // First the files: stdout may be a pipe whose reader has seen enough.
  if (json.has_value()) {
    if (absl::Status s = json->Write(absl::StrCat(Json(report).ToString(), "\n")); !s.ok())
      return s;
  }
  if (html.has_value()) {
    if (absl::Status s = html->Write(Html(report)); !s.ok()) return s;
  }
  if (absl::Status s = examples::Print(Text(report)); !s.ok()) return s;
  if (file->skipped_lines > 0) {
    std::fprintf(stderr, "skipped %zu of %zu lines; the first: %s\n", file->skipped_lines,
                 file->lines, file->first_skipped.c_str());
  }
  return absl::OkStatus();
}

// `bazel run` starts programs elsewhere, and says where it was called: that is what paths mean.
void GoWhereCalled() {
  const char* directory = std::getenv("BUILD_WORKING_DIRECTORY");
  if (directory != nullptr && chdir(directory) != 0) std::perror(directory);
}

int Fail(const absl::Status& status, int code) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return code;
}

}  // namespace
}  // namespace kvcache::bench

int main(int argc, char** argv) {
  using namespace kvcache::bench;  // NOLINT
  GoWhereCalled();
  kvcache::examples::ParseFlags(argc, argv, Usage());
  const absl::StatusOr<ReplayFlags> flags = CheckFlags();
  if (!flags.ok()) return Fail(flags.status(), 2);
  const absl::Status status = Run(*flags);
  return status.ok() ? 0 : Fail(status, 1);
}
