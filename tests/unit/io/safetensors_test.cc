#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

namespace fs = std::filesystem;

using Shape = std::vector<int64_t>;

/// A file with this header, unpadded, and `data`.
std::string file_bytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

std::vector<float> ramp(size_t size) {
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i) * 0.37f - 5.0f;
  return values;
}

TEST(Safetensors, ReadsAFileOfTheSpecification) {
  const TempDir dir;
  std::string data("\x00\x00\x80\x3f\x00\x00\x00\xc0", 8);  // 1, -2
  data += std::string("\x00\x3c\x80\x3f", 4);               // f16 1, bf16 1
  write_file(dir / "a", file_bytes(R"({"__metadata__":{"format":"pt"},"b.bf16":{"dtype":"BF16","shape":[],)"
                                   R"("data_offsets":[10,12]},"a":{"data_offsets":[0,8],"shape":[1,2],"dtype":"F32"},)"
                                   R"("h":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}   )",
                                   data));
  const SafetensorsFile file(dir / "a");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "a");  // in the order of their data
  EXPECT_EQ(file.tensors()[1].name, "h");
  EXPECT_EQ(file.tensors()[2].name, "b.bf16");
  const Buffer<float> a = file.read_f32(file.require("a", Shape{1, 2}));
  ASSERT_EQ(a.size(), 2u);
  EXPECT_EQ(a[0], 1.0f);
  EXPECT_EQ(a[1], -2.0f);
  EXPECT_EQ(file.read_f32(file.require("h", Shape{1}))[0], 1.0f);
  EXPECT_EQ(file.read_f32(file.require("b.bf16", Shape{}))[0], 1.0f);
  EXPECT_EQ(file.find("missing"), nullptr);
  ASSERT_NE(file.find("h"), nullptr);
  EXPECT_EQ(file.find("h")->dtype, "F16");
}

TEST(Safetensors, AnEmptyFileOfTensorsIsOne) {
  const TempDir dir;
  write_file(dir / "a", file_bytes("{}", ""));
  EXPECT_TRUE(SafetensorsFile(dir / "a").tensors().empty());
  write_safetensors(dir / "b", {});
  EXPECT_TRUE(SafetensorsFile(dir / "b").tensors().empty());
}

TEST(Safetensors, EveryDTypeOfTheFormatIsKnown) {
  const std::pair<const char*, int> sizes[] = {
      {"BOOL", 1}, {"U8", 1},   {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2},
      {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4},     {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  for (const auto& [name, size] : sizes) {
    const std::string header =
        str_cat("{\"t\":{\"dtype\":\"", name, "\",\"shape\":[3],\"data_offsets\":[0,", 3 * size, "]}}");
    const auto tensors = parse_safetensors_header(header, static_cast<uint64_t>(3 * size), "f");
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].dtype, name);
    const std::string wrong =
        error_of([&] { parse_safetensors_header(header, static_cast<uint64_t>(3 * size) + 1, "f"); });
    expect_contains(wrong, "bytes of data");
  }
}

TEST(Safetensors, RequireNamesFileTensorExpectedAndActual) {
  const TempDir dir;
  const std::vector<float> values = ramp(6);
  write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", DType::f32, {2, 3}, values}});
  const SafetensorsFile file(dir / "a");
  const std::string place = (dir / "a").string() + ": tensor ";
  EXPECT_EQ(error_of([&] { file.require("w", Shape{3, 2}); }), place + "'w': got shape [2, 3], expected shape [3, 2]");
  EXPECT_EQ(error_of([&] {
              file.require("w", Shape{2, 3, 1});
            }),
            place + "'w': got shape [2, 3], expected shape [2, 3, 1]");
  EXPECT_EQ(error_of([&] { file.require("v\n", Shape{4}); }),
            place + "'v\\x0a': got no such tensor, expected shape [4]");
}

TEST(Safetensors, OtherTypesAreListedButNotRead) {
  const TempDir dir;
  write_file(dir / "a", file_bytes(R"({"n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", "12345678"));
  const SafetensorsFile file(dir / "a");
  expect_contains(error_of([&] { file.read_f32(file.require("n", Shape{1})); }),
                  "tensor 'n': got dtype I64, expected F32, F16 or BF16");
}

TEST(Safetensors, WhatIsWrittenIsReadInEveryType) {
  const TempDir dir;
  std::vector<float> values = ramp(1000);
  values.insert(values.end(), {0.0f, -0.0f, 65504.0f, 1e-7f, 3e38f, std::numeric_limits<float>::infinity(), 1.0f / 3});
  const std::vector<TensorToWrite> tensors = {{"full", DType::f32, {1, 1007}, values},
                                              {"half", DType::f16, {1007}, values},
                                              {"brain", DType::bf16, {19, 53}, values},
                                              {"scalar \"q\" caf\u00e9", DType::f32, {}, std::span(values).first(1)}};
  const std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}, {"note", "a\"b\n\u00e9"}};
  write_safetensors(dir / "a", tensors, metadata);
  EXPECT_FALSE(fs::exists(dir / "a.partial"));
  const SafetensorsFile file(dir / "a");
  ASSERT_EQ(file.tensors().size(), 4u);
  for (size_t t = 0; t < 4; ++t) EXPECT_EQ(file.tensors()[t].name, tensors[t].name);
  const Buffer<float> full = file.read_f32(file.require("full", Shape{1, 1007}));
  const Buffer<float> half = file.read_f32(file.require("half", Shape{1007}));
  const Buffer<float> brain = file.read_f32(file.require("brain", Shape{19, 53}));
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(full[i]), std::bit_cast<uint32_t>(values[i]));
    ASSERT_EQ(half[i], f16_to_f32(f32_to_f16(values[i]))) << i;
    ASSERT_EQ(brain[i], bf16_to_f32(f32_to_bf16(values[i]))) << i;
  }
  EXPECT_EQ(file.read_f32(file.require(tensors[3].name, Shape{}))[0], values[0]);
}

