#ifndef KVCACHE_TESTS_CACHE_FAILING_NEW_H_
#define KVCACHE_TESTS_CACHE_FAILING_NEW_H_

#include <cstddef>

namespace kvcache {

// While it lives, one allocation by operator new of this thread fails, or all from that one on.
// One at a time on a thread. A binary that links this has its own operator new and delete, on
// malloc and free.
class FailingNew {
 public:
  enum class Which { kOne, kAllFrom };
  // The first allocation is number 1.
  FailingNew(size_t number, Which which);
  ~FailingNew();
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;

  // Whether it came to that.
  bool failed() const;
};

}  // namespace kvcache

#endif  // KVCACHE_TESTS_CACHE_FAILING_NEW_H_
