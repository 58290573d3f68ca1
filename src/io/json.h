// Strict JSON for files that may be hostile: well-formed UTF-8, no byte order mark, bounded depth, no duplicate keys,
// no trailing bytes, no NaN or overflow.
//
//   const nlohmann::json object = parse_json_object(read_text_file(path, kMaxConfigBytes), "config.json");
//   const JsonReader reader(object, "config.json");
//   const int64_t size = reader.require_int("embedding_size", 1, 1'048'576);
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::io {

inline constexpr int kMaxJsonDepth = 32;
inline constexpr uint64_t kMaxConfigBytes = 1u << 20;

/// A parser that hands out events and keeps nothing: derive from it for texts that may be large, or whose members
/// mostly do not matter. Syntax errors, a text that is no object and objects nested too deep are thrown as Error.
class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  /// Both must live as long as this object; `where` names the file in messages.
  JsonEvents(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  /// Throws Error with line and byte (both counted over the whole text, bytes from 0) if `text` is not one JSON object.
  void parse();

  const std::string& where() const { return where_; }

 protected:
  /// Every start_object and start_array calls it, every end calls leave.
  void enter();
  void leave() { --depth_; }
  /// Objects and arrays that are open.
  int depth() const { return depth_; }

 private:
  bool binary(binary_t& value) final;
  bool parse_error(size_t position, const std::string& last_token, const nlohmann::json::exception& error) final;

  std::string_view text_;
  const std::string& where_;
  int depth_ = 0;
};

/// Parses `text`, which must be one JSON object. `where` names the file in messages. Throws Error. "-0" is kept as the
/// floating-point number that it is, so that nothing takes it for an integer.
nlohmann::json parse_json_object(std::string_view text, const std::string& where);

/// Members of a parsed config, with the file named in every message. Integers must be JSON integers (8, not 8.0 or
/// "8"). `object` must live as long as the reader.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  int64_t require_int(const char* key, int64_t min, int64_t max) const;
  std::vector<int64_t> require_ints(const char* key, int64_t min, int64_t max, size_t min_count,
                                    size_t max_count) const;
  std::string require_string(const char* key) const;
  std::vector<std::string> require_strings(const char* key) const;
  /// Keys of the object that are not in `known`, escaped: the caller warns about them.
  std::vector<std::string> unknown_keys(std::initializer_list<std::string_view> known) const;

 private:
  const nlohmann::json& member(const char* key, const std::string& expected) const;
  std::string place(const char* key) const { return where_ + ": '" + key + "'"; }

  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace tessera::io
