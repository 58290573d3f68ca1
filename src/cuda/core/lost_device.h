// Devices that this process has lost: after an illegal address, a failed assertion or an uncorrectable error CUDA
// refuses everything else of that device until the process ends. The first error says what happened, later ones only
// that it did.
//
//   cuda::throw_if_lost(device);                                         // before work on it
//   ... catch (const CudaError& error) { throw DeviceError(cuda::describe_failure(device, error)); }
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>

#include "cuda/core/cuda_check.h"

namespace tessera::cuda {

class LostDevices {
 public:
  static LostDevices& of_this_process() {
    static LostDevices devices;
    return devices;
  }

  /// What the device was lost of; empty: it is there.
  std::string reason(int device) const {
    const std::lock_guard lock(mutex_);
    const auto found = reasons_.find(device);
    return found == reasons_.end() ? std::string() : found->second;
  }
  void add(int device, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    reasons_.emplace(device, reason);  // the first stays
  }

 private:
  mutable std::mutex mutex_;
  std::map<int, std::string> reasons_;  // guarded by mutex_
};

inline std::string lost_message(int device, const std::string& reason) {
  return "cuda:" + std::to_string(device) + ": device lost, to this process: " + reason;
}

/// The text of an error on the current device, `device`, which is lost if it answers nothing else any more.
inline std::string describe_failure(int device, const CudaError& error) {
  LostDevices& lost = LostDevices::of_this_process();
  size_t free_bytes = 0, all_bytes = 0;
  if (lost.reason(device).empty() && cudaMemGetInfo(&free_bytes, &all_bytes) != cudaSuccess) {
    cudaGetLastError();
    lost.add(device, error.what());
  }
  const std::string reason = lost.reason(device);
  return reason.empty() ? "cuda:" + std::to_string(device) + ": " + error.what() : lost_message(device, reason);
}

/// Throws CudaError if the device is lost.
inline void throw_if_lost(int device) {
  const std::string reason = LostDevices::of_this_process().reason(device);
  if (!reason.empty()) throw CudaError(reason);
}

}  // namespace tessera::cuda
