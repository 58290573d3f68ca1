// Device memory, pinned host memory, streams and events of the GPU back end, owned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <new>

#include "cuda/core/cuda_check.h"

namespace tessera::classifier {

/// Memory that `release` gives back.
template <cudaError_t (*release)(void*)>
class OwnedBytes {
 public:
  OwnedBytes() = default;

  void* data() const { return memory_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_.get());
  }
  size_t bytes() const { return bytes_; }

 protected:
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
  struct Release {
    void operator()(void* memory) const { release(memory); }
  };
  std::unique_ptr<void, Release> memory_;
  size_t bytes_ = 0;
};

/// Zero-filled device memory, 256-byte aligned.
class DeviceBytes : public OwnedBytes<cudaFree> {
 public:
  DeviceBytes() = default;
  explicit DeviceBytes(size_t bytes) : OwnedBytes(bytes, [=](void** memory) { return cudaMalloc(memory, bytes); }) {
    if (bytes == 0) return;
    // Everything that uses the memory is enqueued after the synchronisation.
    TESSERA_CUDA_CHECK(cudaMemset(data(), 0, bytes));
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  }
};

/// Page-locked host memory: copies to and from the device run beside everything else.
class PinnedBytes : public OwnedBytes<cudaFreeHost> {
 public:
  PinnedBytes() = default;
  explicit PinnedBytes(size_t bytes)
      : OwnedBytes(bytes, [=](void** memory) { return cudaHostAlloc(memory, bytes, cudaHostAllocPortable); }) {}
};

class Stream {
 public:
  Stream() { TESSERA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Waiting threads sleep: a lane's thread must not take a core from those that tokenise.
class Event {
 public:
  Event() { TESSERA_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(const Stream& stream) const { TESSERA_CUDA_CHECK(cudaEventRecord(event_, stream.get())); }
  void make_wait(const Stream& stream) const { TESSERA_CUDA_CHECK(cudaStreamWaitEvent(stream.get(), event_)); }
  void synchronize() const { TESSERA_CUDA_CHECK(cudaEventSynchronize(event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace tessera::classifier
