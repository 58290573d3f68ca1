#include "api/status.h"

#include <cstdlib>
#include <new>
#include <vector>

#include "api/device.h"
#include "cpu/gemm.h"
#include "tessera/classifier/classifier.h"
#include "tessera/cuda/device.h"

namespace tessera::api {
namespace {

struct LastError {
  std::string message;
  std::string where;
};

LastError& last_error() {
  thread_local LastError error;
  return error;
}

const int32_t*& stop_flag() {
  thread_local const int32_t* flag = nullptr;
  return flag;
}

tessera_status record(tessera_status status, const char* message, const std::string& where) noexcept {
  try {
    last_error() = {message, where};
  } catch (...) {
    last_error() = {};  // not even memory for the message: the status alone must do
  }
  return status;
}

}  // namespace

tessera_status record_exception() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return record(TESSERA_INVALID_ARGUMENT, error.what(), error.where());
  } catch (const Unavailable& error) {
    return record(TESSERA_UNAVAILABLE, error.what(), error.where());
  } catch (const Stopped& stopped) {
    return record(TESSERA_STOPPED, stopped.what(), "");
  } catch (const std::bad_alloc&) {
    return record(TESSERA_OUT_OF_MEMORY, "out of memory", "");
  } catch (const classifier::DeviceError& error) {
    return record(TESSERA_DEVICE_FAILED, error.what(), "device");
  } catch (const std::exception& error) {
    const bool device = is_device_failure(error);
    return record(device ? TESSERA_DEVICE_FAILED : TESSERA_INTERNAL, error.what(), device ? "device" : "");
  } catch (...) {
    return record(TESSERA_INTERNAL, "an exception of an unknown kind", "");
  }
}

const int32_t* callers_stop() noexcept { return stop_flag(); }

void require_usable(int32_t device) {
  if (device == TESSERA_CPU) return;
  std::string why_none;
  const std::vector<cuda::DeviceFacts> devices = cuda::devices(why_none);
  if (devices.empty()) throw Unavailable("device", str_cat("cuda:", device, " cannot be used: ", why_none));
  for (const cuda::DeviceFacts& candidate : devices) {
    if (candidate.index != device) continue;
    if (const std::string why = cuda::why_unusable(candidate); !why.empty())
      throw Unavailable("device", str_cat("cuda:", device, " (", candidate.name, "): ", why));
    return;
  }
  throw Error("device", str_cat(device), str_cat("TESSERA_CPU (-1) or 0..", devices.size() - 1));
}

}  // namespace tessera::api

using tessera::api::guarded;

extern "C" {

const char* tessera_version(void) { return TESSERA_VERSION; }

const char* tessera_last_error(void) { return tessera::api::last_error().message.c_str(); }
const char* tessera_last_error_where(void) { return tessera::api::last_error().where.c_str(); }

void tessera_set_stop(const int32_t* flag) { tessera::api::stop_flag() = flag; }

int32_t tessera_num_devices(void) {
  int32_t count = 0;
  guarded([&] {
    std::string why_none;
    count = static_cast<int32_t>(tessera::cuda::devices(why_none).size());
  });
  return count;
}

tessera_status tessera_device_check(int32_t device) {
  return guarded([&] { tessera::api::require_usable(device); });
}

tessera_status tessera_device_name(int32_t device, char* name, size_t capacity) {
  return guarded([&] {
    tessera::api::require("name", name);
    if (capacity == 0) throw tessera::Error("capacity", "0", "room for the closing NUL");
    std::string text = tessera::str_cat("CPU, ", tessera::cpu::gemm_library_name());
    if (device != TESSERA_CPU) {
      std::string why_none;
      text.clear();
      for (const auto& candidate : tessera::cuda::devices(why_none)) {
        if (candidate.index == device) text = candidate.name;
      }
      if (text.empty()) tessera::api::require_usable(device);
    }
    const size_t length = std::min(text.size(), capacity - 1);
    std::memcpy(name, text.data(), length);
    name[length] = '\0';
  });
}

tessera_status tessera_allocate(int32_t device, size_t bytes, void** memory) {
  return guarded([&] {
    tessera::api::require("memory", memory) = nullptr;
    if (bytes == 0) return;
    constexpr size_t kAlignment = 256;
    if (device == TESSERA_CPU) {
      if (bytes > SIZE_MAX - kAlignment) throw std::bad_alloc();
      *memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
      if (*memory == nullptr) throw std::bad_alloc();
      return;
    }
    const tessera::api::DeviceScope scope(device);
    *memory = tessera::api::allocate_on_device(bytes);
  });
}

void tessera_free(int32_t device, void* memory) {
  if (device == TESSERA_CPU) return std::free(memory);
  guarded([&] {
    if (memory == nullptr) return;
    const tessera::api::DeviceScope scope(device);
    tessera::api::free_on_device(memory);
  });
}

}  // extern "C"