TEST(Safetensors, DataStartsAtAMultipleOf64) {
  const TempDir dir;
  const std::vector<float> values = ramp(1);
  for (size_t length = 1; length <= 70; ++length) {
    const std::string name(length, 'n');
    write_safetensors(dir / "a", std::vector<TensorToWrite>{{name, DType::f32, {1}, values}});
    const std::string bytes = read_file(dir / "a");
    uint64_t header_length = 0;
    std::memcpy(&header_length, bytes.data(), 8);
    ASSERT_EQ((8 + header_length) % 64, 0u);
    ASSERT_EQ(bytes.size(), 8 + header_length + 4);
  }
}

// More than one chunk of the conversion, and a last chunk that is not full.
TEST(Safetensors, LargeHalfTensorsAreConvertedInChunks) {
  const TempDir dir;
  const std::vector<float> values = ramp((1 << 18) * 2 + 17);
  write_safetensors(dir / "a",
                    std::vector<TensorToWrite>{{"w", DType::bf16, {static_cast<int64_t>(values.size())}, values}});
  const SafetensorsFile file(dir / "a");
  const Buffer<float> read = file.read_f32(file.tensors()[0]);
  ASSERT_EQ(read.size(), values.size());
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(read[i], bf16_to_f32(f32_to_bf16(values[i]))) << i;
}

TEST(Safetensors, TheWriterRefusesWhatTheReaderWould) {
  const TempDir dir;
  const std::vector<float> values = ramp(6);
  const auto write_error = [&](const std::vector<TensorToWrite>& tensors) {
    return error_of([&] { write_safetensors(dir / "a", tensors); });
  };
  expect_contains(write_error({{"w", DType::f32, {7}, values}}), "expected 28 bytes for its shape and dtype");
  expect_contains(write_error({{"w", DType::f32, {6}, values}, {"w", DType::f32, {6}, values}}), "tensor 'w' twice");
  expect_contains(write_error({{"w", DType::f32, {0}, {}}}), "got the size 0");
  expect_contains(write_error({{"", DType::f32, {6}, values}}), "an empty tensor name");
  EXPECT_THROW(write_error({{"\xff", DType::f32, {6}, values}}), ProgrammerError);
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(Safetensors, AFailedWriteLeavesTheOldFile) {
  const TempDir dir;
  const std::vector<float> values = ramp(4);
  write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", DType::f32, {4}, values}});
  const std::string before = read_file(dir / "a");
  EXPECT_NE(error_of([&] {
              write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", DType::f32, {5}, values}});
            }),
            "no error");
  EXPECT_EQ(read_file(dir / "a"), before);
}

// safetensors#762: saving over the file that the tensors came from must not destroy it.
TEST(Safetensors, SavingOverTheSourceWorks) {
  const TempDir dir;
  const std::vector<float> values = ramp(64);
  write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", DType::f32, {64}, values}});
  const SafetensorsFile source(dir / "a");
  const Buffer<float> read = source.read_f32(source.tensors()[0]);
  write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", DType::f16, {64}, read.span()}});
  EXPECT_EQ(source.read_f32(source.tensors()[0])[63], values[63]);  // the open file is still the old one
  EXPECT_EQ(SafetensorsFile(dir / "a").tensors()[0].dtype, "F16");
}

TEST(Safetensors, TruncationAfterOpenIsAnErrorNotASignal) {
  const TempDir dir;
  const std::vector<float> values = ramp(100'000);
  for (const DType dtype : {DType::f32, DType::f16}) {
    write_safetensors(dir / "a", std::vector<TensorToWrite>{{"w", dtype, {100'000}, values}});
    const SafetensorsFile file(dir / "a");
    fs::resize_file(dir / "a", 4'096);
    const std::string message = error_of([&] { file.read_f32(file.tensors()[0]); });
    expect_contains(message, ": offset 128: got 3968 bytes, expected ");
  }
}

}  // namespace
}  // namespace tessera::io
