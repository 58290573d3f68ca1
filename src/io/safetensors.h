// Safetensors files: 8 bytes little-endian header length, a JSON header, then the tensors' bytes.
//
//   SafetensorsFile file("model.safetensors");
//   const TensorInfo& info = file.require("router.bias", std::vector<int64_t>{4});
//   Buffer<float> bias = file.read_f32(info);
//
// The reader trusts nothing: every size is checked against the file before memory is taken for it, tensors must cover
// the data without gap or overlap, names must be unique. Format: https://huggingface.co/docs/safetensors
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/file.h"
#include "tessera/core/buffer.h"
#include "tessera/core/dtype.h"

namespace tessera::io {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own limit
inline constexpr size_t kMaxTensors = 262'144;
inline constexpr size_t kMaxTensorNameBytes = 1'024;
inline constexpr size_t kMaxTensorRank = 8;
inline constexpr int64_t kMaxTensorDim = int64_t{1} << 40;

struct TensorInfo {
  std::string name;
  std::string dtype;  ///< one of the format's names, such as "F16" or "I64"
  std::vector<int64_t> shape;
  uint64_t begin = 0;  ///< bytes from the start of the data section, half-open
  uint64_t end = 0;
};

/// Checks a header against the number of bytes that follow it and returns the tensors in the order of their data.
/// `where` names the file in messages. Throws Error for everything that is not exactly right.
std::vector<TensorInfo> parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                                 const std::string& where);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;
  /// The tensor of that name and shape; Error naming the file, tensor, expected and actual shape otherwise.
  const TensorInfo& require(std::string_view name, std::span<const int64_t> shape) const;
  /// Reads an F32, F16 or BF16 tensor, widened to float. Error for any other type.
  Buffer<float> read_f32(const TensorInfo& info) const;
  const std::string& name() const { return file_.name(); }

 private:
  InputFile file_;
  uint64_t data_begin_ = 0;
  std::vector<TensorInfo> tensors_;
  std::vector<size_t> by_name_;  // indices into tensors_, sorted by name
};

/// A tensor to be written; `values` are rounded to `dtype` (nearest even).
struct TensorToWrite {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::span<const float> values;
};

/// Writes `tensors` to a temporary file beside `path`, then renames it. Tensors are laid out in the given order with
/// the header padded so that the data starts at a multiple of 64 bytes.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       std::span<const std::pair<std::string, std::string>> metadata = {});

}  // namespace tessera::io
