// CSV as RFC 4180 has it: fields in quotes may hold commas, line ends and doubled quotes. A quote inside a field that
// does not start with one is a character like any other.
#include <algorithm>
#include <utility>

#include "io/quote.h"
#include "io/record_stream.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

struct CsvRow {
  int64_t line = 0;  ///< where it begins, from 1
  size_t num_fields = 0;
  std::vector<std::string> fields;  ///< those that were asked for
  std::string problem;              ///< empty = well-formed
};

class CsvParser {
 public:
  explicit CsvParser(TextStream& input) : input_(input) {}

  static constexpr size_t kAllColumns = SIZE_MAX;
  static constexpr size_t kNoColumn = SIZE_MAX - 1;

  /// The next row; of its fields only the one of `column` is kept (or all). Blank lines are no rows. False at the end
  /// of the input.
  bool next(size_t column, CsvRow& row) {
    while (next_line(column, row)) {
      if (!is_blank_) return true;
      ++num_blank_lines_;
    }
    return false;
  }

  /// Those that the last call of `next` passed over.
  int64_t take_blank_lines() { return std::exchange(num_blank_lines_, 0); }

 private:
  enum class State : uint8_t { field_start, unquoted, quoted, quote_in_quoted };

  bool next_line(size_t column, CsvRow& row) {
    row = {.line = line_, .num_fields = 0, .fields = {}, .problem = ""};
    row_ = &row;
    column_ = column;
    num_kept_bytes_ = 0;
    is_blank_ = true;
    begin_field();
    bool has_bytes = false;
    while (true) {
      const int byte = input_.get();
      if (byte == TextStream::kEnd) return finish_at_end(has_bytes);
      has_bytes = true;
      if (take(static_cast<char>(byte))) return true;
    }
  }

  /// Takes one byte; true when it ends the row.
  bool take(char c) {
    if (c == '\n') ++line_;
    is_blank_ = is_blank_ && (c == ' ' || c == '\t' || c == '\r' || c == '\n');
    if (state_ == State::quoted) {
      if (c == '"') {
        state_ = State::quote_in_quoted;
      } else {
        keep(c);
      }
      return false;
    }
    if (c == '"' && state_ == State::quote_in_quoted) {
      keep(c);
      state_ = State::quoted;
      return false;
    }
    if (c == '"' && state_ == State::field_start) {
      state_ = State::quoted;
      quote_line_ = line_;
      return false;
    }
    if (state_ == State::quote_in_quoted) is_closed_ = true;
    state_ = State::unquoted;
    return take_unquoted(c);
  }

  bool take_unquoted(char c) {
    if (c == '\n') {
      end_field();  // every "\r" that stands before it belongs to the line's end
      return true;
    }
    if (c == '\r') {
      ++num_carriage_returns_;
      return false;
    }
    for (; num_carriage_returns_ > 0; --num_carriage_returns_) keep_unquoted('\r');
    if (c == ',') {
      end_field();
      begin_field();
    } else {
      keep_unquoted(c);
    }
    return false;
  }

  void keep_unquoted(char c) {
    if (is_closed_) {
      fail("got " + quote({&c, 1}) + " after a closing quote, expected a comma or the end of the line");
    }
    keep(c);
  }

  void keep(char c) {
    if (!is_kept_) return;
    if (num_kept_bytes_ == kMaxTextRecordBytes) {
      fail(str_cat("the field is longer than ", kMaxTextRecordBytes, " bytes"));
      row_->fields.back().clear();
      is_kept_ = false;
      return;
    }
    row_->fields.back().push_back(c);
    ++num_kept_bytes_;
  }

  void begin_field() {
    state_ = State::field_start;
    num_carriage_returns_ = 0;
    is_closed_ = false;
    is_kept_ = column_ == kAllColumns || column_ == row_->num_fields;
    if (is_kept_) row_->fields.emplace_back();
  }

  void end_field() { ++row_->num_fields; }

