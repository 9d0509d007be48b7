// A trace: the requests of a serving system, as blocks that their prompts consist of.
#ifndef KVCACHE_BENCH_TRACE_REPLAY_TRACE_H_
#define KVCACHE_BENCH_TRACE_REPLAY_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace kvcache::bench {

struct TraceRequest {
  absl::Duration arrival;  // since the trace's time 0; never before the request before
  uint32_t input_tokens = 0;
  uint32_t output_tokens = 0;
  size_t first_block = 0;  // in Trace::blocks
  uint32_t blocks = 0;
  size_t line = 0;  // in the file, from 1; 0: of no file
};

struct Trace {
  std::string path;  // of its file
  std::vector<TraceRequest> requests;
  // Of all requests, one after the other. Blocks are numbered from 0 in the order in which they
  // first appear; equal blocks have the same number.
  std::vector<uint32_t> blocks;
  size_t unique_blocks = 0;

  absl::Span<const uint32_t> BlocksOf(const TraceRequest& request) const {
    return absl::MakeSpan(blocks).subspan(request.first_block, request.blocks);
  }
};

// Builds a trace from lines in the format of Mooncake's traces, a JSON object each:
//
//   {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, 3]}
//
// timestamp is in milliseconds, lengths are in tokens, and hash_ids names the blocks of the prompt
// from the first on: whole numbers below 2^64, equal where the prompt is equal up to the block's
// end. Other fields are skipped. A timestamp before the last one counts as that.
class TraceBuilder {
 public:
  // One line without its end; `number` becomes TraceRequest::line. kInvalidArgument, saying what is
  // wrong in which column and adding nothing, for anything else than such an object, or a field
  // that is missing or there twice; kResourceExhausted when there are 2^32 - 1 references to
  // blocks.
  absl::Status AddLine(absl::string_view line, size_t number = 0);

  void set_path(absl::string_view path) { trace_.path = std::string(path); }
  const Trace& trace() const { return trace_; }
  Trace Build() && { return std::move(trace_); }

 private:
  Trace trace_;
  absl::flat_hash_map<uint64_t, uint32_t> numbers_;  // by hash id
  std::vector<uint64_t> ids_;                        // of the line being read
  std::string name_;
};

struct ReadOptions {
  // Skip lines that are malformed, instead of failing at the first one.
  bool skip_bad_lines = false;
};

struct TraceFile {
  Trace trace;
  size_t lines = 0;           // that are not empty
  size_t skipped_lines = 0;   // among them
  std::string first_skipped;  // which one it was and why; empty: none
};

// Reads a file line by line. Lines of spaces are ignored. Errors name the path; kInvalidArgument
// also the line: malformed, longer than 64 MiB, gzip, UTF-16 or a byte order mark at the start,
// which skip_bad_lines does not skip, or the file has no request at all; kNotFound and kUnavailable
// when the file cannot be read.
absl::StatusOr<TraceFile> ReadTrace(const std::string& path, const ReadOptions& options = {});

// Tokens of each block but the last of a prompt, which may be short: the one number, a power of two
// if there is one, by which every request has as many blocks as its input_length needs. 0 when
// there is none.
uint32_t TokensPerBlock(const Trace& trace);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_TRACE_H_
