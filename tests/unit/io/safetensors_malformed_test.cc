// The corpus of malformed safetensors files: every class is refused with its own message, quickly, in little memory,
// and without a crash. The files are made here; each is written to disk and opened as a user's would be.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <time.h>

#include <cstring>

#include "io/safetensors.h"
#include "tessera/core/check.h"
#include "unit/io/allocation_counter.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

namespace fs = std::filesystem;
using testing::allocated_bytes;

constexpr double kMaxSeconds = 0.1 * testing::kSlowdown;
constexpr size_t kMaxExtraBytes = 64u << 20;

struct MalformedFile {
  std::string name;
  std::string bytes;
  std::string message;  // a part of what must be said
};

std::string with_length(uint64_t length, const std::string& rest) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + rest;
}

MalformedFile header_case(std::string name, const std::string& header, std::string message, size_t data_bytes = 8) {
  return {std::move(name), with_length(header.size(), header) + std::string(data_bytes, 'd'), std::move(message)};
}

/// One tensor "t" of 8 bytes of data, with the three fields as given.
MalformedFile tensor_case(std::string name, const std::string& fields, std::string message, size_t data_bytes = 8) {
  return header_case(std::move(name), "{\"t\":{" + fields + "}}", std::move(message), data_bytes);
}

MalformedFile shape_case(std::string name, const std::string& shape, std::string message) {
  const std::string fields = "\"dtype\":\"F32\",\"shape\":" + shape + ",\"data_offsets\":[0,8]";
  return tensor_case(std::move(name), fields, std::move(message));
}

MalformedFile offsets_case(std::string name, const std::string& offsets, std::string message) {
  const std::string fields = "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" + offsets;
  return tensor_case(std::move(name), fields, std::move(message));
}

MalformedFile name_case(std::string name, const std::string& tensor_name, std::string message) {
  const std::string fields = "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]";
  return header_case(std::move(name), str_cat("{\"", tensor_name, "\":{", fields, "}}"), std::move(message));
}

/// Two tensors of one byte each "a" and "b", at these offsets, in front of `data_bytes`.
MalformedFile pair_case(std::string name, const std::string& a, const std::string& b, std::string message,
                        size_t data_bytes) {
  const std::string shape_a = ":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + a + "}";
  const std::string shape_b = ":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + b + "}";
  return header_case(std::move(name), "{\"a\"" + shape_a + ",\"b\"" + shape_b + "}", std::move(message), data_bytes);
}

std::vector<MalformedFile> size_and_length_cases() {
  std::vector<MalformedFile> cases;
  for (size_t size = 0; size < 8; ++size) {
    cases.push_back(
        {str_cat("size ", size), std::string(size, '\0'), str_cat("got ", size, " bytes, expected at least")});
  }
  cases.push_back({"size 8, length 0", with_length(0, ""), "got an empty header, expected '{'"});
  cases.push_back({"length 0 with data", with_length(0, "{}"), "got an empty header, expected '{'"});
  cases.push_back({"length 1", with_length(1, "{}"), "a header that ends in '{', expected '}'"});
  cases.push_back({"length past the file", with_length(3, "{}"), "got a header length of 3, expected at most 2"});
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    cases.push_back(
        {str_cat("length ", length), with_length(length, "{}"), str_cat("got a header length of ", length)});
  }
  return cases;
}

