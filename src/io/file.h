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

/// Throws Error for a file that stands for another: the pointer that Git LFS left in its place, or the page that a web
/// server sent instead of it.
void refuse_stand_in(const InputFile& file);

/// The whole of a small text file; Error as refuse_stand_in, and if it is larger than `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, uint64_t max_bytes);

/// Where an output of this name goes: the end of the links at `path`, whether a file is there or not yet; else `path`
/// itself. Throws Error for links that lead in a circle.
std::filesystem::path output_target(const std::filesystem::path& path);

/// Whether an output of this name is written as it comes, with no temporary file and no rename: a device, a pipe, or
/// the name of an open descriptor (/dev/stdout, /dev/fd/3), whatever that leads to.
bool is_written_directly(const std::filesystem::path& path);

/// The right to write one output: a lock on its temporary file that no other process can have at the same time. Lasts
/// until the OutputFile that is made of it is destroyed; without one, an empty file that this made goes again.
class OutputClaim {
 public:
  /// Throws Error naming the file if another process writes this output, if it cannot be created or replaced, or if
  /// `path` is empty or a directory. Opens nothing where the output is written directly.
  explicit OutputClaim(const std::filesystem::path& path);
  ~OutputClaim();
  OutputClaim(OutputClaim&& other) noexcept;
  OutputClaim& operator=(OutputClaim&&) = delete;

  /// Whether an earlier run left a temporary file.
  bool has_earlier_partial() const { return descriptor_ >= 0 && !is_made_; }

 private:
  friend class OutputFile;
  void open_partial();

  std::filesystem::path path_;
  std::filesystem::path partial_path_;  // empty: written directly
  int descriptor_ = -1;
  bool is_made_ = false;  // the temporary file is new and belongs to nobody yet
};

/// An output that is written as `<path>.partial` and renamed to `<path>` by `commit`, after a sync: the final name
/// never holds half a result. Without `commit` the partial file stays, so that an interrupted run loses nothing. A link
/// at `path` is followed; what was there keeps its permissions. What is_written_directly is.
class OutputFile {
 public:
  /// Throws Error as OutputClaim does.
  explicit OutputFile(const std::filesystem::path& path) : OutputFile(OutputClaim(path)) {}
  explicit OutputFile(OutputClaim claim);
  /// Goes on where a run broke off: keeps the first `kept_bytes` of the partial file that it left, and drops the rest.
  /// Throws Error if there is none, or if it is shorter.
  OutputFile(const std::filesystem::path& path, uint64_t kept_bytes) : OutputFile(OutputClaim(path), kept_bytes) {}
  OutputFile(OutputClaim claim, uint64_t kept_bytes);
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
  /// Flush, fsync, rename to the final name, fsync of the directory. Nothing can be written afterwards. Throws Error
  /// also where the temporary name holds another file than the one that was written.
  void commit();
  /// The temporary name; empty when `path` is a device or a pipe.
  const std::filesystem::path& partial_path() const { return partial_path_; }
  /// Of the output so far: kept, written and pending.
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  void rename_partial(int descriptor);
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
