// What a build without CUDA knows of devices: the CPU.
#include <new>

#include "api/device.h"
#include "api/status.h"

namespace tessera::api {

DeviceScope::DeviceScope(int32_t device) { require_usable(device); }
DeviceScope::~DeviceScope() = default;

bool is_device_failure(const std::exception&) { return false; }

void* allocate_on_device(size_t) { throw std::bad_alloc(); }
void free_on_device(void*) {}

}  // namespace tessera::api
