#include "transcode.h"

#include <iconv.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "peeked_input.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

using namespace std::string_view_literals;

constexpr size_t kEncodedBytes = 64 << 10;
constexpr size_t kLookedAtBytes = 256 << 10;  // for the first line feed
constexpr char kNoCharacter = '\xFF';         // no byte of UTF-8

/// UTF-32 before UTF-16, whose mark it begins with. The names leave the mark to iconv, which drops it.
struct Mark {
  std::string_view bytes;
  const char* encoding;
};
constexpr Mark kMarks[] = {{"\xFF\xFE\0\0"sv, "UTF-32"},
                           {"\0\0\xFE\xFF"sv, "UTF-32"},
                           {"\xFF\xFE"sv, "UTF-16"},
                           {"\xFE\xFF"sv, "UTF-16"},
                           {"\xEF\xBB\xBF"sv, "UTF-8"}};

/// "utf16" of "UTF-16LE": what tells encodings with and without a mark apart.
std::string family_of(std::string_view encoding) {
  std::string family;
  for (const char c : encoding) {
    if (c != '-' && c != '_') family += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  }
  const bool has_order = family.starts_with("utf") && (family.ends_with("le") || family.ends_with("be"));
  return has_order ? family.substr(0, family.size() - 2) : family;
}

/// "utf-16le" of "utf-16-le", as Python calls what iconv does not.
std::string iconv_name(std::string encoding) {
  const size_t dash = encoding.size() < 3 ? 0 : encoding.size() - 3;
  if (family_of(encoding).starts_with("utf") && (encoding[dash] == '-' || encoding[dash] == '_')) {
    const std::string end = family_of(std::string_view(encoding).substr(dash));
    if (end == "le" || end == "be") encoding.erase(dash, 1);
  }
  return encoding;
}

class Converter {
 public:
  explicit Converter(const std::string& encoding) {
    // "//" begins iconv's own options, some of which drop characters.
    handle_ = encoding.find('/') == std::string::npos ? iconv_open("UTF-8", iconv_name(encoding).c_str()) : kNone;
    if (handle_ == kNone) {
      throw Error("--encoding", "'" + escaped(encoding) + "'", "a name that `iconv --list` has, as cp1252 or utf-16");
    }
  }
  ~Converter() { iconv_close(handle_); }
  Converter(const Converter&) = delete;
  Converter& operator=(const Converter&) = delete;

  /// As iconv: 0, or the error number; moves both on.
  int convert(std::span<const char>& in, std::span<char>& out) const {
    char* from = const_cast<char*>(in.data());
    size_t left = in.size();
    char* to = out.data();
    size_t room = out.size();
    const size_t result = iconv(handle_, &from, &left, &to, &room);
    in = in.last(left);
    out = out.last(room);
    return result == static_cast<size_t>(-1) ? errno : 0;
  }

 private:
  static inline const iconv_t kNone = reinterpret_cast<iconv_t>(-1);
  iconv_t handle_ = kNone;
};

class TranscodedInput final : public io::FilteredInput {
 public:
  TranscodedInput(std::unique_ptr<io::ByteInput> source, const std::string& encoding)
      : FilteredInput(std::move(source)), converter_(encoding), buffer_(kEncodedBytes) {
    const std::string family = family_of(encoding);
    unit_bytes_ = family.starts_with("utf16") || family.starts_with("ucs2")   ? 2
                  : family.starts_with("utf32") || family.starts_with("ucs4") ? 4
                                                                              : 1;
  }

  size_t read(std::span<char> destination) override {
    std::span<char> room = destination;
    while (room.size() == destination.size()) {
      const bool needs_more = num_pending_ == 0 || is_cut_;
      if (needs_more && ended_) {
        if (num_pending_ == 0) return 0;
        num_pending_ = 0;  // the last character is cut off
        room.front() = kNoCharacter;
        return 1;
      }
      if (needs_more) fill();
      std::span<const char> in(buffer_.data() + begin_, num_pending_);
      const int problem = converter_.convert(in, room);
      begin_ += num_pending_ - in.size();
      num_pending_ = in.size();
      is_cut_ = problem == EINVAL;
      if (problem != EILSEQ || room.empty()) continue;
      const size_t skipped = std::min(unit_bytes_, num_pending_);
      begin_ += skipped;
      num_pending_ -= skipped;
      room.front() = kNoCharacter;
      room = room.subspan(1);
    }
    return destination.size() - room.size();
  }
  bool is_ready(std::chrono::milliseconds timeout) const override {
    return (num_pending_ > 0 && !is_cut_) || source().is_ready(timeout);
  }

