#include "io/json.h"

#include <algorithm>

#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

using nlohmann::json;

constexpr size_t kQuotedBytes = 60;  // of a file's own text in a message

/// The parser's message without its file text: "..., - <what is wrong>; <more>" gives the first part from the " - " on,
/// as it is ("unexpected '}'", "invalid literal").
std::string_view problem_in(std::string_view message) {
  message = message.substr(0, message.find("; last read: '"));
  const size_t begin = message.find(" - ");
  if (begin == std::string_view::npos) return "";
  message.remove_prefix(begin + 3);
  return message.substr(0, message.find("; expected "));
}

/// What the parser says would have been right, such as "string literal"; or empty.
std::string_view expected_in(std::string_view message) {
  static constexpr std::string_view kMarker = "; expected ";
  const size_t begin = message.rfind(kMarker);
  return begin == std::string_view::npos ? "" : message.substr(begin + kMarker.size());
}

/// Builds the whole document; the one place that keeps what it reads.
class DocumentBuilder final : public JsonEvents {
 public:
  using JsonEvents::JsonEvents;

  json take() { return std::move(document_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(int64_t value) override {
    // Non-negative integers arrive as number_unsigned; a zero here was written "-0".
    return value == 0 ? put(-0.0) : put(value);
  }
  bool number_unsigned(uint64_t value) override { return put(value); }
  bool number_float(double value, const std::string&) override { return put(value); }
  bool string(std::string& value) override { return put(std::move(value)); }
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    if (stack_.back()->contains(name)) {
      throw Error(where(), "the key " + quote(name, kQuotedBytes) + " twice in one object", "it once");
    }
    member_ = &(*stack_.back())[name];
    return true;
  }

 private:
  json* insert(json value) {
    if (stack_.empty()) {
      document_ = std::move(value);
      return &document_;
    }
    if (stack_.back()->is_array()) {
      stack_.back()->push_back(std::move(value));
      return &stack_.back()->back();
    }
    *member_ = std::move(value);
    return member_;
  }
  bool put(json value) {
    insert(std::move(value));
    return true;
  }
  bool open(json container) {
    enter();
    stack_.push_back(insert(std::move(container)));
    return true;
  }
  bool close() {
    leave();
    stack_.pop_back();
    return true;
  }

  json document_;
  std::vector<json*> stack_;  // the containers that are open; an open one's parent does not change, so they stay put
  json* member_ = nullptr;    // of the innermost object, waiting for its value
};

/// A value as a message shows it.
std::string shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return quote(value.get_ref<const std::string&>(), kQuotedBytes);
  return value.dump();
}

int64_t checked_int(const json& value, int64_t min, int64_t max, const std::string& where) {
  const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                                               : value.is_number_integer();
  if (!fits || value.get<int64_t>() < min || value.get<int64_t>() > max) {
    throw Error(where, shown(value), str_cat("an integer from ", min, " to ", max));
  }
  return value.get<int64_t>();
}

std::string item_place(const std::string& place, size_t i) { return str_cat(place, " item ", i); }

}  // namespace

void JsonEvents::parse() {
  static constexpr std::string_view kExpected = "one JSON object";
  if (text_.starts_with("\xEF\xBB\xBF")) throw Error(where_, "a byte order mark", kExpected.data());
  const size_t first = text_.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) throw Error(where_, "nothing", kExpected.data());
  if (text_[first] != '{') throw Error(where_, quote(text_.substr(first, kQuotedBytes)), kExpected.data());
  // The parser takes a NUL for the end of its input and would not see what follows.
  const size_t nul = text_.find('\0');
  if (nul != std::string_view::npos) throw Error(str_cat(where_, ": byte ", nul), "a NUL byte", kExpected.data());
  depth_ = 0;
  nlohmann::json_sax<json>* const events = this;
  json::sax_parse(text_.begin(), text_.end(), events);
}

void JsonEvents::enter() {
  if (++depth_ > kMaxJsonDepth) {
    throw Error(where_, str_cat("objects and arrays nested deeper than ", kMaxJsonDepth),
                str_cat("at most ", kMaxJsonDepth));
  }
}

bool JsonEvents::binary(binary_t&) {
  TESSERA_CHECK(false, "JSON text has no binary values");
  return false;
}

bool JsonEvents::parse_error(size_t position, const std::string& last_token, const json::exception& error) {
  // `position` counts the bytes read, the offending one and the end included.
  const size_t offset = std::min(position > 0 ? position - 1 : 0, text_.size());
  const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(offset), '\n');
  const std::string where = str_cat(where_, ": line ", line, ", byte ", offset);
  constexpr int kOutOfRange = 406;
  if (error.id == kOutOfRange) throw Error(where, quote(last_token, kQuotedBytes), "a finite number");
  static constexpr std::string_view kUnexpected = "unexpected ";
  const std::string_view problem = problem_in(error.what());
  if (problem.starts_with(kUnexpected)) {
    throw Error(where, std::string(problem.substr(kUnexpected.size())), std::string(expected_in(error.what())));
  }
  // A token that cannot be read: the byte where that became clear.
  const std::string got = offset == text_.size() ? "the end" : quote(text_.substr(offset, 1));
  throw Error(where, str_cat(got, " (", problem, ")"), "valid JSON");
}

json parse_json_object(std::string_view text, const std::string& where) {
  DocumentBuilder builder(text, where);
  builder.parse();
  return builder.take();
}

const json& JsonReader::member(const char* key, const std::string& expected) const {
  const auto found = object_.find(key);
  if (found == object_.end()) throw Error(place(key), "no such key", expected);
  return *found;
}

int64_t JsonReader::require_int(const char* key, int64_t min, int64_t max) const {
  return checked_int(member(key, str_cat("an integer from ", min, " to ", max)), min, max, place(key));
}

std::vector<int64_t> JsonReader::require_ints(const char* key, int64_t min, int64_t max, size_t min_count,
                                              size_t max_count) const {
  const std::string expected = str_cat("an array of ", min_count, " to ", max_count, " integers");
  const json& value = member(key, expected);
  if (!value.is_array()) throw Error(place(key), shown(value), expected);
  if (value.size() < min_count || value.size() > max_count) {
    throw Error(place(key), str_cat("an array of ", value.size()), expected);
  }
  std::vector<int64_t> items;
  for (const json& item : value) items.push_back(checked_int(item, min, max, item_place(place(key), items.size())));
  return items;
}

std::string JsonReader::require_string(const char* key) const {
  const json& value = member(key, "a string");
  if (!value.is_string()) throw Error(place(key), shown(value), "a string");
  return value.get<std::string>();
}

std::vector<std::string> JsonReader::require_strings(const char* key) const {
  const json& value = member(key, "an array of strings");
  if (!value.is_array()) throw Error(place(key), shown(value), "an array of strings");
  std::vector<std::string> items;
  for (const json& item : value) {
    if (!item.is_string()) throw Error(item_place(place(key), items.size()), shown(item), "a string");
    items.push_back(item.get<std::string>());
  }
  return items;
}

std::vector<std::string> JsonReader::unknown_keys(std::initializer_list<std::string_view> known) const {
  std::vector<std::string> unknown;
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) unknown.push_back(escaped(key));
  }
  return unknown;
}

}  // namespace tessera::io
