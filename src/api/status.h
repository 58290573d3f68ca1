// From exceptions to the C interface's status codes and messages, and from its structures to values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "core/stop.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/tessera.h"

namespace tessera::api {

/// What is asked for is right, but this machine or this build cannot do it.
class Unavailable : public std::runtime_error {
 public:
  explicit Unavailable(const std::string& where, const std::string& problem)
      : std::runtime_error(where + ": " + problem), where_(where) {}
  const std::string& where() const { return where_; }

 private:
  std::string where_;
};

/// Records the exception in flight as the thread's last error. To be called in a catch block only.
tessera_status record_exception() noexcept;

/// Runs `body`; nothing that it throws leaves the library.
template <class Body>
tessera_status guarded(const Body& body) noexcept {
  try {
    body();
    return TESSERA_OK;
  } catch (...) {
    return record_exception();
  }
}

/// The flag that the calling thread gave to tessera_set_stop.
const int32_t* callers_stop() noexcept;

/// The same for what may last long, and ends with TESSERA_STOPPED when that flag says so.
template <class Body>
tessera_status guarded_stoppable(const Body& body) noexcept {
  return guarded([&] {
    const StopScope scope(callers_stop());
    body();
  });
}

/// Throws Error naming the argument.
template <class T>
T& require(const char* name, T* pointer) {
  if (pointer == nullptr) throw Error(name, "a null pointer", "an address");
  return *pointer;
}

/// The defaults of the members that the caller's header knew, and its size: of a program that was built with another
/// header the structure ends sooner than this library's, or later; what this library does not know becomes zero.
template <class Struct>
void init_struct(Struct* target, size_t struct_bytes, const Struct& defaults) noexcept {
  if (target == nullptr || struct_bytes < sizeof(size_t)) return;
  const size_t known = std::min(struct_bytes, sizeof(Struct));
  auto* const bytes = reinterpret_cast<std::byte*>(target);
  std::memcpy(bytes, &defaults, known);
  std::memset(bytes + known, 0, struct_bytes - known);
  std::memcpy(bytes, &struct_bytes, sizeof(struct_bytes));
}

/// The members that the caller's header knew, the others as in `defaults`.
template <class Struct>
Struct read_struct(const char* name, const Struct* given, Struct defaults) {
  const size_t bytes = require(name, given).struct_bytes;
  if (bytes < sizeof(size_t) || bytes > sizeof(Struct)) {
    throw Error(str_cat(name, " struct_bytes"), str_cat(bytes),
                str_cat("what the init function writes, at most this library's ", sizeof(Struct)));
  }
  std::memcpy(static_cast<void*>(&defaults), given, bytes);
  defaults.struct_bytes = sizeof(Struct);
  return defaults;
}

/// The same from the library to the caller: only the members that its header knew are written.
template <class Struct>
void write_struct(const char* name, Struct* target, const Struct& value) {
  const size_t bytes = require(name, target).struct_bytes;
  if (bytes < sizeof(size_t))
    throw Error(str_cat(name, " struct_bytes"), str_cat(bytes), "what the init function writes");
  const size_t known = std::min(bytes, sizeof(Struct));
  std::memcpy(static_cast<void*>(target), &value, known);
  target->struct_bytes = bytes;
}

/// An enumeration that crossed as an int32_t, its values 0..last.
template <class Enum>
Enum read_enum(const char* name, int32_t value, Enum last) {
  if (value < 0 || value > static_cast<int32_t>(last))
    throw Error(name, str_cat(value), str_cat("0..", static_cast<int32_t>(last)));
  return static_cast<Enum>(value);
}

}  // namespace tessera::api
