// Owned, 64-byte aligned host memory for plain data. Contents are uninitialised until written.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "tessera/core/check.h"

namespace tessera {

/// Cache line, and the widest vector of x86.
inline constexpr size_t kHostAlignment = 64;

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  Buffer() = default;
  /// Throws std::bad_alloc when the memory cannot be had. A size of 0 owns nothing.
  explicit Buffer(size_t size) : size_(size) {
    if (size == 0) return;
    TESSERA_CHECK(size <= (SIZE_MAX - kHostAlignment) / sizeof(T), size);
    const size_t bytes = (size * sizeof(T) + kHostAlignment - 1) / kHostAlignment * kHostAlignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(kHostAlignment, bytes)));
    if (!data_) throw std::bad_alloc();
  }

  /// What is moved from is empty, so that it can be tested and filled again.
  Buffer(Buffer&& other) noexcept : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  std::span<T> span() { return {data(), size_}; }
  std::span<const T> span() const { return {data(), size_}; }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace tessera