 private:
  void fill() {
    std::memmove(buffer_.data(), buffer_.data() + begin_, num_pending_);
    begin_ = 0;
    const size_t count = source().read(std::span(buffer_).subspan(num_pending_));
    num_pending_ += count;
    ended_ = count == 0;
    if (ended_ && stopped()) num_pending_ = 0;
  }

  Converter converter_;
  size_t unit_bytes_ = 1;  // how much is passed over where there is no character
  std::vector<char> buffer_;
  size_t begin_ = 0;  // [begin_, begin_ + num_pending_) of buffer_ is still to be converted
  size_t num_pending_ = 0;
  bool is_cut_ = false;  // what is pending is the beginning of a character
  bool ended_ = false;
};

class MarkedInput final : public ChosenInput {
 public:
  MarkedInput(std::unique_ptr<io::ByteInput> source, std::string encoding)
      : ChosenInput(std::move(source)), encoding_(std::move(encoding)) {}

 private:
  bool may_begin_a_format(std::string_view bytes) const override {
    return std::any_of(std::begin(kMarks), std::end(kMarks), [&](const Mark& mark) {
      return bytes.size() < mark.bytes.size() && mark.bytes.starts_with(bytes);
    });
  }

  std::unique_ptr<io::ByteInput> choose(std::string_view first, std::unique_ptr<io::ByteInput> input) override {
    std::string encoding = encoding_;
    for (const Mark& mark : kMarks) {
      if (!first.starts_with(mark.bytes)) continue;
      if (!encoding.empty() && family_of(encoding) != family_of(mark.encoding)) {
        throw Error(name(), std::string("the byte order mark of ") + mark.encoding,
                    "--encoding " + escaped(encoding) + ", or none: the mark says what the text is");
      }
      encoding = mark.encoding;
      break;
    }
    if (encoding.empty() || family_of(encoding) == "utf8") return nullptr;  // the readers take and check UTF-8
    return std::make_unique<TranscodedInput>(std::move(input), encoding);
  }

  std::string encoding_;
};

class LineEndsInput final : public io::FilteredInput {
 public:
  using FilteredInput::FilteredInput;

  size_t read(std::span<char> destination) override {
    if (!is_known_) find_out();
    size_t count = std::min(destination.size(), first_.size() - begin_);
    if (count > 0) {
      std::memcpy(destination.data(), first_.data() + begin_, count);
      begin_ += count;
    } else {
      count = source().read(destination);
    }
    if (!is_replaced_) return count;
    return replace(destination.first(count)) > 0 || count == 0 ? num_left_ : read(destination);
  }
  bool is_ready(std::chrono::milliseconds timeout) const override {
    return begin_ < first_.size() || source().is_ready(timeout);
  }

 private:
  /// Without a line feed no reader has a line yet: nobody waits for what is held back here.
  void find_out() {
    is_known_ = true;
    first_.resize(kLookedAtBytes);
    size_t size = 0;
    bool has_line_feed = false;
    while (size < kLookedAtBytes && !has_line_feed) {
      const size_t count = source().read(std::span(first_).subspan(size));
      if (count == 0) break;
      has_line_feed = std::memchr(first_.data() + size, '\n', count) != nullptr;
      size += count;
    }
    first_.resize(size);
    // One at the very end may belong to a line end that was cut.
    const size_t found = first_.find('\r');
    is_replaced_ = !has_line_feed && found != std::string::npos && found + 1 < first_.size();
  }

  /// "\r" becomes "\n"; one "\n" behind it goes. Returns how many bytes are left.
  size_t replace(std::span<char> bytes) {
    num_left_ = 0;
    for (const char c : bytes) {
      const bool is_second = c == '\n' && last_ == '\r';
      last_ = c;
      if (!is_second) bytes[num_left_++] = c == '\r' ? '\n' : c;
    }
    return num_left_;
  }

  bool is_known_ = false;
  bool is_replaced_ = false;
  std::string first_;  // [begin_, size) is still to be handed out
  size_t begin_ = 0;
  size_t num_left_ = 0;
  char last_ = '\0';
};

}  // namespace

void check_encoding(const std::string& encoding) {
  if (!encoding.empty()) static_cast<void>(Converter(encoding));
}

std::unique_ptr<io::ByteInput> transcode(std::unique_ptr<io::ByteInput> source, const std::string& encoding) {
  check_encoding(encoding);
  return std::make_unique<MarkedInput>(std::move(source), encoding);
}

std::unique_ptr<io::ByteInput> unify_line_ends(std::unique_ptr<io::ByteInput> source) {
  return std::make_unique<LineEndsInput>(std::move(source));
}

}  // namespace tessera::cli
