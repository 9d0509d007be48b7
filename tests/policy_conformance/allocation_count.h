#ifndef KVCACHE_TESTS_POLICY_CONFORMANCE_ALLOCATION_COUNT_H_
#define KVCACHE_TESTS_POLICY_CONFORMANCE_ALLOCATION_COUNT_H_

#include <cstddef>

namespace kvcache {

// How often operator new was called in this process so far, by any thread. A binary that links this
// has its own operator new and delete, on malloc and free.
size_t AllocationCount();

}  // namespace kvcache

#endif  // KVCACHE_TESTS_POLICY_CONFORMANCE_ALLOCATION_COUNT_H_
