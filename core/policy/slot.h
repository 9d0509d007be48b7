#ifndef KVCACHE_CORE_POLICY_SLOT_H_
#define KVCACHE_CORE_POLICY_SLOT_H_

#include <cstdint>

namespace kvcache {

// Names an entry of a cache to its eviction policy: a small integer, dense from 0, used again after
// its entry has gone.
using Slot = uint32_t;

inline constexpr Slot kNoSlot = 0xffffffff;

}  // namespace kvcache

#endif  // KVCACHE_CORE_POLICY_SLOT_H_
