// Device memory, timing and errors of the measurements on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/core/memory.h"
#include "cuda/core/stream.h"
#include "exit_codes.h"
#include "tessera/core/check.h"

namespace tessera::cli {

/// A CUDA call that failed ends the run: `what` says which.
inline void require_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Incomplete(str_cat("CUDA: cannot ", what, ": ", cudaGetErrorString(error)));
}

/// Memory whose want ends the run, as require_cuda does. Contents are uninitialised until written.
template <class Bytes>
class Memory : public Bytes {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) try : Bytes(bytes) {
  } catch (const std::bad_alloc&) {
    throw Incomplete(str_cat("CUDA: cannot allocate ", bytes, " bytes: out of memory"));
  } catch (const cuda::CudaError& error) {
    throw Incomplete(str_cat("CUDA: cannot allocate ", bytes, " bytes: ", error.what()));
  }

  void* get() const { return Bytes::data(); }
};
using DeviceMemory = Memory<cuda::DeviceBytes>;
using PinnedMemory = Memory<cuda::PinnedBytes>;  ///< of the host: every device copies from it directly

/// Time on the device between two points of the default stream.
class DeviceTimer {
 public:
  /// Seconds a run of work(0), work(1), ..., work(repetitions - 1), enqueued without a pause.
  template <class Work>
  double seconds_a_run(int64_t repetitions, const Work& work) const {
    require_cuda(cudaEventRecord(begin_.get()), "record an event");
    for (int64_t i = 0; i < repetitions; ++i) work(i);
    require_cuda(cudaEventRecord(end_.get()), "record an event");
    require_cuda(cudaEventSynchronize(end_.get()), "run the kernels that are measured");
    float milliseconds = 0.0f;
    require_cuda(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "read the time");
    return static_cast<double>(milliseconds) * 1e-3 / static_cast<double>(repetitions);
  }

 private:
  cuda::Event begin_{cuda::EventUse::time}, end_{cuda::EventUse::time};
};

}  // namespace tessera::cli
