// User errors: a file, a shape, an option or a record is wrong.
//
//   throw Error("model.safetensors: tensor 'router.bias'", "shape [3]", "shape [4]");
//
// what() reads "<where>: got <got>, expected <expected>". The library throws, it never prints and never exits; the
// command line tool catches in main and prints "tessera: error: <what>". Messages name files, lines, tensors and
// arguments, never addresses, and text taken from a file is passed through `escaped` first.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace tessera {

class Error : public std::runtime_error {
 public:
  /// `where` names the file, line, tensor or argument; `got` what was found; `expected` what would have been right.
  Error(const std::string& where, const std::string& got, const std::string& expected);
  /// For failures that have no expected value, such as "cannot open: No such file or directory".
  Error(const std::string& where, const std::string& problem);

  const std::string& where() const { return where_; }

 private:
  std::string where_;
};

/// `text` fit for a terminal: control bytes, quotes and invalid UTF-8 become \xHH, and what is longer than
/// `max_bytes` is cut and ends in "...". Use it for every name that comes out of a file.
std::string escaped(std::string_view text, size_t max_bytes = 200);

/// The message of an errno value, in English whatever the locale.
std::string errno_message(int error_number);

}  // namespace tessera
