// Formats whose records are lines: plain text, and JSON Lines.
#include "io/json.h"
#include "io/quote.h"
#include "io/record_stream.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

constexpr size_t kMaxListedMembers = 8;  // in a message

class LineRecordReader : public TextRecordReader {
 public:
  using TextRecordReader::TextRecordReader;

 protected:
  bool read_record(std::string_view& text, std::string& error) final {
    const TextStream::Line line = next_line(text);
    if (line == TextStream::Line::end) return false;
    if (line == TextStream::Line::too_long) {
      error = line_place(line_) + ": the line is longer than " + str_cat(kMaxTextRecordBytes, " bytes");
      return true;
    }
    convert(text, error);
    if (error.empty()) {
      const std::string problem = text_problem(text);
      if (!problem.empty()) error = line_place(line_) + ": " + problem;
    }
    if (!error.empty()) text = {};
    return true;
  }

  bool skip_record() final {
    std::string_view skipped;
    return next_line(skipped) != TextStream::Line::end;
  }

  /// Makes the record's text of the line's, or sets `error`. The view lives until the next call.
  virtual void convert(std::string_view& text, std::string& error) = 0;

  /// Whether blank lines are records, as they are in plain text.
  virtual bool has_blank_records() const = 0;

  int64_t line() const { return line_; }

 private:
  /// The next line that is a record.
  TextStream::Line next_line(std::string_view& text) {
    while (true) {
      const TextStream::Line line = input().next_line(text);
      if (line == TextStream::Line::end) return line;
      ++line_;
      if (line == TextStream::Line::too_long || has_blank_records() || !is_blank(text)) return line;
      count_blank_lines(1);
    }
  }

  int64_t line_ = 0;
};

class PlainTextReader final : public LineRecordReader {
 public:
  using LineRecordReader::LineRecordReader;

 private:
  void convert(std::string_view&, std::string&) override {}
  bool has_blank_records() const override { return true; }
};

/// Takes one string member of an object; everything else is checked and forgotten, however large it is.
class MemberExtractor final : public JsonEvents {
 public:
  /// `field` empty: "text", else "sentence".
  MemberExtractor(std::string_view text, const std::string& where, std::string_view field)
      : JsonEvents(text, where), field_(field) {}

  std::string take() {
    const Member& member = first_.seen ? first_ : second_;
    if (!member.seen) throw Error(where(), names_.empty() ? "no members" : "members " + names_, expected());
    if (!member.is_string) throw Error(where(), "a member " + name_of(member) + " that is no string", "a string");
    return std::move(first_.seen ? first_.value : second_.value);
  }

  /// " (in the member 'score')" while the value of one is being read: where an error is, wanted or not. Else empty.
  std::string place() const { return is_open_ ? " (in the member " + quote(name_, 40) + ")" : ""; }

  bool null() override { return end_value(); }
  bool boolean(bool) override { return end_value(); }
  bool number_integer(int64_t) override { return end_value(); }
  bool number_unsigned(uint64_t) override { return end_value(); }
  bool number_float(double, const std::string&) override { return end_value(); }
  bool string(std::string& value) override {
    if (depth() == 1 && current_ != nullptr) {
      current_->value = std::move(value);
      current_->is_string = true;
    }
    return end_value();
  }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    if (depth() != 1) return true;
    current_ = name == first_name() ? &first_ : field_.empty() && name == kSecondName ? &second_ : nullptr;
    if (num_names_++ < kMaxListedMembers) {
      names_ += (names_.empty() ? "" : ", ") + quote(name, 40);
    } else if (num_names_ == kMaxListedMembers + 1) {
      names_ += ", ...";
    }
    if (current_ != nullptr && current_->seen) throw Error(where(), "the member " + quote(name) + " twice", "it once");
    if (current_ != nullptr) current_->seen = true;
    name_ = name;
    is_open_ = true;
    return true;
  }

 private:
  struct Member {
    bool seen = false;
    bool is_string = false;
    std::string value;
  };
  static constexpr std::string_view kFirstName = "text";
  static constexpr std::string_view kSecondName = "sentence";

  std::string_view first_name() const { return field_.empty() ? kFirstName : field_; }
  std::string name_of(const Member& member) const { return quote(&member == &first_ ? first_name() : kSecondName); }
  std::string expected() const {
    return field_.empty() ? "a member 'text' or 'sentence'" : "a member " + quote(field_);
  }
  bool end_value() {
    is_open_ = is_open_ && depth() > 1;
    return true;
  }
  bool open() {
    enter();
    return true;
  }
  bool close() {
    leave();
    return end_value();
  }

  std::string_view field_;
  Member first_;
  Member second_;
  Member* current_ = nullptr;  // what the next value belongs to, if it is wanted
  std::string name_;           // of the last member
  bool is_open_ = false;       // its value is being read
  std::string names_;
  size_t num_names_ = 0;
};

class JsonLinesReader final : public LineRecordReader {
 public:
  explicit JsonLinesReader(const RecordSource& source) : LineRecordReader(source), field_(source.field) {}

 private:
  void convert(std::string_view& text, std::string& error) override {
    const std::string where = line_place(line());
    MemberExtractor extractor(text, where, field_);
    try {
      extractor.parse();
      text_ = extractor.take();
      text = text_;
    } catch (const Error& problem) {
      error = problem.what() + extractor.place();
    }
  }

  bool has_blank_records() const override { return false; }

  std::string field_;
  std::string text_;  // of the last record
};

}  // namespace

std::unique_ptr<RecordReader> open_line_records(const RecordSource& source) {
  if (source.format == InputFormat::jsonl) return std::make_unique<JsonLinesReader>(source);
  return std::make_unique<PlainTextReader>(source);
}

}  // namespace tessera::io
