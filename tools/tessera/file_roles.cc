#include "file_roles.h"

#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "io/manifest.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

namespace fs = std::filesystem;

/// The end of the links, with no link in its directories either.
fs::path plain_path(const fs::path& path) {
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  const fs::path folder = fs::weakly_canonical(absolute.parent_path(), error);
  return error ? absolute : folder / absolute.filename();
}

/// Whether temporary files lie beside an output of this name.
bool has_names_beside(const std::string& path) {
  return path != "-" && !path.empty() && !io::is_written_directly(path);
}

}  // namespace

std::optional<FileRoles::File> FileRoles::look_up(const std::string& path, bool is_written) {
  File file;
  file.is_written = is_written;
  file.shown = "'" + escaped(path) + "'";
  struct stat status {};
  if (path == "-") {
    file.shown = is_written ? "standard output" : "standard input";
    if (fstat(is_written ? STDOUT_FILENO : STDIN_FILENO, &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
    file.exists = true;
  } else {
    const fs::path target = io::output_target(path);
    file.exists = stat(target.c_str(), &status) == 0;
    if (file.exists && !S_ISREG(status.st_mode)) return std::nullopt;
    file.where = plain_path(target);
  }
  file.device = status.st_dev;
  file.inode = status.st_ino;
  return file;
}

void FileRoles::add(const std::string& option, const std::string& path, bool is_written) {
  if (path.empty()) return;
  std::optional<File> file = look_up(path, is_written);
  if (!file) return;
  file->option = option;
  for (const File& other : files_) {
    const bool is_same_file =
        file->exists && other.exists && file->device == other.device && file->inode == other.inode;
    const bool is_same_name = !file->where.empty() && file->where == other.where;
    if ((!is_same_file && !is_same_name) || (!file->is_written && !other.is_written)) continue;
    if (file->option == other.option) continue;  // several inputs of one option
    throw Error(option, file->shown + ", which " + other.option + (other.is_written ? " writes" : " reads") + " too",
                "a file of its own");
  }
  files_.push_back(*std::move(file));
}

void FileRoles::reads(const std::string& option, const std::string& path) { add(option, path, false); }

void FileRoles::reads_model(const std::string& option, const std::string& directory) {
  if (directory.empty()) return;
  for (const char* const name : {"config.json", "vocab.txt", "model.safetensors"}) {
    add(option, (fs::path(directory) / name).string(), false);
  }
}

void FileRoles::writes(const std::string& option, const std::string& path) {
  add(option, path, true);
  if (has_names_beside(path)) add(option, io::output_target(path).string() + ".partial", true);
}

void FileRoles::writes_long_run(const std::string& option, const std::string& path) {
  writes(option, path);
  if (!has_names_beside(path)) return;
  writes(option, io::output_target(path).string() + ".journal");
  writes(option, io::manifest_path(path).string());
}

void FileRoles::writes_into(const std::string& option, const std::string& directory,
                            std::initializer_list<const char*> names) {
  if (directory.empty()) return;
  for (const char* const name : names) writes(option, (fs::path(directory) / name).string());
}

}  // namespace tessera::cli
