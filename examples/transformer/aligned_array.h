#ifndef KVCACHE_EXAMPLES_TRANSFORMER_ALIGNED_ARRAY_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_ALIGNED_ARRAY_H_

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

namespace kvcache::examples {

// A fixed number of zeroed numbers, aligned to a cache line (and the widest vector). Move-only.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), kAlignment))), size_(size) {
    std::fill_n(data_.get(), size, T{});
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };

  std::unique_ptr<T[], Free> data_;
  size_t size_ = 0;
};

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_ALIGNED_ARRAY_H_
