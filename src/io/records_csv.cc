// CSV as RFC 4180 has it: fields in quotes may hold commas, line ends and doubled quotes. A quote inside a field that
// does not start with one is a character like any other. Another delimiter, such as a tab, takes the comma's place.
#include <algorithm>
#include <utility>

#include "io/kept_fields.h"
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

/// The columns whose fields a parse hands out.
struct CsvColumns {
  bool all = false;
  std::vector<bool> wanted;  ///< [number of columns] at most; others are not

  bool has(size_t column) const { return all || (column < wanted.size() && wanted[column]); }
};

class CsvParser {
 public:
  CsvParser(TextStream& input, char delimiter) : input_(input), delimiter_(delimiter) {}

  /// The next row; of its fields only those of `columns` are kept, in the order of the row. Blank lines are no rows.
  /// False at the end of the input.
  bool next(const CsvColumns& columns, CsvRow& row) {
    while (next_line(columns, row)) {
      if (!is_blank_) return true;
      ++num_blank_lines_;
    }
    return false;
  }

  /// Those that the last call of `next` passed over.
  int64_t take_blank_lines() { return std::exchange(num_blank_lines_, 0); }

 private:
  enum class State : uint8_t { field_start, unquoted, quoted, quote_in_quoted };

  bool next_line(const CsvColumns& columns, CsvRow& row) {
    row = {.line = line_, .num_fields = 0, .fields = {}, .problem = ""};
    row_ = &row;
    columns_ = &columns;
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
    is_blank_ = is_blank_ && (c == ' ' || c == '\t' || c == '\r' || c == '\n') && c != delimiter_;
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
    if (c == delimiter_) {
      end_field();
      begin_field();
    } else {
      keep_unquoted(c);
    }
    return false;
  }

