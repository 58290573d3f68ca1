#include "io/record_stream.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

constexpr int kStopPollMilliseconds = 100;       // what records.h promises
constexpr size_t kPieceBytes = size_t{4} << 20;  // that one thread reads at a time
constexpr size_t kMuchBytes = 4 * kPieceBytes;   // from here on several threads pay
constexpr int kMaxReadThreads = 16;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::chrono::milliseconds kHandOutAfter{50};  // what records.h promises

using namespace std::string_view_literals;

/// First bytes of what people give by mistake, and what helps. UTF-32 before UTF-16, whose mark it begins with.
struct Format {
  std::string_view first_bytes;
  const char* name;
  const char* cure;
};
constexpr Format kOtherFormats[] = {
    {"\x1F\x8B"sv, "gzip data", "decompress it first, as zcat does"},
    {"BZh91AY&SY"sv, "bzip2 data", "decompress it first, as bzcat does"},
    {"\xFD\x37zXZ\0"sv, "xz data", "decompress it first, as xzcat does"},
    {"\x28\xB5\x2F\xFD"sv, "zstd data", "decompress it first, as zstdcat does"},
    {"\x04\x22\x4D\x18"sv, "lz4 data", "decompress it first, as lz4cat does"},
    {"PK\x03\x04"sv, "a zip archive (or a spreadsheet)", "unpack it, or export it as CSV in UTF-8"},
    {"\xD0\xCF\x11\xE0"sv, "an old Office file", "export it as CSV in UTF-8"},
    {"PAR1\x15"sv, "Parquet", "write it as CSV or JSON lines first"},
    {"ARROW1\0\0"sv, "an Arrow file", "write it as CSV or JSON lines first"},
    {"\x93NUMPY"sv, "a NumPy file", "write the array's bytes alone, or its texts a line each"},
    {"version https://git-lfs.github.com/spec/"sv, "a Git LFS pointer", "git lfs pull fetches the file itself"},
    {"\xFF\xFE\0\0"sv, "UTF-32", "convert it first: iconv -f UTF-32 -t UTF-8"},
    {"\0\0\xFE\xFF"sv, "UTF-32", "convert it first: iconv -f UTF-32 -t UTF-8"},
    {"\xFF\xFE"sv, "UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8"},
    {"\xFE\xFF"sv, "UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8"},
};

/// Whether more bytes may yet make `bytes` the beginning of a format, or of the byte order mark.
bool may_become_a_format(std::string_view bytes) {
  const auto is_begun = [&](std::string_view first) { return bytes.size() < first.size() && first.starts_with(bytes); };
  return is_begun(kByteOrderMark) || std::any_of(std::begin(kOtherFormats), std::end(kOtherFormats),
                                                 [&](const Format& format) { return is_begun(format.first_bytes); });
}

void refuse_other_formats(std::string_view bytes, const std::string& name) {
  for (const Format& format : kOtherFormats) {
    if (bytes.starts_with(format.first_bytes)) {
      throw NotText(name, format.name, str_cat("text in UTF-8: ", format.cure));
    }
  }
}

[[noreturn]] void refuse_carriage_returns(const std::string& name) {
  throw NotText(name, "lines that end in a carriage return alone",
                "line ends LF or CR LF: convert it first: tr '\\r' '\\n'");
}

/// One that is not the last byte: the last may belong to a line end that was cut.
bool has_inner_carriage_return(std::string_view text) {
  return text.substr(0, text.empty() ? 0 : text.size() - 1).find('\r') != std::string_view::npos;
}

}  // namespace

