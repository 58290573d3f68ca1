#include "tessera/core/error.h"

#include <cstring>

#include "tessera/core/check.h"
#include "tessera/core/utf8.h"

namespace tessera {

Error::Error(const std::string& where, const std::string& got, const std::string& expected)
    : std::runtime_error(where + ": got " + got + ", expected " + expected), where_(where) {}

Error::Error(const std::string& where, const std::string& problem)
    : std::runtime_error(where + ": " + problem), where_(where) {}

std::string escaped(std::string_view text, size_t max_bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t length = utf8_sequence_length(text.substr(begin));
    const unsigned char byte = static_cast<unsigned char>(text[begin]);
    // U+0080..U+009F are control characters that some terminals obey.
    const bool c1_control = length == 2 && byte == 0xC2 && static_cast<unsigned char>(text[begin + 1]) < 0xA0;
    const bool plain = length > 0 && byte >= 0x20 && byte != 0x7F && byte != '\\' && byte != '\'' && !c1_control;
    const size_t taken = length > 0 ? length : 1;
    std::string piece;
    if (plain) {
      piece = text.substr(begin, taken);
    } else {
      for (size_t i = 0; i < taken; ++i) {
        const unsigned char b = static_cast<unsigned char>(text[begin + i]);
        piece += {'\\', 'x', kHex[b >> 4], kHex[b & 15]};
      }
    }
    if (out.size() + piece.size() > max_bytes) return out + "...";
    out += piece;
    begin += taken;
  }
  return out;
}

std::string errno_message(int error_number) {
  const char* description = strerrordesc_np(error_number);
  return description != nullptr ? description : str_cat("error ", error_number);
}

namespace detail {

void check_failed(const char* condition, const char* file, int line, const char* names, const std::string& values) {
  std::string message = str_cat("check failed: ", condition, " at ", file, ":", line);
  if (!values.empty()) message += str_cat(" with ", names, " = ", values);
  throw ProgrammerError(message);
}

}  // namespace detail
}  // namespace tessera
