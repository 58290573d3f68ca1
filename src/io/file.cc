#include "io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <system_error>
#include <utility>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

namespace fs = std::filesystem;

constexpr size_t kWriteBufferBytes = 1u << 20;
constexpr int kMaxLinks = 40;  // as the kernel follows

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

/// Whether `path` is an entry of a process's table of descriptors: /dev/fd/1, and /proc/self/fd/1, to which it leads.
bool names_descriptor(const fs::path& path) {
  std::error_code error;
  const std::string folder = fs::canonical(directory_of(path), error).native();
  return !error && folder.starts_with("/proc/") && folder.ends_with("/fd");
}

/// Opens what is written directly. A descriptor of this process is shared: its position moves on for whoever else
/// writes there, and a redirected file is neither truncated nor replaced.
int open_directly(const fs::path& path) {
  if (!names_descriptor(path)) return open(path.c_str(), O_WRONLY | O_CLOEXEC);
  const std::string name = path.filename().native();
  int number = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  std::error_code ignored;
  const bool is_own = fs::canonical(directory_of(path), ignored) == fs::canonical("/proc/self/fd", ignored);
  if (is_own && error == std::errc() && end == name.data() + name.size()) return fcntl(number, F_DUPFD_CLOEXEC, 3);
  return open(path.c_str(), O_WRONLY | O_CLOEXEC | O_APPEND);
}

