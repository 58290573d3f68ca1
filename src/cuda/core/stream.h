// Streams and events, owned: the one owner of each, for the library, its tools and its tests.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/core/cuda_check.h"

namespace tessera::cuda {

/// A stream of the device that was current when it was made.
class Stream {
 public:
  /// cudaStreamNonBlocking: work of it neither waits for the default stream nor holds it up. cudaStreamDefault: it
  /// does.
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    TESSERA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, flags));
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

enum class EventUse {
  order,  ///< no time; waiting threads sleep: a lane's thread must not take a core from those that tokenise
  time,   ///< when it happened is kept; waiting threads spin, so that little is added to what is measured
};

class Event {
 public:
  explicit Event(EventUse use = EventUse::order) {
    const unsigned flags = use == EventUse::time ? cudaEventDefault : cudaEventDisableTiming | cudaEventBlockingSync;
    TESSERA_CUDA_CHECK(cudaEventCreateWithFlags(&event_, flags));
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  cudaEvent_t get() const { return event_; }
  void record(const Stream& stream) const { record(stream.get()); }
  void record(cudaStream_t stream) const { TESSERA_CUDA_CHECK(cudaEventRecord(event_, stream)); }
  void make_wait(const Stream& stream) const { TESSERA_CUDA_CHECK(cudaStreamWaitEvent(stream.get(), event_)); }
  void synchronize() const { TESSERA_CUDA_CHECK(cudaEventSynchronize(event_)); }
  /// Both of EventUse::time, recorded and reached.
  float milliseconds_since(const Event& begin) const {
    float milliseconds = 0.0f;
    TESSERA_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace tessera::cuda
