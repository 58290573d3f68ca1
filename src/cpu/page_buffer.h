// Large memory read at random places: whole pages, the larger kind where the system grants it, untouched until written.
#pragma once

#include <cstddef>
#include <utility>

namespace tessera::cpu {

class PageBuffer {
 public:
  PageBuffer() = default;
  /// Zeroed. Throws std::bad_alloc when the address space or the limit of the process does not allow it.
  explicit PageBuffer(size_t bytes);
  ~PageBuffer();
  PageBuffer(PageBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PageBuffer& operator=(PageBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Memory of this machine in bytes; what the projected vocabulary may take is a share of it.
size_t physical_memory_bytes();

}  // namespace tessera::cpu
