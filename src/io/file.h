// Files as the loaders and writers need them: fixed size at open, exact reads, outputs that appear whole or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace tessera::io {

/// A regular file opened for reading; its size is fixed at open. Every read is a pread into memory of the caller, never
/// a mapping, so that a file that shrinks meanwhile is an Error and not a signal.
class InputFile {
 public:
  /// Throws Error if `path` is missing, unreadable, or no regular file (FIFOs and devices are refused, links followed).
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;

  uint64_t size() const { return size_; }
  const std::string& name() const { return name_; }  ///< the path, escaped for messages

  /// Fills `destination` from `offset`. Throws Error naming file, offset, expected and actual bytes on a short read.
  void read_at(uint64_t offset, std::span<std::byte> destination) const;

 private:
  int descriptor_ = -1;
  uint64_t size_ = 0;
  std::string name_;
};

/// The whole of a small text file; Error if it is larger than `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, uint64_t max_bytes);

/// Where an output of this name goes: the target of a link that exists, else `path` itself.
std::filesystem::path output_target(const std::filesystem::path& path);

/// An output that is written as `<path>.partial` and renamed to `<path>` by `commit`, after a sync: the final name
/// never holds half a result. Without `commit` the partial file stays, so that an interrupted run loses nothing. A link
/// at `path` is followed. A device or a pipe at `path` (/dev/null, a process substitution) is written directly.
class OutputFile {
 public:
  /// Throws Error naming the file if it cannot be created, or if `path` is a directory.
  explicit OutputFile(const std::filesystem::path& path);
  /// Goes on where a run broke off: keeps the first `kept_bytes` of the partial file that it left, and drops the rest.
  /// Throws Error if there is none, or if it is shorter.
  OutputFile(const std::filesystem::path& path, uint64_t kept_bytes);
  /// Writes what is pending, as far as that works.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Buffered. Throws Error naming the file when the disk is full or the device fails; what could not be written is
  /// kept, and tried again by the next flush or commit.
  void write(std::string_view bytes);
  void flush();
  /// Flush, and wait until the disk has it.
  void sync();
  /// Flush, fsync, rename to the final name, fsync of the directory. Nothing can be written afterwards.
  void commit();
  /// The temporary name; empty when `path` is a device or a pipe.
  const std::filesystem::path& partial_path() const { return partial_path_; }
  /// Of the output so far: kept, written and pending.
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  void choose_paths();
  void open_partial(int more_flags);
  const std::filesystem::path& written_path() const { return partial_path_.empty() ? path_ : partial_path_; }

  std::filesystem::path path_;
  std::filesystem::path partial_path_;
  int descriptor_ = -1;
  uint64_t num_bytes_ = 0;
  std::string pending_;
};

/// Adds to the end of a file that exists.
class AppendFile {
 public:
  /// Throws Error if `path` is missing or no regular file.
  explicit AppendFile(const std::filesystem::path& path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  /// On disk when it returns. Throws Error naming the file.
  void append(std::string_view bytes);

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// Removes a file that may be missing. Throws Error where it is there and cannot be removed.
void remove_file(const std::filesystem::path& path);

}  // namespace tessera::io
