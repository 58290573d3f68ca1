// The devices of the C interface: TESSERA_CPU or the number of a CUDA device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

namespace tessera::api {

/// Makes a CUDA device the calling thread's current one while it lives; nothing for the CPU. Throws Error for a number
/// that no device has, Unavailable where there is none at all.
class DeviceScope {
 public:
  explicit DeviceScope(int32_t device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = -1;  ///< to go back to; -1: nothing was changed
};

/// Throws Unavailable, or Error for a number that is no device's, unless layers and classifiers run on `device`.
void require_usable(int32_t device);

/// Whether it is a failure of the device, not of an argument.
bool is_device_failure(const std::exception& exception);

/// On the current device. Throws std::bad_alloc.
void* allocate_on_device(size_t bytes);
void free_on_device(void* memory);

}  // namespace tessera::api
