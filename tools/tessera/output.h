// Where results go: a file that appears whole or as FILE.partial, a device, or standard output.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "io/file.h"

namespace tessera::cli {

class Output {
 public:
  /// "-" is standard output. Throws Error if a file cannot be created.
  explicit Output(const std::string& path);
  explicit Output(io::OutputClaim claim);
  /// Goes on behind the first `kept_bytes` of FILE.partial. Throws Error if there is none or it is shorter.
  Output(io::OutputClaim claim, uint64_t kept_bytes);

  /// Buffered. Throws Incomplete when it cannot be written, ClosedPipe when nobody reads standard output.
  void write(std::string_view bytes);
  /// Hands over what is buffered, so that a FILE.partial is valid up to here.
  void flush();
  /// Flush, and wait until the disk has it.
  void sync();
  /// The final flush; a file gets its name.
  void commit();

  /// FILE.partial, escaped for messages, or empty where there is none.
  std::string partial_name() const;
  /// Of a file so far; 0 for standard output.
  uint64_t num_bytes() const { return file_ ? file_->num_bytes() : 0; }

 private:
  void write_standard_output();

  std::unique_ptr<io::OutputFile> file_;  // null: standard output
  std::string pending_;
};

}  // namespace tessera::cli
