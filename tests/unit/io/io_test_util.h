// What the tests of the io layer share: a directory of their own, whole files, the message of an Error.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "tessera/core/error.h"
#include "unit/error_message.h"

namespace tessera::testing {

/// Removed with everything in it at the end of the test.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "tessera_test.XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path.string());
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Expects `fragment` in `message`, and shows both.
inline void expect_contains(std::string_view message, std::string_view fragment) {
  EXPECT_NE(message.find(fragment), std::string_view::npos) << "message:  " << message << "\nexpected: " << fragment;
}

#if defined(__SANITIZE_ADDRESS__)
inline constexpr double kSlowdown = 20;  // of instrumented code, for limits on time
#else
inline constexpr double kSlowdown = 1;
#endif

}  // namespace tessera::testing

// What every test of this folder uses.
namespace tessera::io {
using testing::error_of;
using testing::expect_contains;
using testing::read_file;
using testing::TempDir;
using testing::write_file;
}  // namespace tessera::io
