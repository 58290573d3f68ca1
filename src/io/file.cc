#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

namespace fs = std::filesystem;

constexpr size_t kWriteBufferBytes = 1u << 20;

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something that is no file";
}

/// The directory that holds `path`, as fsync and messages need it.
fs::path directory_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

[[noreturn]] void throw_errno(const fs::path& path, const char* action, int error_number) {
  throw Error(escaped(path.native()), str_cat(action, ": ", errno_message(error_number)));
}

/// Bytes written: fewer than there are only on an error, which errno tells.
size_t write_all(int descriptor, std::string_view bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::write(descriptor, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno != EINTR) break;
    if (count > 0) done += static_cast<size_t>(count);
  }
  return done;
}

void sync_directory(const fs::path& directory) {
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(directory, "cannot open to sync", errno);
  const int result = fsync(descriptor);
  const int error_number = errno;
  close(descriptor);
  // EINVAL: some network file systems cannot sync directories; the rename itself has happened.
  if (result != 0 && error_number != EINVAL) throw_errno(directory, "cannot sync", error_number);
}

}  // namespace

InputFile::InputFile(const fs::path& path) : name_(escaped(path.native())) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer before fstat can refuse it.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) throw Error(name_, "cannot open: " + errno_message(errno));
  struct stat status {};
  const int result = fstat(descriptor_, &status);
  const int error_number = errno;
  if (result == 0 && S_ISREG(status.st_mode) && status.st_size >= 0) {
    size_ = static_cast<uint64_t>(status.st_size);
    return;
  }
  close(descriptor_);
  descriptor_ = -1;
  if (result != 0) throw Error(name_, "cannot read its size: " + errno_message(error_number));
  throw Error(name_, std::string(kind_of(status.st_mode)), "a regular file");
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      size_(std::exchange(other.size_, 0)),
      name_(std::move(other.name_)) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(name_, other.name_);
  return *this;
}

void InputFile::read_at(uint64_t offset, std::span<std::byte> destination) const {
  size_t done = 0;
  // An offset beyond the file reads nothing; pread itself would refuse one that does not fit in off_t as EINVAL.
  const bool inside = offset <= size_;
  while (inside && done < destination.size()) {
    const ssize_t count =
        pread(descriptor_, destination.data() + done, destination.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      throw Error(str_cat(name_, ": offset ", offset + done), "cannot read: " + errno_message(errno));
    }
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  if (done < destination.size()) {
    throw Error(str_cat(name_, ": offset ", offset), str_cat(done, " bytes"), str_cat(destination.size(), " bytes"));
  }
}

std::string read_text_file(const fs::path& path, uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes) {
    throw Error(file.name(), str_cat(file.size(), " bytes"), str_cat("at most ", max_bytes, " bytes"));
  }
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

fs::path output_target(const fs::path& path) {
  // Renaming over the link itself would leave the old target behind.
  std::error_code ignored;
  const fs::path target = fs::canonical(path, ignored);
  return target.empty() ? path : target;
}

OutputFile::OutputFile(const fs::path& path) : path_(path) {
  choose_paths();
  if (!partial_path_.empty()) {
    open_partial(O_CREAT | O_TRUNC);
    return;
  }
  descriptor_ = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw_errno(path, "cannot open for writing", errno);
}

OutputFile::OutputFile(const fs::path& path, uint64_t kept_bytes) : path_(path), num_bytes_(kept_bytes) {
  choose_paths();
  if (partial_path_.empty()) throw Error(escaped(path.native()), "a device or a pipe", "a file that can be continued");
  open_partial(0);
  const off_t size = lseek(descriptor_, 0, SEEK_END);
  const bool is_long_enough = size >= 0 && static_cast<uint64_t>(size) >= kept_bytes;
  const off_t kept = static_cast<off_t>(kept_bytes);
  const bool is_ready =
      is_long_enough && ftruncate(descriptor_, kept) == 0 && lseek(descriptor_, kept, SEEK_SET) == kept;
  const int error_number = errno;
  if (is_ready) return;
  close(descriptor_);
  if (is_long_enough) throw_errno(partial_path_, "cannot continue", error_number);
  throw Error(escaped(partial_path_.native()), str_cat(size, " bytes"), str_cat("at least ", kept_bytes, " bytes"));
}

/// The final and the temporary name; the latter stays empty for a device or a pipe.
void OutputFile::choose_paths() {
  struct stat status {};
  const bool exists = stat(path_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) throw Error(escaped(path_.native()), "a directory", "a file to write");
  if (exists && !S_ISREG(status.st_mode)) return;
  path_ = output_target(path_);
  partial_path_ = path_;
  partial_path_ += ".partial";
}

void OutputFile::open_partial(int more_flags) {
  // O_NOFOLLOW, O_NONBLOCK: a link or a FIFO that somebody put at the temporary name is refused at once.
  constexpr int kFlags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  descriptor_ = open(partial_path_.c_str(), kFlags | more_flags, 0666);
  if (descriptor_ < 0) throw_errno(partial_path_, "cannot open for writing", errno);
  struct stat status {};
  if (fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) return;
  close(descriptor_);
  throw Error(escaped(partial_path_.native()), std::string(kind_of(status.st_mode)), "a regular file");
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  try {
    flush();
  } catch (const Error&) {
    // The caller that wanted to know has called flush or commit.
  }
  close(descriptor_);
}

void OutputFile::write(std::string_view bytes) {
  TESSERA_CHECK(descriptor_ >= 0, path_);
  pending_ += bytes;
  num_bytes_ += bytes.size();
  if (pending_.size() >= kWriteBufferBytes) flush();
}

void OutputFile::flush() {
  TESSERA_CHECK(descriptor_ >= 0, path_);
  const size_t done = write_all(descriptor_, pending_);
  const int error_number = errno;
  const bool complete = done == pending_.size();
  pending_.erase(0, done);  // a later flush goes on where this one stopped
  if (!complete) throw_errno(written_path(), "cannot write", error_number);
}

void OutputFile::sync() {
  flush();
  if (!partial_path_.empty() && fdatasync(descriptor_) != 0) throw_errno(written_path(), "cannot sync", errno);
}

void OutputFile::commit() {
  flush();
  const int descriptor = std::exchange(descriptor_, -1);
  const bool temporary = !partial_path_.empty();
  const int sync_error = temporary && fsync(descriptor) != 0 ? errno : 0;
  const int close_error = close(descriptor) != 0 ? errno : 0;
  if (sync_error != 0) throw_errno(written_path(), "cannot sync", sync_error);
  if (close_error != 0) throw_errno(written_path(), "cannot write", close_error);
  if (!temporary) return;
  if (rename(partial_path_.c_str(), path_.c_str()) != 0) {
    throw_errno(path_, "cannot rename the finished .partial file", errno);
  }
  sync_directory(directory_of(path_));
}

AppendFile::AppendFile(const fs::path& path) : path_(path) {
  descriptor_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor_ < 0) throw_errno(path, "cannot open for writing", errno);
  struct stat status {};
  if (fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) return;
  close(descriptor_);
  throw Error(escaped(path.native()), std::string(kind_of(status.st_mode)), "a regular file");
}

AppendFile::~AppendFile() { close(descriptor_); }

void AppendFile::append(std::string_view bytes) {
  if (write_all(descriptor_, bytes) != bytes.size()) throw_errno(path_, "cannot write", errno);
  if (fdatasync(descriptor_) != 0) throw_errno(path_, "cannot sync", errno);
}

void remove_file(const fs::path& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno(path, "cannot remove", errno);
}

}  // namespace tessera::io
