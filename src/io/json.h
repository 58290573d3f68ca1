// Strict JSON for files that may be hostile: well-formed UTF-8, no byte order mark, bounded depth, no duplicate keys, no
// trailing bytes, no NaN or overflow.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace tessera::io {

inline constexpr int kMaxJsonDepth = 32;
inline constexpr uint64_t kMaxConfigBytes = 1u << 20;

/// Parses `text`, which must be one JSON object. `where` names the file in messages. Throws Error.
nlohmann::json parse_json_object(std::string_view text, const std::string& where);

/// Members of a parsed config, with the file named in every message. Integers must be JSON integers (8, not 8.0 or "8").
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  int64_t require_int(const char* key, int64_t min, int64_t max) const;
  std::vector<int64_t> require_ints(const char* key, int64_t min, int64_t max, size_t min_count, size_t max_count) const;
  std::string require_string(const char* key) const;
  std::vector<std::string> require_strings(const char* key) const;
  /// Keys of the object that are not in `known`, escaped: the caller warns about them.
  std::vector<std::string> unknown_keys(std::initializer_list<std::string_view> known) const;

 private:
  const nlohmann::json& member(const char* key) const;
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace tessera::io
