// The files that one command line names: what is written may be nothing that is read, and nothing else that is written.
//
//   FileRoles roles;
//   roles.reads("--input", options.input);
//   roles.writes("--output", options.output);
//
// Files are compared by what they are (device and inode), so that links and standard input count too, and by name where
// they are not there yet. Throws Error naming both options as soon as two do not go together.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace tessera::cli {

class FileRoles {
 public:
  /// "-" is standard input; an empty path is no file, as is a pipe or a device.
  void reads(const std::string& option, const std::string& path);
  /// The files of a checkpoint directory.
  void reads_model(const std::string& option, const std::string& directory);
  /// A file and its temporary one; "-" is standard output.
  void writes(const std::string& option, const std::string& path);
  /// Also the journal and the manifest that a long run keeps beside its output.
  void writes_long_run(const std::string& option, const std::string& path);
  /// Files of a directory.
  void writes_into(const std::string& option, const std::string& directory, std::initializer_list<const char*> names);

 private:
  struct File {
    std::string option;
    std::string shown;  // as a message names it
    bool is_written = false;
    bool exists = false;
    dev_t device = 0;
    ino_t inode = 0;
    std::filesystem::path where;  // empty for standard input and output
  };

  void add(const std::string& option, const std::string& path, bool is_written);
  static std::optional<File> look_up(const std::string& path, bool is_written);

  std::vector<File> files_;
};

}  // namespace tessera::cli
