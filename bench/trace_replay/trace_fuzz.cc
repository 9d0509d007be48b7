// Any bytes as the lines of a trace: reads nothing outside of them, and what it takes is a trace.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "kvcache/bench/trace_replay/trace.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using kvcache::bench::TraceBuilder;
  using kvcache::bench::TraceRequest;
  TraceBuilder builder;
  size_t added = 0;
  for (absl::string_view line :
       absl::StrSplit(absl::string_view(reinterpret_cast<const char*>(data), size), '\n')) {
    added += builder.AddLine(line).ok();
  }
  const kvcache::bench::Trace& trace = builder.trace();
  if (trace.requests.size() != added) std::abort();
  size_t blocks = 0;
  for (const TraceRequest& request : trace.requests) {
    if (request.first_block != blocks) std::abort();
    blocks += request.blocks;
  }
  if (blocks != trace.blocks.size() || trace.unique_blocks > blocks) std::abort();
  kvcache::bench::TokensPerBlock(trace);
  return 0;
}