ByteStream::ByteStream(const std::string& path, const std::atomic<bool>* stop)
    : name_(path == "-" ? "standard input" : escaped(path)), is_named_(path != "-"), stop_(stop) {
  // A duplicate, so that closing it leaves the process's own standard input open.
  descriptor_ =
      path == "-" ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3) : open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (descriptor_ < 0) throw Error(name_, "cannot open: " + errno_message(errno));
  if ((fcntl(descriptor_, F_GETFL) & O_ACCMODE) == O_WRONLY) {  // what stands for a standard input that was closed
    close(descriptor_);
    throw Error(name_, "cannot open: " + errno_message(EBADF));
  }
  struct stat status {};
  const int result = fstat(descriptor_, &status);
  if (result != 0 || S_ISDIR(status.st_mode)) {
    const int error_number = errno;
    close(descriptor_);
    if (result == 0) throw Error(name_, "a directory", "a file, a pipe or - for standard input");
    throw Error(name_, "cannot read its kind: " + errno_message(error_number));
  }
  if (S_ISREG(status.st_mode)) {
    const off_t position = lseek(descriptor_, 0, SEEK_CUR);
    file_bytes_ = status.st_size;
    num_bytes_ = std::max<int64_t>(status.st_size - std::max<off_t>(position, 0), 0);
  }
}

ByteStream::~ByteStream() { close(descriptor_); }

bool ByteStream::wait_for_bytes() {
  if (stop_ == nullptr || is_file()) return true;
  while (!stop_->load(std::memory_order_relaxed)) {
    pollfd request{.fd = descriptor_, .events = POLLIN, .revents = 0};
    // An error of poll itself is left for read to report.
    if (poll(&request, 1, kStopPollMilliseconds) != 0 && errno != EINTR) return true;
    if (request.revents != 0) return true;
  }
  stopped_ = true;
  return false;
}

bool ByteStream::is_ready(std::chrono::milliseconds timeout) const {
  if (is_file()) return true;
  pollfd request{.fd = descriptor_, .events = POLLIN, .revents = 0};
  return poll(&request, 1, static_cast<int>(std::max<int64_t>(timeout.count(), 0))) > 0;
}

void ByteStream::check_end() const {
  if (!is_file() || bytes_read() >= num_bytes_) return;
  struct stat status {};
  const bool has_shrunk = fstat(descriptor_, &status) == 0 && status.st_size < file_bytes_;
  if (!is_named_ && !has_shrunk) return;
  throw Error(name_, str_cat(bytes_read(), " bytes"),
              str_cat("the ", num_bytes_, " bytes that it had when it was opened"));
}

size_t ByteStream::read_pieces(std::span<char> destination) {
  const off_t position = lseek(descriptor_, 0, SEEK_CUR);
  if (position < 0) throw Error(name_, "cannot seek: " + errno_message(errno));
  if (!threads_) threads_ = std::make_unique<ThreadPool>(std::min(available_processors(), kMaxReadThreads));
  const size_t num_pieces = (destination.size() + kPieceBytes - 1) / kPieceBytes;
  std::vector<size_t> had(num_pieces, 0);
  std::vector<int> error_numbers(num_pieces, 0);
  threads_->run(static_cast<int64_t>(num_pieces), [&](int64_t piece, int) {
    const auto i = static_cast<size_t>(piece);
    const std::span<char> part =
        destination.subspan(i * kPieceBytes).first(std::min(kPieceBytes, destination.size() - i * kPieceBytes));
    while (had[i] < part.size()) {
      const auto offset = position + static_cast<off_t>(i * kPieceBytes + had[i]);
      const ssize_t count = pread(descriptor_, part.data() + had[i], part.size() - had[i], offset);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) error_numbers[i] = errno;
      if (count <= 0) return;
      had[i] += static_cast<size_t>(count);
    }
  });
  // What counts are the bytes before the first gap. An error behind them meets the next read.
  size_t done = 0;
  size_t piece = 0;
  while (piece < num_pieces && had[piece] == kPieceBytes) done += had[piece++];
  if (piece < num_pieces) done += had[piece];
  if (done == 0 && error_numbers[0] != 0) throw Error(name_, "cannot read: " + errno_message(error_numbers[0]));
  if (done == 0) check_end();
  if (lseek(descriptor_, position + static_cast<off_t>(done), SEEK_SET) < 0) {
    throw Error(name_, "cannot seek: " + errno_message(errno));
  }
  bytes_read_.fetch_add(static_cast<int64_t>(done), std::memory_order_relaxed);
  return done;
}

