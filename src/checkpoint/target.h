// Memory of the device that a layer runs on, and the way into it.
//
//   const auto target = make_host_target();
//   target->fill(pointer, bytes, [&](std::span<std::byte> window) { read(window); });
//   target->finish();                                             // all of it is there
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

namespace tessera::checkpoint {

using WriteWindow = std::function<void(std::span<std::byte>)>;

class Target {
 public:
  Target() = default;
  virtual ~Target() = default;
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  /// Memory that lives as long as this, aligned to moe::kAlignment and more. Throws std::bad_alloc.
  virtual void* allocate(size_t bytes) = 0;
  /// Has `write` fill a window of host memory whose bytes then are at `destination`: on the CPU that memory itself.
  virtual void fill(void* destination, size_t bytes, const WriteWindow& write) = 0;
  /// Returns once everything is where it was to go.
  virtual void finish() = 0;
};

std::unique_ptr<Target> make_host_target();
/// Of the current CUDA device. Throws Error where there is none.
std::unique_ptr<Target> make_cuda_target();

}  // namespace tessera::checkpoint
