// Checksums of files and of what is written: XXH128, as the command `xxh128sum` prints it. It finds torn and mixed-up
// files at the speed of memory; it is no protection against somebody who forges them.
//
//   Checksum checksum;
//   checksum.update(bytes);
//   std::string hex = checksum.hex();   // of everything so far
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace tessera::io {

class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void update(std::string_view bytes);
  /// 32 lower-case hexadecimal digits; more may be added afterwards.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Adds the first `num_bytes` of a file. Throws Error if it is shorter.
void add_file(const std::filesystem::path& path, uint64_t num_bytes, Checksum& checksum);

/// Of a whole file.
std::string file_checksum(const std::filesystem::path& path);

/// Of at most 4 MiB of a file, in 64 pieces spread evenly from its first byte to its last: tells inputs of the same
/// size apart without reading them whole.
std::string sampled_checksum(const std::filesystem::path& path);

}  // namespace tessera::io
