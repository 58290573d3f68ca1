// A file beside the main output: --statistics, --json, --svg.
//
//   SideFile statistics("--statistics", options.statistics);   // before the work: a bad place is an error of usage
//   ...
//   statistics.write(json.dump(2) + "\n");                      // after it
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "io/file.h"

namespace tessera::cli {

/// The work is done and its results are whole; a file beside them could not be written.
class SideFileFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class SideFile {
 public:
  /// `path` empty: nothing will be written; "-": standard output. Throws Error if the file cannot be made, or if
  /// another process is writing it.
  SideFile(const std::string& option, const std::string& path);

  explicit operator bool() const { return !path_.empty(); }
  /// The whole content, once. Throws SideFileFailed.
  void write(const std::string& content);

 private:
  std::string option_;
  std::string path_;
  std::optional<io::OutputClaim> claim_;
};

}  // namespace tessera::cli
