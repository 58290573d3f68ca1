// Bytes as a file that has a name, and what a fuzzer asks of every refusal.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tessera/core/utf8.h"

namespace tessera::fuzz {

inline void require(bool condition) {
  if (!condition) std::abort();
}

/// A regular file in memory, as long as it lives.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content) : descriptor_(memfd_create("fuzz", MFD_CLOEXEC)) {
    require(descriptor_ >= 0);
    require(write(descriptor_, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A message that a terminal can show, of a length that a person reads.
inline void check_message(std::string_view message) {
  require(!message.empty() && message.size() < 2'000 && utf8_first_invalid(message) == std::string::npos);
  for (const char c : message) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
}

}  // namespace tessera::fuzz
