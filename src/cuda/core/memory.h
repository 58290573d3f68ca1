// Device memory and page-locked host memory, owned: the one owner of each, for the library, its tools and its tests.
//
//   const DeviceBytes rows(bytes);                             // uninitialised
//   const DeviceBytes table = DeviceBytes::zeros(bytes);
//   kernel(rows.as<float>(), ...);
//
// Taken on the current device; given back on any. 0 bytes own nothing and are nullptr. Moves, never copies.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <new>

#include "cuda/core/cuda_check.h"

namespace tessera::cuda {

/// Memory that `free_memory` gives back.
template <cudaError_t (*free_memory)(void*)>
class OwnedBytes {
 public:
  OwnedBytes() = default;

  void* data() const { return memory_.get(); }
  /// `offset` bytes from the start.
  void* at(size_t offset) const { return static_cast<std::byte*>(memory_.get()) + offset; }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_.get());
  }
  size_t bytes() const { return bytes_; }
  /// The caller owns it from now on.
  void* release() {
    bytes_ = 0;
    return memory_.release();
  }

 protected:
  OwnedBytes(void* memory, size_t bytes) : memory_(memory), bytes_(bytes) {}
  /// `allocate(void**)` takes `bytes` of them. Throws std::bad_alloc when there is too little.
  template <class Allocate>
  OwnedBytes(size_t bytes, const Allocate& allocate) : bytes_(bytes) {
    if (bytes == 0) return;
    void* memory = nullptr;
    const cudaError_t error = allocate(&memory);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // answered here: a later call must not report it
      throw std::bad_alloc();
    }
    TESSERA_CUDA_CHECK(error);
    memory_.reset(memory);
  }

 private:
  struct Free {
    void operator()(void* memory) const { free_memory(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

/// Device memory, 256-byte aligned.
class DeviceBytes : public OwnedBytes<cudaFree> {
 public:
  DeviceBytes() = default;
  explicit DeviceBytes(size_t bytes) : OwnedBytes(bytes, [=](void** memory) { return cudaMalloc(memory, bytes); }) {}

  /// Zero-filled, and finished: work of any stream that is enqueued afterwards sees the zeros.
  static DeviceBytes zeros(size_t bytes) {
    DeviceBytes made(bytes);
    if (bytes == 0) return made;
    TESSERA_CUDA_CHECK(cudaMemset(made.data(), 0, bytes));
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    return made;
  }
  /// Owns what `release` handed out; its size is forgotten.
  static DeviceBytes adopt(void* memory) { return DeviceBytes(memory, 0); }

 private:
  DeviceBytes(void* memory, size_t bytes) : OwnedBytes(memory, bytes) {}
};

/// Page-locked host memory: copies to and from the device run beside everything else.
class PinnedBytes : public OwnedBytes<cudaFreeHost> {
 public:
  PinnedBytes() = default;
  explicit PinnedBytes(size_t bytes)
      : OwnedBytes(bytes, [=](void** memory) { return cudaHostAlloc(memory, bytes, cudaHostAllocPortable); }) {}
};

}  // namespace tessera::cuda