size_t ByteStream::read(std::span<char> destination) {
  if (is_file() && destination.size() >= kMuchBytes) return read_pieces(destination);
  while (true) {
    errno = 0;
    if (!wait_for_bytes()) return 0;
    const ssize_t count = ::read(descriptor_, destination.data(), destination.size());
    if (count >= 0) {
      bytes_read_.fetch_add(count, std::memory_order_relaxed);
      if (count == 0) check_end();
      return static_cast<size_t>(count);
    }
    if (errno != EINTR && errno != EAGAIN) throw Error(name_, "cannot read: " + errno_message(errno));
  }
}

int64_t ByteStream::seek_forward(int64_t num_bytes) {
  TESSERA_CHECK(is_file() && num_bytes >= 0, num_bytes_, num_bytes);
  const int64_t distance = std::clamp<int64_t>(num_bytes_ - bytes_read(), 0, num_bytes);
  if (lseek(descriptor_, static_cast<off_t>(distance), SEEK_CUR) < 0) {
    throw Error(name_, "cannot seek: " + errno_message(errno));
  }
  bytes_read_.fetch_add(distance, std::memory_order_relaxed);
  return distance;
}

TextStream::TextStream(const std::string& path, const std::atomic<bool>* stop, const ByteFilter& filter)
    : stream_(std::make_unique<ByteStream>(path, stop)), buffer_(kBufferBytes) {
  if (filter) stream_ = filter(std::move(stream_));
  if (stream_->is_file()) start();
}

bool TextStream::refill() {
  if (!started_) {
    start();
    if (begin_ < end_) return true;
  }
  begin_ = 0;
  end_ = stream_->read(buffer_);
  return end_ > 0;
}

/// The first bytes: the byte order mark is passed over, what is no text is refused.
void TextStream::start() {
  started_ = true;
  end_ = stream_->read(buffer_);
  // A pipe may deliver them in pieces.
  while (end_ > 0 && may_become_a_format({buffer_.data(), end_})) {
    const size_t count = stream_->read(std::span(buffer_).subspan(end_));
    if (count == 0) break;
    end_ += count;
  }
  const std::string_view first(buffer_.data(), end_);
  refuse_other_formats(first, stream_->name());
  if (first.starts_with(kByteOrderMark)) begin_ = kByteOrderMark.size();
  const bool is_much = stream_->is_file() && (end_ == kBufferBytes || stream_->bytes_read() == stream_->num_bytes());
  if (is_much && first.find('\n') == std::string_view::npos && has_inner_carriage_return(first)) {
    refuse_carriage_returns(stream_->name());
  }
}

bool TextStream::has_line_before(std::chrono::steady_clock::time_point deadline) const {
  if (stream_->is_file() || std::memchr(buffer_.data() + begin_, '\n', end_ - begin_) != nullptr) return true;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return left.count() > 0 && stream_->is_ready(left);
}

TextStream::Line TextStream::next_line(std::string_view& line) {
  const char* const first = buffer_.data() + begin_;
  const void* const newline = begin_ < end_ ? std::memchr(first, '\n', end_ - begin_) : nullptr;
  if (newline == nullptr) {
    const Line kind = gather_line(gathered_);
    line = gathered_;
    return kind;
  }
  static_assert(kBufferBytes <= kMaxTextRecordBytes, "a line in the buffer is never too long");
  line = {first, static_cast<size_t>(static_cast<const char*>(newline) - first)};
  begin_ += line.size() + 1;
  has_newlines_ = true;
  while (line.ends_with('\r')) line.remove_suffix(1);
  return Line::complete;
}

TextStream::Line TextStream::next_line(std::string& line) {
  std::string_view view;
  const Line kind = next_line(view);
  line = view;
  return kind;
}

