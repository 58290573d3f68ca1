// Host memory in the large pages of the machine where it is large: weights are streamed and the projected vocabulary is
// read at random places, and with small pages both wait for address translation.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace tessera::cpu {

/// Uninitialised and untouched; aligned to kHostAlignment at least.
class PageBuffer {
 public:
  PageBuffer() = default;
  /// Throws std::bad_alloc when the memory cannot be had. A size of 0 owns nothing.
  explicit PageBuffer(size_t bytes);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

/// Memory of this machine in bytes; what the projected vocabulary may take is a share of it.
size_t physical_memory_bytes();

}  // namespace tessera::cpu
