// This project's own core/cache/cache.h. It has the path, the label, the include guard and the
// class name of the one in kvcache, and yet both can be used in one file.
#ifndef CORE_CACHE_H_
#define CORE_CACHE_H_

namespace downstream {

// Counts what an engine asks for.
class Cache {
 public:
  void Ask() { ++questions_; }
  int questions() const { return questions_; }

 private:
  int questions_ = 0;
};

}  // namespace downstream

#endif  // CORE_CACHE_H_
