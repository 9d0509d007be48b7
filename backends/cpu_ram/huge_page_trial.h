#ifndef KVCACHE_BACKENDS_CPU_RAM_HUGE_PAGE_TRIAL_H_
#define KVCACHE_BACKENDS_CPU_RAM_HUGE_PAGE_TRIAL_H_

#include <optional>

namespace kvcache {

// How fast this machine gives fresh memory, in pages of either size.
struct HugePageTrial {
  double small_bytes_per_second = 0;
  double huge_bytes_per_second = 0;

  // Huge pages, unless their first touch takes more than twice as long. That much is worth paying
  // once: on the 2-core virtual machine where this was measured, copies of 128 KiB to 4 MiB into
  // huge pages were 1.2 to 1.4 times as fast as into small ones, and copies out of them 1.1 times.
  bool PreferHuge() const { return huge_bytes_per_second * 2 >= small_bytes_per_second; }
};

// Faults in up to 64 MiB, half of it in pages of either size, in turns, and gives it back. Ends
// early once it has taken 0.1 s. nullopt when there is no memory for it. It sees the memory that
// the system has at hand; what a virtual machine's host has yet to find may come ten times slower,
// in pages of either size.
std::optional<HugePageTrial> RunHugePageTrial();

}  // namespace kvcache

#endif  // KVCACHE_BACKENDS_CPU_RAM_HUGE_PAGE_TRIAL_H_