  void keep_unquoted(char c) {
    if (is_closed_) {
      fail("got " + quote({&c, 1}) + " after a closing quote, expected " +
           (delimiter_ == ','    ? "a comma"
            : delimiter_ == '\t' ? "a tab"
                                 : quote({&delimiter_, 1})) +
           " or the end of the line");
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
    is_kept_ = columns_->has(row_->num_fields);
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
  const CsvColumns* columns_ = nullptr;
  char delimiter_;
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
  explicit CsvReader(const RecordSource& source)
      : TextRecordReader(source),
        parser_(input(), delimiter_of(source)),
        file_(input().bytes().name()),
        field_(source.field) {
    CsvRow first;
    if (!next_row(CsvColumns{.all = true, .wanted = {}}, first)) {
      if (!source.has_header) return;  // no records
      throw Error(file_, "nothing", expected_header());
    }
    if (!first.problem.empty()) throw Error(line_place(first.line), first.problem);
    num_columns_ = first.num_fields;
    std::vector<std::string> names = first.fields;
    if (!source.has_header) {
      for (size_t i = 0; i < names.size(); ++i) names[i] = str_cat(i + 1);
    }
    header_line_ = first.line;
    column_ = text_column(names, source.has_header);
    keep_columns(names, source);
    if (!source.has_header) {
      row_ = std::move(first);
      select_wanted(row_);
      has_pending_row_ = true;
    }
  }

  std::vector<std::string> kept_names() const override { return kept_names_; }

 private:
  static char delimiter_of(const RecordSource& source) {
    if (source.delimiter != '\0') return source.delimiter;
    return source.format == InputFormat::tsv ? '\t' : ',';
  }

  std::string expected_header() const {
    return field_.empty() ? "a header with a column 'text' or 'sentence'" : "a header with a column " + quote(field_);
  }

  size_t text_column(const std::vector<std::string>& names, bool has_header) const {
    if (!has_header && field_.empty() && names.size() == 1) return 0;
    size_t column = find_column(names, field_.empty() ? "text" : field_);
    if (column == names.size() && field_.empty()) column = find_column(names, "sentence");
    if (column < names.size()) return column;
    if (has_header) throw Error(file_, listed_columns(names), expected_header());
    throw Error(file_, str_cat(names.size(), " columns without a header"),
                "the text's column by its number, from 1" + (field_.empty() ? "" : "; got " + quote(field_)));
  }

  /// Which columns go on, and at which of the fields that a row then has they lie.
  void keep_columns(const std::vector<std::string>& names, const RecordSource& source) {
    std::vector<size_t> kept;
    if (source.keep_all) {
      for (size_t i = 0; i < names.size(); ++i) kept.push_back(i);
      kept_names_ = names;
    }
    for (const std::string& name : source.keep) {
      kept.push_back(find_column(names, name));
      kept_names_.push_back(name);
      if (kept.back() == names.size()) {
        throw Error(file_, listed_columns(names), "a column " + quote(name) + " to keep");
      }
    }
    columns_.wanted.assign(names.size(), false);
    columns_.wanted[column_] = true;
    for (const size_t column : kept) columns_.wanted[column] = true;
    const auto position = [&](size_t column) {
      return static_cast<size_t>(
          std::count(columns_.wanted.begin(), columns_.wanted.begin() + static_cast<std::ptrdiff_t>(column), true));
    };
    text_position_ = position(column_);
    for (const size_t column : kept) kept_positions_.push_back(position(column));
  }

  /// A row of all fields becomes one of those that are wanted.
  void select_wanted(CsvRow& row) const {
    size_t count = 0;
    for (size_t i = 0; i < row.fields.size(); ++i) {
      if (columns_.has(i)) std::swap(row.fields[count++], row.fields[i]);
    }
    row.fields.resize(count);
  }

  bool read_record(std::string_view& text, std::string& error) override {
    if (!next_record(columns_)) return false;
    std::string problem = row_.problem;
    if (problem.empty() && row_.num_fields != num_columns_) {
      problem = str_cat("got ", row_.num_fields, " fields, expected ", num_columns_);
    }
    const bool is_whole = problem.empty();
    if (problem.empty()) problem = text_problem(row_.fields[text_position_]);
    for (size_t i = 0; i < kept_positions_.size(); ++i) {
      const std::string_view value = is_whole ? std::string_view(row_.fields[kept_positions_[i]]) : "";
      const std::string not_text = text_problem(value);
      if (!not_text.empty() && problem.empty()) problem = "column " + quote(kept_names_[i]) + ": " + not_text;
      append_kept(is_whole && not_text.empty() ? KeptField{KeptField::text, "", value} : KeptField{}, kept());
    }
    if (problem.empty()) {
      text = row_.fields[text_position_];
    } else {
      error = line_place(row_.line) + ": " + problem;
    }
    return true;
  }

  bool skip_record() override { return next_record(CsvColumns{}); }

  bool next_record(const CsvColumns& columns) {
    if (std::exchange(has_pending_row_, false)) return true;
    return next_row(columns, row_);
  }

  bool next_row(const CsvColumns& columns, CsvRow& row) {
    const bool has_row = parser_.next(columns, row);
    count_blank_lines(parser_.take_blank_lines());
    return has_row;
  }

  /// The one column of that name, or names.size() if there is none.
  size_t find_column(const std::vector<std::string>& names, const std::string& name) const {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found != names.end() && std::find(found + 1, names.end(), name) != names.end()) {
      throw Error(line_place(header_line_), "two columns " + quote(name), "one");
    }
    return static_cast<size_t>(found - names.begin());
  }

  static std::string listed_columns(const std::vector<std::string>& names) {
    constexpr size_t kMaxListed = 20;
    std::string list = "columns";
    for (size_t i = 0; i < std::min(names.size(), kMaxListed); ++i) {
      list += (i == 0 ? " " : ", ") + quote(names[i], 40);
    }
    return list + (names.size() > kMaxListed ? ", ..." : "");
  }

  CsvParser parser_;
  std::string file_;
  std::string field_;
  int64_t header_line_ = 1;
  size_t num_columns_ = 0;
  size_t column_ = 0;
  CsvColumns columns_;        // the text's and those that are kept
  size_t text_position_ = 0;  // among the fields of a row
  std::vector<size_t> kept_positions_;
  std::vector<std::string> kept_names_;
  CsvRow row_;
  bool has_pending_row_ = false;  // row_ is the first record, which had to be read to count the columns
};

}  // namespace

std::unique_ptr<RecordReader> open_csv_records(const RecordSource& source) {
  return std::make_unique<CsvReader>(source);
}

}  // namespace tessera::io
