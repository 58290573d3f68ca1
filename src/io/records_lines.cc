// Formats whose records are lines: plain text, and JSON Lines.
#include <algorithm>
#include <utility>

#include "io/json.h"
#include "io/kept_fields.h"
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
      keep_nothing();
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

  /// The kept fields of a record that could not be held.
  virtual void keep_nothing() {}

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

/// A JSON value as text, made of the events of its parsing.
class ValueWriter {
 public:
  /// Ready for another value.
  void clear() { text_.clear(); }
  std::string& text() { return text_; }

  void literal(std::string_view literal) {
    separate();
    text_ += literal;
  }
  void string(const std::string& value) { literal(nlohmann::json(value).dump()); }
  void key(const std::string& name) {
    string(name);
    text_ += ':';
  }
  void open(char bracket) { literal({&bracket, 1}); }
  void close(char bracket) { text_ += bracket; }

 private:
  void separate() {
    if (!text_.empty() && text_.back() != '[' && text_.back() != '{' && text_.back() != ':') text_ += ',';
  }

  std::string text_;
};

/// Takes the text's member of an object and those that are kept; everything else is checked and forgotten, however
/// large it is.
class MemberExtractor final : public JsonEvents {
 public:
  /// `source.field` empty: "text", else "sentence".
  MemberExtractor(std::string_view text, const std::string& where, const RecordSource& source)
      : JsonEvents(text, where), source_(source), field_(source.field), kept_(source.keep.size()) {}

  std::string take() {
    const Member& member = first_.seen ? first_ : second_;
    if (!member.seen) throw Error(where(), names_.empty() ? "no members" : "members " + names_, expected());
    if (!member.is_string) throw Error(where(), "a member " + name_of(member) + " that is no string", "a string");
    return std::move(first_.seen ? first_.value : second_.value);
  }

  /// Those that the source wants, packed; after an error those that were read before it.
  void append_kept_to(std::string& packed) const {
    for (const Kept& member : kept_) {
      append_kept({member.kind, source_.keep_all ? std::string_view(member.name) : "", member.value}, packed);
    }
  }

  /// " (in the member 'score')" while the value of one is being read: where an error is, wanted or not. Else empty.
  std::string place() const { return is_open_ ? " (in the member " + quote(name_, 40) + ")" : ""; }

  bool null() override { return literal("null"); }
  bool boolean(bool value) override { return literal(value ? "true" : "false"); }
  bool number_integer(int64_t value) override { return literal(str_cat(value)); }
  bool number_unsigned(uint64_t value) override { return literal(str_cat(value)); }
  bool number_float(double, const std::string& digits) override { return literal(digits); }
  bool string(std::string& value) override {
    if (keeping_ != nullptr && depth() == 1) {
      keeping_->kind = KeptField::text;
      keeping_->value = value;
    } else if (keeping_ != nullptr) {
      writer_.string(value);
    }
    if (depth() == 1 && current_ != nullptr) {
      current_->value = std::move(value);
      current_->is_string = true;
    }
    return end_value();
  }
  bool start_object(size_t) override { return open('{'); }
  bool start_array(size_t) override { return open('['); }
  bool end_object() override { return close('}'); }
  bool end_array() override { return close(']'); }
  bool key(std::string& name) override {
    if (depth() != 1) {
      if (keeping_ != nullptr) writer_.key(name);
      return true;
    }
    current_ = name == first_name() ? &first_ : field_.empty() && name == kSecondName ? &second_ : nullptr;
    if (num_names_++ < kMaxListedMembers) {
      names_ += (names_.empty() ? "" : ", ") + quote(name, 40);
    } else if (num_names_ == kMaxListedMembers + 1) {
      names_ += ", ...";
    }
    if (current_ != nullptr && current_->seen) throw twice(name);
    if (current_ != nullptr) current_->seen = true;
    begin_kept(name);
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
  struct Kept {
    std::string name;
    KeptField::Kind kind = KeptField::absent;
    std::string value;
  };
  static constexpr std::string_view kFirstName = "text";
  static constexpr std::string_view kSecondName = "sentence";

  std::string_view first_name() const { return field_.empty() ? kFirstName : field_; }
  std::string name_of(const Member& member) const { return quote(&member == &first_ ? first_name() : kSecondName); }
  std::string expected() const {
    return field_.empty() ? "a member 'text' or 'sentence'" : "a member " + quote(field_);
  }
  Error twice(const std::string& name) const { return {where(), "the member " + quote(name) + " twice", "it once"}; }

  /// Whether the value of the member that begins now is kept, and where.
  void begin_kept(const std::string& name) {
    keeping_ = nullptr;
    if (source_.keep_all) {
      const auto same = [&](const Kept& other) { return other.name == name; };
      if (std::any_of(kept_.begin(), kept_.end(), same)) throw twice(name);
      keeping_ = &kept_.emplace_back();
      keeping_->name = name;
    } else if (const auto found = std::find(source_.keep.begin(), source_.keep.end(), name);
               found != source_.keep.end()) {
      keeping_ = &kept_[static_cast<size_t>(found - source_.keep.begin())];
      if (keeping_->kind != KeptField::absent) throw twice(name);
    }
    writer_.clear();
  }

  bool literal(std::string_view text) {
    if (keeping_ != nullptr) writer_.literal(text);
    return end_value();
  }
  bool end_value() {
    if (depth() > 1) return true;
    if (keeping_ != nullptr && keeping_->kind == KeptField::absent) {
      keeping_->kind = KeptField::json;
      keeping_->value = writer_.text();
    }
    is_open_ = false;
    return true;
  }
  bool open(char bracket) {
    if (keeping_ != nullptr) writer_.open(bracket);
    enter();
    return true;
  }
  bool close(char bracket) {
    leave();
    if (keeping_ != nullptr && depth() > 0) writer_.close(bracket);
    return end_value();
  }

  const RecordSource& source_;
  std::string_view field_;
  Member first_;
  Member second_;
  std::vector<Kept> kept_;     // [source_.keep.size()], or the members so far
  Kept* keeping_ = nullptr;    // what the value that is being read goes into
  ValueWriter writer_;         // of that value
  Member* current_ = nullptr;  // what the next value belongs to, if it is wanted
  std::string name_;           // of the last member
  bool is_open_ = false;       // its value is being read
  std::string names_;
  size_t num_names_ = 0;
};

class JsonLinesReader final : public LineRecordReader {
 public:
  explicit JsonLinesReader(const RecordSource& source) : LineRecordReader(source), source_(source) {
    source_.filter = {};
  }

  std::vector<std::string> kept_names() const override { return source_.keep; }

 private:
  void convert(std::string_view& text, std::string& error) override {
    const std::string where = line_place(line());
    MemberExtractor extractor(text, where, source_);
    try {
      extractor.parse();
      text_ = extractor.take();
      text = text_;
    } catch (const Error& problem) {
      error = problem.what() + extractor.place();
    }
    if (keeps_fields()) extractor.append_kept_to(kept());
  }

  void keep_nothing() override {
    for (size_t i = 0; i < source_.keep.size(); ++i) append_kept({}, kept());
  }

  bool has_blank_records() const override { return false; }

  RecordSource source_;
  std::string text_;  // of the last record
};

}  // namespace

std::unique_ptr<RecordReader> open_line_records(const RecordSource& source) {
  if (source.format == InputFormat::jsonl) return std::make_unique<JsonLinesReader>(source);
  return std::make_unique<PlainTextReader>(source);
}

}  // namespace tessera::io
