#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian and is copied as it is");

constexpr uint64_t kLengthBytes = 8;
constexpr size_t kDataAlignment = 64;       // what Buffer has too: a reader may map the file and use it in place
constexpr size_t kChunkElements = 1 << 18;  // converted at a time: half a megabyte beside the tensor itself

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += str_cat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

float widened(uint16_t bits, bool is_f16) { return is_f16 ? f16_to_f32(bits) : bf16_to_f32(bits); }

std::string json_string(std::string_view text) {
  TESSERA_CHECK(utf8_first_invalid(text) == std::string_view::npos, escaped(text));
  return nlohmann::json(text).dump();
}

/// The length field and the header, padded so that the data starts aligned.
std::string header_bytes(std::span<const TensorToWrite> tensors,
                         std::span<const std::pair<std::string, std::string>> metadata, const std::string& where) {
  std::string header = "{";
  const auto separate = [&] { header += header.size() > 1 ? "," : ""; };
  if (!metadata.empty()) {
    std::string members;
    for (const auto& [key, value] : metadata) {
      members += str_cat(members.empty() ? "" : ",", json_string(key), ":", json_string(value));
    }
    header += "\"__metadata__\":{" + members + "}";
  }
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    separate();
    const uint64_t end = offset + tensor.values.size() * dtype_size(tensor.dtype);
    header += str_cat(json_string(tensor.name), ":{\"dtype\":\"", dtype_name(tensor.dtype),
                      "\",\"shape\":", shape_text(tensor.shape), ",\"data_offsets\":[", offset, ",", end, "]}");
    offset = end;
  }
  header += "}";
  const size_t unpadded = kLengthBytes + header.size();
  header.append((kDataAlignment - unpadded % kDataAlignment) % kDataAlignment, ' ');
  // What is written must be readable: the reader's own rules judge names, shapes and sizes.
  parse_safetensors_header(header, offset, where);
  std::string bytes(kLengthBytes, '\0');
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, kLengthBytes);
  return bytes + header;
}

void write_values(OutputFile& file, const TensorToWrite& tensor) {
  const auto write_raw = [&](const void* data, size_t size) {
    file.write(std::string_view(static_cast<const char*>(data), size));
  };
  std::vector<uint16_t> chunk(tensor.dtype == DType::f32 ? 0 : std::min(kChunkElements, tensor.values.size()));
  for (size_t begin = 0; begin < tensor.values.size(); begin += kChunkElements) {
    const auto values = tensor.values.subspan(begin, std::min(kChunkElements, tensor.values.size() - begin));
    if (tensor.dtype == DType::f32) {
      write_raw(values.data(), values.size_bytes());
      continue;
    }
    const bool is_f16 = tensor.dtype == DType::f16;
    for (size_t i = 0; i < values.size(); ++i) chunk[i] = is_f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    write_raw(chunk.data(), values.size() * sizeof(uint16_t));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  refuse_stand_in(file_);
  if (file_.size() < kLengthBytes) {
    throw Error(file_.name(), str_cat(file_.size(), " bytes"), "at least the 8 bytes of the header's length");
  }
  std::array<std::byte, kLengthBytes> length_bytes{};
  file_.read_at(0, length_bytes);
  const uint64_t header_length = std::bit_cast<uint64_t>(length_bytes);
  const uint64_t max_length = std::min(kMaxSafetensorsHeaderBytes, file_.size() - kLengthBytes);
  if (header_length > max_length) {
    throw Error(file_.name(), str_cat("a header length of ", header_length), str_cat("at most ", max_length));
  }
  std::string header(header_length, '\0');
  file_.read_at(kLengthBytes, std::as_writable_bytes(std::span(header)));
  data_begin_ = kLengthBytes + header_length;
  tensors_ = parse_safetensors_header(header, file_.size() - data_begin_, file_.name());
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), size_t{0});
  std::sort(by_name_.begin(), by_name_.end(),
            [this](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                      [this](size_t i, std::string_view wanted) { return tensors_[i].name < wanted; });
  return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
}

const TensorInfo& SafetensorsFile::require(std::string_view name, std::span<const int64_t> shape) const {
  const TensorInfo* info = find(name);
  const std::string where = file_.name() + ": tensor " + quote(name);
  if (info == nullptr) throw Error(where, "no such tensor", "shape " + shape_text(shape));
  if (!std::equal(info->shape.begin(), info->shape.end(), shape.begin(), shape.end())) {
    throw Error(where, "shape " + shape_text(info->shape), "shape " + shape_text(shape));
  }
  return *info;
}

Buffer<float> SafetensorsFile::read_f32(const TensorInfo& info) const {
  const bool is_f32 = info.dtype == dtype_name(DType::f32);
  const bool is_f16 = info.dtype == dtype_name(DType::f16);
  if (!is_f32 && !is_f16 && info.dtype != dtype_name(DType::bf16)) {
    throw Error(file_.name() + ": tensor " + quote(info.name), "dtype " + info.dtype, "F32, F16 or BF16");
  }
  const size_t num_elements = (info.end - info.begin) / (is_f32 ? sizeof(float) : sizeof(uint16_t));
  Buffer<float> values(num_elements);
  if (is_f32) {
    file_.read_at(data_begin_ + info.begin, std::as_writable_bytes(values.span()));
    return values;
  }
  Buffer<uint16_t> chunk(std::min(kChunkElements, num_elements));
  for (size_t begin = 0; begin < num_elements; begin += kChunkElements) {
    const auto part = chunk.span().first(std::min(kChunkElements, num_elements - begin));
    file_.read_at(data_begin_ + info.begin + begin * sizeof(uint16_t), std::as_writable_bytes(part));
    for (size_t i = 0; i < part.size(); ++i) values[begin + i] = widened(part[i], is_f16);
  }
  return values;
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       std::span<const std::pair<std::string, std::string>> metadata) {
  const std::string header = header_bytes(tensors, metadata, escaped(path.native()));
  OutputFile file(path);
  file.write(header);
  for (const TensorToWrite& tensor : tensors) write_values(file, tensor);
  file.commit();
}

}  // namespace tessera::io
