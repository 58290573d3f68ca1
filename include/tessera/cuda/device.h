// The GPUs of this process, and the one answer to the question whether this library's kernels run on one.
//
//   std::string why_none;
//   for (const cuda::DeviceFacts& device : cuda::devices(why_none)) {
//     const std::string why = cuda::why_unusable(device);
//     report(device.name, why.empty() ? "usable" : why);
//   }
//   if (!why_none.empty()) report("no GPU", why_none);
//
// Layer, classifier, the C interface (tessera_device_check), Python (tessera.why_unusable) and the command all ask
// here. A build without CUDA has the same functions: it knows no device and says so. No CUDA type is in this header.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace tessera::cuda {

/// What is known of a device; read once a process.
struct DeviceFacts {
  int index = 0;  ///< as the CUDA runtime counts
  std::string name = {};
  int major = 0, minor = 0;  ///< compute capability
  int num_sms = 0;
  size_t shared_memory_bytes = 0;  ///< that one CTA may have
  size_t l2_bytes = 0;
  size_t memory_bytes = 0;
};

/// Every GPU of this process, in the order of its index. Empty, with the reason in `why_none`, where there is none, no
/// driver, or a build without CUDA.
std::vector<DeviceFacts> devices(std::string& why_none);

/// Empty if the kernels run on a device of these facts, else what it is and what it would have to be. They run on
/// compute capability 9.0 and on nothing else: WGMMA and setmaxnreg exist as sm_90a code only, which is compiled for
/// exactly that capability and, unlike other code, does not run on a later minor version.
std::string why_unusable(const DeviceFacts& facts);

/// The same of the calling thread's current device; also why there is no device at all.
std::string why_current_unusable();

}  // namespace tessera::cuda
