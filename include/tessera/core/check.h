// Programmer errors: a contract of this library was broken by the code that calls it.
//
//   TESSERA_CHECK(num_tiles >= 0, num_tiles, task_idx);
//
// Always on, in release builds too. A failed check throws ProgrammerError with the condition, file, line and the values
// listed. What a user can get wrong (files, shapes, options) is an Error instead (error.h).
#pragma once

#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

namespace tessera {

class ProgrammerError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// The arguments, written one after the other with operator<<, numbers alike in every locale.
template <class... Args>
std::string str_cat(const Args&... args) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << args);
  return out.str();
}

namespace detail {

[[noreturn]] void check_failed(const char* condition, const char* file, int line, const char* names,
                               const std::string& values);

template <class... Args>
std::string check_values(const Args&... args) {
  std::ostringstream out;
  const char* separator = "";
  ((out << separator << args, separator = ", "), ...);
  return out.str();
}

}  // namespace detail
}  // namespace tessera

#define TESSERA_CHECK(condition, ...)                                                \
  do {                                                                               \
    if (!(condition)) [[unlikely]] {                                                 \
      ::tessera::detail::check_failed(#condition, __FILE__, __LINE__, #__VA_ARGS__,  \
                                      ::tessera::detail::check_values(__VA_ARGS__)); \
    }                                                                                \
  } while (false)
