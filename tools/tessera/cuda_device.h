// Device memory, timing and errors of the measurements on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "exit_codes.h"
#include "tessera/core/check.h"

namespace tessera::cli {

/// A CUDA call that failed ends the run: `what` says which.
inline void require_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Incomplete(str_cat("CUDA: cannot ", what, ": ", cudaGetErrorString(error)));
}

/// Owned device memory; contents are uninitialised until written.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    if (bytes > 0) require_cuda(cudaMalloc(&memory, bytes), str_cat("allocate ", bytes, " bytes").c_str());
    memory_.reset(memory);
  }

  void* get() const { return memory_.get(); }
  /// `offset` bytes from the start.
  void* at(size_t offset) const { return static_cast<std::byte*>(memory_.get()) + offset; }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

/// Time on the device between two points of the default stream.
class DeviceTimer {
 public:
  DeviceTimer() {
    require_cuda(cudaEventCreate(&begin_), "create an event");
    require_cuda(cudaEventCreate(&end_), "create an event");
  }
  ~DeviceTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;

  /// Seconds a run of work(0), work(1), ..., work(repetitions - 1), enqueued without a pause.
  template <class Work>
  double seconds_a_run(int64_t repetitions, const Work& work) const {
    require_cuda(cudaEventRecord(begin_), "record an event");
    for (int64_t i = 0; i < repetitions; ++i) work(i);
    require_cuda(cudaEventRecord(end_), "record an event");
    require_cuda(cudaEventSynchronize(end_), "run the kernels that are measured");
    float milliseconds = 0.0f;
    require_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "read the time");
    return static_cast<double>(milliseconds) * 1e-3 / static_cast<double>(repetitions);
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace tessera::cli