std::vector<MalformedFile> json_cases() {
  using std::string_literals::operator""s;
  return {
      header_case("not UTF-8 in a name", "{\"\xff\":{}}", "(invalid string: ill-formed UTF-8 byte)"),
      header_case("overlong UTF-8", "{\"\xc0\xaf\":{}}", "(invalid string: ill-formed UTF-8 byte)"),
      header_case("lone surrogate", "{\"\\ud800\":{}}", "(invalid string: surrogate"),
      header_case("byte order mark", "\xEF\xBB\xBF{}", "got a header that starts with", 0),
      header_case("NUL at the start", "\0{}"s, "got a header that starts with '\\x00{}', expected '{'", 0),
      header_case("NUL inside", "{\0}"s, "byte 1: got a NUL byte", 0),
      header_case("NUL at the end", "{}\0"s, "got a header that ends in '\\x00', expected '}' and spaces only", 0),
      header_case("NUL then a brace", "{}\0}"s, "byte 2: got a NUL byte", 0),
      header_case("leading space", " {}", "got a header that starts with ' {}', expected '{'", 0),
      header_case("trailing newline", "{}\n", "got a header that ends in '\\x0a', expected '}' and spaces only", 0),
      header_case("leading junk", "x{}", "got a header that starts with 'x{}', expected '{'", 0),
      header_case("trailing junk", "{}x", "got a header that ends in 'x', expected '}' and spaces only", 0),
      header_case("a second object", "{}{}", "got '{', expected end of input", 0),
      header_case("array", "[]", "got a header that starts with '[]', expected '{'", 0),
      header_case("null", "null", "got a header that starts with 'null', expected '{'", 0),
      header_case("spaces only", "   ", "got a header that starts with '   ', expected '{'", 0),
      header_case("truncated", "{\"__metadata__\":{}", "got end of input, expected '}'"),
      header_case("trailing comma", "{\"t\":{\"dtype\":\"F32\",}}", "got '}', expected string literal"),
      header_case("unquoted key", "{t:{}}", "got ':' (invalid literal), expected valid JSON"),
      header_case("comment", "{/**/}", "got '/' (invalid literal), expected valid JSON"),
      header_case("depth 33", "{\"t\":" + std::string(32, '[') + std::string(32, ']') + "}",
                  "tensor 't': got an array, expected an object"),
      header_case("depth 100,000", str_cat("{\"t\":{\"shape\":", std::string(100'000, '['), "}"),
                  "tensor 't': shape: got an array, expected integers"),
      header_case(
          "objects of depth 100,000",
          [] {
            std::string header;
            for (int i = 0; i < 100'000; ++i) header += "{\"a\":";
            return header + "}";
          }(),
          "tensor 'a': got the field 'a', expected dtype"),
      header_case("names with escapes", "{\"\\u001b[31m\":{}}", "'\\x1b[31m' with control characters"),
  };
}

std::vector<MalformedFile> entry_cases() {
  const std::string tensor = "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}";
  return {
      header_case("duplicate tensor", "{\"t\":" + tensor + ",\"t\":" + tensor + "}", "got tensor 't' twice"),
      header_case("duplicate tensor, escaped", "{\"t\":" + tensor + ",\"\\u0074\":" + tensor + "}",
                  "got tensor 't' twice"),
      header_case("duplicate __metadata__", "{\"__metadata__\":{},\"__metadata__\":{}}", "got __metadata__ twice"),
      header_case("duplicate metadata key", "{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}",
                  "__metadata__: got the key 'a' twice"),
      header_case("metadata number", "{\"__metadata__\":{\"a\":1}}", "__metadata__: got 1, expected strings only"),
      header_case("metadata object", "{\"__metadata__\":{\"a\":{}}}",
                  "__metadata__: got an object, expected strings only"),
      header_case("metadata null", "{\"__metadata__\":null}", "__metadata__: got null, expected an object"),
      header_case("metadata array", "{\"__metadata__\":[]}", "__metadata__: got an array, expected an object"),
      header_case("tensor null", "{\"t\":null}", "tensor 't': got null, expected an object"),
      header_case("tensor string", "{\"t\":\"x\"}", "tensor 't': got 'x', expected an object"),
      header_case("tensor number", "{\"t\":1}", "tensor 't': got 1, expected an object"),
      header_case("tensor bool", "{\"t\":true}", "tensor 't': got true, expected an object"),
      header_case("empty tensor", "{\"t\":{}}", "tensor 't': got no dtype, expected dtype, shape and data_offsets"),
      name_case("empty name", "", "got an empty tensor name"),
      name_case("long name", std::string(1'025, 'n'), "got a tensor name of 1025 bytes, expected 1 to 1024"),
      name_case("name with a tab", "a\\tb", "'a\\x09b' with control characters"),
      name_case("name with a NUL", "a\\u0000b", "'a\\x00b' with control characters"),
      name_case("name with CSI", "a\\u009bb", "with control characters"),
      name_case("name with DEL", "a\x7f", "with control characters"),
  };
}

std::vector<MalformedFile> field_cases() {
  const std::string shape = "\"shape\":[2]";
  const std::string offsets = "\"data_offsets\":[0,8]";
  const std::string dtype = "\"dtype\":\"F32\"";
  const auto dtype_case = [&](std::string name, const std::string& value, std::string message) {
    return tensor_case(std::move(name), "\"dtype\":" + value + "," + shape + "," + offsets, std::move(message));
  };
  return {
      tensor_case("missing dtype", shape + "," + offsets, "tensor 't': got no dtype"),
      tensor_case("missing shape", dtype + "," + offsets, "tensor 't': got no shape"),
      tensor_case("missing offsets", dtype + "," + shape, "tensor 't': got no data_offsets"),
      tensor_case("duplicate dtype", dtype + "," + dtype + "," + shape + "," + offsets, "dtype: got the field twice"),
      tensor_case("duplicate shape", dtype + "," + shape + "," + shape + "," + offsets, "shape: got the field twice"),
      tensor_case("duplicate empty shape", dtype + ",\"shape\":[]," + shape, "shape: got the field twice"),
      tensor_case("duplicate offsets", dtype + "," + shape + "," + offsets + "," + offsets,
                  "data_offsets: got the field twice"),
      tensor_case("unknown field", dtype + "," + shape + "," + offsets + ",\"x\":1", "got the field 'x'"),
      dtype_case("unknown dtype", "\"F31\"", "dtype: got 'F31', expected one of BOOL U8"),
      dtype_case("dtype case", "\"f32\"", "dtype: got 'f32', expected one of BOOL U8"),
      dtype_case("empty dtype", "\"\"", "dtype: got '', expected one of"),
      dtype_case("dtype null", "null", "dtype: got null, expected one of"),
      dtype_case("dtype number", "32", "dtype: got 32, expected one of"),
      dtype_case("dtype array", "[\"F32\"]", "dtype: got an array, expected one of"),
  };
}

std::vector<MalformedFile> shape_cases() {
  return {
      shape_case("shape null", "null", "shape: got null, expected an array of integers"),
      shape_case("shape number", "2", "shape: got 2, expected an array of integers"),
      shape_case("shape object", "{}", "shape: got an object, expected an array of integers"),
      shape_case("shape string", "\"[2]\"", "shape: got '[2]', expected an array of integers"),
      shape_case("negative dim", "[-2]", "shape: got -2, expected integers from 1 to 1099511627776"),
      shape_case("negative zero dim", "[-0]", "shape: got -0, expected integers"),
      shape_case("float dim", "[2.0]", "shape: got 2.0, expected integers"),
      shape_case("exponent dim", "[2e0]", "shape: got 2e0, expected integers"),
      shape_case("string dim", "[\"2\"]", "shape: got '2', expected integers"),
      shape_case("null dim", "[null]", "shape: got null, expected integers"),
      shape_case("bool dim", "[true]", "shape: got true, expected integers"),
      shape_case("nested dim", "[[2]]", "shape: got an array, expected integers"),
      shape_case("zero dim", "[0]", "shape: got the size 0, expected 1 to 1099511627776"),
      shape_case("dim 2^40 + 1", "[1099511627777]", "shape: got the size 1099511627777"),
      shape_case("dim 2^63", "[9223372036854775808]", "shape: got the size 9223372036854775808"),
      shape_case("dim 2^64", "[18446744073709551616]", "shape: got 18446744073709551616, expected integers"),
      shape_case("dim overflow", "[1e999]", "got '1e999', expected a finite number"),
      shape_case("dim NaN", "[NaN]", "got 'N' (invalid literal), expected valid JSON"),
      shape_case("rank 9", "[1,1,1,1,1,1,1,1,2]", "shape: got more dimensions, expected at most 8"),
      shape_case("product overflow", "[1099511627776,1099511627776]", "whose size in bytes overflows"),
      shape_case("product x dtype overflow", "[1099511627776,4194304]", "whose size in bytes overflows"),
      shape_case("product wraps to 8", "[1099511627776,16777216,2]", "whose size in bytes overflows"),
      shape_case("too large for the data", "[3]", "data_offsets [0, 8], expected 12 bytes"),
      shape_case("too small for the data", "[1]", "data_offsets [0, 8], expected 4 bytes"),
      shape_case("scalar with two values", "[]", "data_offsets [0, 8], expected 4 bytes"),
  };
}

std::vector<MalformedFile> offset_cases() {
  return {
      offsets_case("offsets null", "null", "data_offsets: got null, expected an array of 2 offsets"),
      offsets_case("no offsets", "[]", "data_offsets: got 0 offsets, expected 2"),
      offsets_case("one offset", "[8]", "data_offsets: got 1 offsets, expected 2"),
      offsets_case("three offsets", "[0,8,8]", "data_offsets: got more than 2 offsets, expected 2"),
      offsets_case("reversed", "[8,0]", "got data_offsets [8, 0], expected begin before end"),
      offsets_case("negative", "[-8,0]", "data_offsets: got -8, expected byte offsets"),
      offsets_case("float", "[0,8.0]", "data_offsets: got 8.0, expected byte offsets"),
      offsets_case("string", "[0,\"8\"]", "data_offsets: got '8', expected byte offsets"),
      offsets_case("2^64", "[0,18446744073709551616]", "got 18446744073709551616, expected byte offsets"),
      offsets_case("2^64-1", "[0,18446744073709551615]", "expected an end within the 8 bytes of data"),
      offsets_case("wraps", "[18446744073709551608,0]", "expected begin before end"),
      offsets_case("past the end", "[4,12]", "got data_offsets [4, 12], expected an end within the 8 bytes of data"),
      offsets_case("empty", "[0,0]", "got data_offsets [0, 0], expected 8 bytes"),
      pair_case("overlap", "[0,4]", "[2,6]", "tensor 'b': got data_offsets [2, 6] (an overlap), expected begin 4", 6),
      pair_case("hole", "[0,4]", "[5,9]", "tensor 'b': got data_offsets [5, 9] (a hole), expected begin 4", 9),
      pair_case("not from 0", "[1,5]", "[5,9]", "tensor 'a': got data_offsets [1, 5] (a hole), expected begin 0", 9),
      pair_case("shared", "[0,4]", "[0,4]", "got data_offsets [0, 4] (an overlap), expected begin 4", 4),
      pair_case("trailing bytes", "[0,4]", "[4,8]", "got 9 bytes of data, expected 8, the end of 'b'", 9),
      pair_case("missing bytes", "[0,4]", "[4,8]", "tensor 'b': got data_offsets [4, 8], expected an end within", 7),
      header_case("data without tensors", "{}", "got 1 bytes of data, expected 0, the start of the data", 1),
  };
}

MalformedFile too_many_tensors() {
  std::string header = "{\"__metadata__\":{\"note\":\"{{{{\"}";
  for (size_t i = 0; i <= kMaxTensors; ++i) {
    header += str_cat(",\"", i, "\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[", i, ",", i + 1, "]}");
  }
  return header_case("262,145 tensors", header + "}", "got more tensors, expected at most 262144", kMaxTensors + 1);
}

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

void check_refused(const MalformedFile& file, const fs::path& path) {
  SCOPED_TRACE(file.name);
  write_file(path, file.bytes);
  const size_t bytes_before = allocated_bytes();
  const double begin = thread_seconds();
  const std::string message = error_of([&] { SafetensorsFile opened(path); });
  const double seconds = thread_seconds() - begin;
  const size_t num_bytes = allocated_bytes() - bytes_before;
  EXPECT_TRUE(message.starts_with(path.string() + ": ")) << message;
  expect_contains(message, file.message);
  EXPECT_LT(message.size(), 700u);
  for (const char c : message) EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20) << message;
  EXPECT_LT(seconds, kMaxSeconds);
  EXPECT_LT(num_bytes, kMaxExtraBytes);
}

void check_all(const std::vector<MalformedFile>& files) {
  ASSERT_GE(files.size(), 10u);
  const TempDir dir;
  for (const MalformedFile& file : files) check_refused(file, dir / "model.safetensors");
}

TEST(MalformedSafetensors, SizesAndLengths) { check_all(size_and_length_cases()); }
TEST(MalformedSafetensors, Json) { check_all(json_cases()); }
TEST(MalformedSafetensors, Entries) { check_all(entry_cases()); }
TEST(MalformedSafetensors, Fields) { check_all(field_cases()); }
TEST(MalformedSafetensors, Shapes) { check_all(shape_cases()); }
TEST(MalformedSafetensors, Offsets) { check_all(offset_cases()); }

TEST(MalformedSafetensors, TooManyTensors) {
  const TempDir dir;
  check_refused(too_many_tensors(), dir / "model.safetensors");
}

TEST(MalformedSafetensors, AsManyTensorsAsAllowedAreRead) {
  std::string header = "{\"__metadata__\":{\"note\":\"{{{{\"}";
  for (size_t i = 0; i < kMaxTensors; ++i) {
    header += str_cat(",\"", i, "\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[", i, ",", i + 1, "]}");
  }
  EXPECT_EQ(parse_safetensors_header(header + "}", kMaxTensors, "f").size(), kMaxTensors);
}

TEST(MalformedSafetensors, LimitsThemselvesAreAllowed) {
  const auto parse = [](const std::string& header, uint64_t data_bytes) {
    return error_of([&] { parse_safetensors_header(header, data_bytes, "f"); });
  };
  EXPECT_EQ(parse(R"({"t":{"dtype":"U8","shape":[1,1,1,1,1,1,1,2],"data_offsets":[0,2]}})", 2), "no error");
  EXPECT_EQ(parse(R"({"t":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}})", 1ull << 40),
            "no error");
  EXPECT_EQ(parse("{\"" + std::string(1'024, 'n') + R"(":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1),
            "no error");
  EXPECT_EQ(parse("{}" + std::string(1'000, ' '), 0), "no error");
}

TEST(MalformedSafetensors, OnlyTheLastByteOfAFileMissing) {
  const TempDir dir;
  const std::vector<float> values(16, 1.0f);
  write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", DType::f32, {16}, values}});
  const std::string whole = testing::read_file(dir / "a");
  for (size_t size = 0; size < whole.size(); ++size) {  // a download that stopped anywhere
    write_file(dir / "a", whole.substr(0, size));
    ASSERT_NE(error_of([&] { SafetensorsFile file(dir / "a"); }), "no error") << size;
  }
}

TEST(MalformedSafetensors, PathsThatAreNoFiles) {
  const TempDir dir;
  fs::create_directory(dir / "folder");
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  fs::create_symlink(dir / "loop", dir / "loop");
  const auto open_error = [](const fs::path& path) { return error_of([&] { SafetensorsFile file(path); }); };
  expect_contains(open_error(dir / "folder"), "got a directory, expected a regular file");
  expect_contains(open_error(dir / "pipe"), "got a pipe, expected a regular file");
  expect_contains(open_error(dir / "loop"), "cannot open: Too many levels of symbolic links");
  expect_contains(open_error(dir / "missing"), "cannot open: No such file or directory");
  expect_contains(open_error("/dev/zero"), "got a device, expected a regular file");
  expect_contains(open_error("/proc/self/mem"), "got 0 bytes, expected at least the 8 bytes");
}

// The limits above are only worth something if the measurements see a reader that breaks them.
TEST(MalformedSafetensors, TheMeasurementsSeeWhatTheyMeasure) {
  const size_t before = allocated_bytes();
  const std::string large(kMaxExtraBytes, 'x');
  EXPECT_GE(allocated_bytes() - before, kMaxExtraBytes);
  const double begin = thread_seconds();
  volatile uint64_t sum = 0;
  while (thread_seconds() - begin < 0.01) sum = sum + static_cast<unsigned char>(large[sum % large.size()]);
  EXPECT_GE(thread_seconds() - begin, 0.01);
}

}  // namespace
}  // namespace tessera::io