bool is_same_file(int descriptor, const fs::path& path) {
  struct stat opened {};
  struct stat named {};
  return fstat(descriptor, &opened) == 0 && lstat(path.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

/// The output takes the place of a file with this status: it may be read and written by the same people.
void keep_permissions(int descriptor, const struct stat& old, const fs::path& path) {
  constexpr mode_t kPermissions = 07777;
  struct stat status {};
  if (fstat(descriptor, &status) != 0) return;
  if (status.st_uid != old.st_uid || status.st_gid != old.st_gid) {
    // Only root may; what others write becomes theirs, as with every program that replaces a file.
    static_cast<void>(!fchown(descriptor, old.st_uid, old.st_gid));
  }
  if ((status.st_mode & kPermissions) == (old.st_mode & kPermissions)) return;
  if (fchmod(descriptor, old.st_mode & kPermissions) != 0) throw_errno(path, "cannot set its permissions", errno);
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

void refuse_stand_in(const InputFile& file) {
  constexpr std::string_view kPointer = "version https://git-lfs.github.com/spec/";
  constexpr uint64_t kLookedAt = 256;
  std::string text(std::min(file.size(), kLookedAt), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  if (text.starts_with(kPointer)) {
    throw Error(file.name(), "a Git LFS pointer", "the file itself: git lfs pull fetches it");
  }
  text.erase(0, text.find_first_not_of(" \t\r\n"));
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (text.starts_with("<!doctype html") || text.starts_with("<html")) {
    throw Error(file.name(), "an HTML page", "the file itself: a web server sent a page instead of it");
  }
}

std::string read_text_file(const fs::path& path, uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes) {
    throw Error(file.name(), str_cat(file.size(), " bytes"), str_cat("at most ", max_bytes, " bytes"));
  }
  refuse_stand_in(file);
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

fs::path output_target(const fs::path& path) {
  // Renaming over the link itself would leave the old target behind.
  fs::path target = path;
  for (int i = 0; i < kMaxLinks; ++i) {
    if (names_descriptor(target)) return target;
    std::error_code not_a_link;
    const fs::path next = fs::read_symlink(target, not_a_link);
    if (not_a_link) return target;
    target = target.parent_path() / next;
  }
  throw Error(escaped(path.native()), "links that lead in a circle", "a file to write");
}

bool is_written_directly(const fs::path& path) {
  const fs::path target = output_target(path);
  std::error_code ignored;
  const fs::file_status status = fs::status(target, ignored);
  return names_descriptor(target) || (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status));
}

OutputClaim::OutputClaim(const fs::path& path) {
  if (path.empty()) throw Error("output", "''", "the name of a file");
  path_ = output_target(path);
  struct stat status {};
  const bool exists = stat(path_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) throw Error(escaped(path_.native()), "a directory", "a file to write");
  if (is_written_directly(path_)) return;
  // The rename would go through: it asks the directory only.
  if (exists && access(path_.c_str(), W_OK) != 0) throw_errno(path_, "cannot open for writing", errno);
  partial_path_ = path_;
  partial_path_ += ".partial";
  open_partial();
  if (exists) keep_permissions(descriptor_, status, partial_path_);
}

OutputClaim::OutputClaim(OutputClaim&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::move(other.partial_path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      is_made_(other.is_made_) {}

OutputClaim::~OutputClaim() {
  if (descriptor_ < 0) return;
  if (is_made_) unlink(partial_path_.c_str());
  close(descriptor_);
}

void OutputClaim::open_partial() {
  // O_NOFOLLOW, O_NONBLOCK: a link or a FIFO that somebody put at the temporary name is refused at once. No O_TRUNC: it
  // may be another run's.
  constexpr int kFlags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  while (true) {
    descriptor_ = open(partial_path_.c_str(), kFlags | O_CREAT | O_EXCL, 0666);
    is_made_ = descriptor_ >= 0;
    if (!is_made_ && errno == EEXIST) {
      descriptor_ = open(partial_path_.c_str(), kFlags);
      if (descriptor_ < 0 && errno == ENOENT) continue;  // it has just got its final name
    }
    if (descriptor_ < 0) throw_errno(partial_path_, "cannot open for writing", errno);
    struct stat status {};
    const bool is_file = fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
    // File systems that know no locks are left to the comparison before the rename.
    const bool is_taken = is_file && flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (is_file && !is_taken && is_same_file(descriptor_, partial_path_)) return;
    close(std::exchange(descriptor_, -1));
    const std::string name = escaped(partial_path_.native());
    if (!is_file) throw Error(name, std::string(kind_of(status.st_mode)), "a regular file");
    if (is_taken) throw Error(name, "a file that another run is writing", "an output of its own for every run");
  }
}

OutputFile::OutputFile(OutputClaim claim) : path_(claim.path_), partial_path_(claim.partial_path_) {
  descriptor_ = partial_path_.empty() ? open_directly(path_) : claim.descriptor_;
  if (descriptor_ < 0) throw_errno(path_, "cannot open for writing", errno);
  if (!partial_path_.empty() && ftruncate(descriptor_, 0) != 0) throw_errno(partial_path_, "cannot truncate", errno);
  claim.descriptor_ = -1;
}

OutputFile::OutputFile(OutputClaim claim, uint64_t kept_bytes)
    : path_(claim.path_), partial_path_(claim.partial_path_), num_bytes_(kept_bytes) {
  if (partial_path_.empty()) throw Error(escaped(path_.native()), "a device or a pipe", "a file that can be continued");
  if (claim.is_made_) throw_errno(partial_path_, "cannot open for writing", ENOENT);
  const off_t size = lseek(claim.descriptor_, 0, SEEK_END);
  const bool is_long_enough = size >= 0 && static_cast<uint64_t>(size) >= kept_bytes;
  const off_t kept = static_cast<off_t>(kept_bytes);
  const bool is_ready =
      is_long_enough && ftruncate(claim.descriptor_, kept) == 0 && lseek(claim.descriptor_, kept, SEEK_SET) == kept;
  if (!is_ready && is_long_enough) throw_errno(partial_path_, "cannot continue", errno);
  if (!is_ready) {
    throw Error(escaped(partial_path_.native()), str_cat(size, " bytes"), str_cat("at least ", kept_bytes, " bytes"));
  }
  descriptor_ = std::exchange(claim.descriptor_, -1);
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
  if (!partial_path_.empty()) return rename_partial(descriptor);
  if (close(descriptor) != 0) throw_errno(path_, "cannot write", errno);
}

void OutputFile::rename_partial(int descriptor) {
  const int sync_error = fsync(descriptor) != 0 ? errno : 0;
  const bool is_ours = is_same_file(descriptor, partial_path_);
  // The lock lasts as long as one descriptor of the file: until the final name is there.
  const int lock = fcntl(descriptor, F_DUPFD_CLOEXEC, 3);
  const int close_error = close(descriptor) != 0 ? errno : 0;
  const bool is_renamed =
      sync_error == 0 && close_error == 0 && is_ours && rename(partial_path_.c_str(), path_.c_str()) == 0;
  const int rename_error = errno;
  if (lock >= 0) close(lock);
  if (sync_error != 0) throw_errno(partial_path_, "cannot sync", sync_error);
  if (close_error != 0) throw_errno(partial_path_, "cannot write", close_error);
  if (!is_ours) {
    throw Error(escaped(partial_path_.native()), "another file than the one that was written",
                "nobody else to touch it");
  }
  if (!is_renamed) throw_errno(path_, "cannot rename the finished .partial file", rename_error);
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
