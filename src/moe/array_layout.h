// One pass over the arrays of a workspace yields both its size and their places.
//
//   ArrayLayout layout(base);                     // base may be null: only the size is wanted
//   int32_t* counts = layout.take<int32_t>(n);
//   size_t bytes = layout.used();
#pragma once

#include <cstddef>

namespace tessera::moe {

class ArrayLayout {
 public:
  /// Places are multiples of `alignment` from `base`.
  ArrayLayout(void* base, size_t alignment) : base_(static_cast<std::byte*>(base)), alignment_(alignment) {}

  template <class T>
  T* take(size_t count) {
    std::byte* const place = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * sizeof(T) + alignment_ - 1) / alignment_ * alignment_;
    return reinterpret_cast<T*>(place);
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t alignment_;
  size_t used_ = 0;
};

}  // namespace tessera::moe
