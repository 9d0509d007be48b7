#ifndef KVCACHE_EXAMPLES_TRANSFORMER_ALIGNED_ARRAY_H_
#define KVCACHE_EXAMPLES_TRANSFORMER_ALIGNED_ARRAY_H_

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace kvcache::examples {

// A fixed number of zeroed numbers, aligned to a cache line (and the widest vector); a large array
// is in large pages where Linux has them to give. Move-only.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), kAlignment))), size_(size) {
    PreferLargePages();
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

  // Asked for before the first touch. Only a hint: a failure leaves small pages.
  void PreferLargePages() {
#if defined(__linux__)
    constexpr size_t kPage = 4096, kLargePage = size_t{2} << 20;
    const size_t bytes = size_ * sizeof(T);
    if (bytes < kLargePage) return;
    const size_t before = reinterpret_cast<uintptr_t>(data_.get()) % kPage;
    madvise(reinterpret_cast<char*>(data_.get()) - before, before + bytes, MADV_HUGEPAGE);
#endif
  }

  std::unique_ptr<T[], Free> data_;
  size_t size_ = 0;
};

}  // namespace kvcache::examples

#endif  // KVCACHE_EXAMPLES_TRANSFORMER_ALIGNED_ARRAY_H_