  bool finish_at_end(bool has_bytes) {
    if (!has_bytes || is_blank_ || input_.bytes().stopped()) return false;
    if (state_ == State::quoted) fail(str_cat("the quote opened in line ", quote_line_, " is never closed"));
    end_field();
    return true;
  }

  void fail(const std::string& problem) {
    if (row_->problem.empty()) row_->problem = problem;
  }

  TextStream& input_;
  CsvRow* row_ = nullptr;
  size_t column_ = kAllColumns;
  State state_ = State::field_start;
  bool is_kept_ = false;             // this field's bytes are wanted
  bool is_closed_ = false;           // this field began with a quote, and the quote has been closed
  bool is_blank_ = true;             // the row is a line of white space so far
  size_t num_carriage_returns_ = 0;  // the last bytes, outside of quotes
  int64_t num_blank_lines_ = 0;
  size_t num_kept_bytes_ = 0;  // of the row, so that a hostile header is bounded too
  int64_t line_ = 1;
  int64_t quote_line_ = 0;
};

class CsvReader final : public TextRecordReader {
 public:
  explicit CsvReader(const RecordSource& source) : TextRecordReader(source), parser_(input()) {
    CsvRow header;
    const bool has_header = next_row(CsvParser::kAllColumns, header);
    const std::string expected = source.field.empty() ? "a header with a column 'text' or 'sentence'"
                                                      : "a header with a column " + quote(source.field);
    const std::string& name = input().bytes().name();
    if (!has_header) throw Error(name, "nothing", expected);
    if (!header.problem.empty()) throw Error(line_place(header.line), header.problem);
    num_columns_ = header.num_fields;
    column_ = source.field.empty() ? find_column(header, "text") : find_column(header, source.field);
    if (column_ == num_columns_ && source.field.empty()) column_ = find_column(header, "sentence");
    if (column_ == num_columns_) throw Error(name, listed_columns(header), expected);
  }

 private:
  bool read_record(std::string_view& text, std::string& error) override {
    if (!next_row(column_, row_)) return false;
    std::string problem = row_.problem;
    if (problem.empty() && row_.num_fields != num_columns_) {
      problem = str_cat("got ", row_.num_fields, " fields, expected ", num_columns_);
    }
    if (problem.empty()) problem = text_problem(row_.fields.front());
    if (problem.empty()) {
      text = row_.fields.front();
    } else {
      error = line_place(row_.line) + ": " + problem;
    }
    return true;
  }

  bool skip_record() override { return next_row(CsvParser::kNoColumn, row_); }

  bool next_row(size_t column, CsvRow& row) {
    const bool has_row = parser_.next(column, row);
    count_blank_lines(parser_.take_blank_lines());
    return has_row;
  }

  /// The one column of that name, or num_columns_ if there is none.
  size_t find_column(const CsvRow& header, const std::string& name) const {
    const auto found = std::find(header.fields.begin(), header.fields.end(), name);
    if (found != header.fields.end() && std::find(found + 1, header.fields.end(), name) != header.fields.end()) {
      throw Error(line_place(header.line), "two columns " + quote(name), "one");
    }
    return static_cast<size_t>(found - header.fields.begin());
  }

  static std::string listed_columns(const CsvRow& header) {
    constexpr size_t kMaxListed = 20;
    std::string names = "columns";
    for (size_t i = 0; i < std::min(header.fields.size(), kMaxListed); ++i) {
      names += (i == 0 ? " " : ", ") + quote(header.fields[i], 40);
    }
    return names + (header.fields.size() > kMaxListed ? ", ..." : "");
  }

  CsvParser parser_;
  size_t num_columns_ = 0;
  size_t column_ = 0;
  CsvRow row_;
};

}  // namespace

std::unique_ptr<RecordReader> open_csv_records(const RecordSource& source) {
  return std::make_unique<CsvReader>(source);
}

}  // namespace tessera::io
