#ifndef KVCACHE_BENCH_TRACE_REPLAY_HTML_H_
#define KVCACHE_BENCH_TRACE_REPLAY_HTML_H_

#include <string>

#include "kvcache/bench/trace_replay/report.h"

namespace kvcache::bench {

// A page that says how much memory is enough and shows the curves and the figures: one file that
// needs no other, no network and no scripts, light or dark as the reader's system is.
// REQUIRES: the report has policies, capacities and needs.
std::string Html(const Report& report);

}  // namespace kvcache::bench

#endif  // KVCACHE_BENCH_TRACE_REPLAY_HTML_H_
