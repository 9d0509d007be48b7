#include "kvcache/backends/cpu_ram/huge_page_trial.h"

#include <array>
#include <chrono>
#include <cstddef>

#include "absl/status/statusor.h"
#include "kvcache/backends/host_memory/memory_region.h"

namespace kvcache {

std::optional<HugePageTrial> RunHugePageTrial() {
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr size_t kPiece = size_t{4} << 20;
  constexpr Seconds kBudget{0.1};

  const absl::StatusOr<MemoryRegion> region = MemoryRegion::Reserve(kBytes);
  if (!region.ok()) return std::nullopt;
  std::array<Seconds, 2> taken = {};  // small, huge
  size_t touched = 0;                 // in pages of either size
  for (size_t pair = 0; pair < kBytes && taken[0] + taken[1] < kBudget; pair += 2 * kPiece) {
    // small huge, huge small, ...: what becomes slower or faster by itself helps neither.
    const bool huge_first = pair / (2 * kPiece) % 2 == 1;
    for (const size_t offset : {pair, pair + kPiece}) {
      const bool huge = (offset == pair) == huge_first;
      region->AdviseHugePages(huge, offset, kPiece);
      const Clock::time_point start = Clock::now();
      if (!region->FaultIn(offset, kPiece).ok()) return std::nullopt;
      taken[huge] += Clock::now() - start;
    }
    touched += kPiece;
  }
  const double bytes = static_cast<double>(touched);
  return HugePageTrial{bytes / taken[0].count(), bytes / taken[1].count()};
}

}  // namespace kvcache