TextStream::Line TextStream::gather_line(std::string& line) {
  line.clear();
  bool too_long = false;
  bool has_bytes = false;
  bool has_newline = false;
  while (!has_newline && (begin_ < end_ || refill())) {
    has_bytes = true;
    const char* const first = buffer_.data() + begin_;
    const void* const newline = std::memchr(first, '\n', end_ - begin_);
    has_newline = newline != nullptr;
    const size_t length = has_newline ? static_cast<size_t>(static_cast<const char*>(newline) - first) : end_ - begin_;
    // One byte more is let in: it may be the "\r" of the line's end.
    too_long = too_long || line.size() + length > kMaxTextRecordBytes + 1;
    if (too_long) {
      line.clear();
    } else {
      line.append(first, length);
    }
    begin_ += length + (has_newline ? 1 : 0);
  }
  if (!has_newline && !has_newlines_ && has_inner_carriage_return(line)) refuse_carriage_returns(stream_->name());
  has_newlines_ = has_newlines_ || has_newline;
  while (has_newline && line.ends_with('\r')) line.pop_back();
  if (line.size() > kMaxTextRecordBytes) {
    too_long = true;
    line.clear();
  }
  if (!has_bytes || (!has_newline && stream_->stopped())) return Line::end;
  return too_long ? Line::too_long : Line::complete;
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

std::string text_problem(std::string_view text) {
  if (text.size() > kMaxTextRecordBytes) {
    return str_cat("got ", text.size(), " bytes, expected at most ", kMaxTextRecordBytes);
  }
  const size_t invalid = utf8_first_invalid(text);
  if (invalid != std::string_view::npos) {
    return str_cat("got ", quote(text.substr(invalid, 1)), " at byte ", invalid, ", expected well-formed UTF-8");
  }
  const size_t nul = text.find('\0');
  return nul == std::string_view::npos ? "" : str_cat("got a NUL byte at byte ", nul, ", expected text");
}

bool TextRecordReader::next(int64_t max_records, RecordBatch& batch) {
  TESSERA_CHECK(max_records >= 1, max_records);
  batch.first_index = num_records_;
  batch.num_records = 0;
  size_t num_bytes = 0;
  std::string error;
  const auto capacity = static_cast<size_t>(max_records);
  batch.texts.clear();
  batch.kept.clear();
  batch.errors.clear();
  if (text_bytes_ > 0) {
    // About the same as the last time; a batch that comes back has its memory already.
    batch.texts.reserve(last_count_, text_bytes_ + text_bytes_ / 8);
    batch.errors.reserve(last_count_);
  }
  std::chrono::steady_clock::time_point deadline;
  while (batch.texts.size() < capacity && num_bytes < kMaxBatchTextBytes) {
    // Somebody may be waiting at the other end of a pipe for what has come so far.
    if (!batch.texts.empty() && !input_.has_line_before(deadline)) break;
    std::string_view text;
    error.clear();
    kept_.clear();
    if (!try_read_record(text, error, !batch.texts.empty())) break;
    if (batch.texts.empty() && !input_.bytes().is_file()) deadline = std::chrono::steady_clock::now() + kHandOutAfter;
    num_bytes += text.size() + error.size() + kept_.size();
    batch.texts.push_back(text);
    if (keeps_fields_) batch.kept.push_back(kept_);
    batch.errors.push_back(error);
  }
  text_bytes_ = batch.texts.num_bytes();
  last_count_ = batch.texts.size();
  batch.num_records = static_cast<int64_t>(last_count_);
  num_records_ += batch.num_records;
  return last_count_ > 0;
}

int64_t TextRecordReader::skip(int64_t count) {
  if (failure_) std::rethrow_exception(failure_);
  int64_t done = 0;
  try {
    while (done < count && skip_record()) ++done;
  } catch (const Error&) {
    failure_ = std::current_exception();
    throw;
  }
  num_records_ += done;
  return done;
}

bool TextRecordReader::try_read_record(std::string_view& text, std::string& error, bool batch_has_records) {
  if (failure_) std::rethrow_exception(failure_);
  try {
    return read_record(text, error);
  } catch (const Error&) {
    failure_ = std::current_exception();
    if (!batch_has_records) throw;
    return false;
  }
}

std::string TextRecordReader::line_place(int64_t line) const { return str_cat(input_.bytes().name(), ":", line); }

}  // namespace tessera::io
