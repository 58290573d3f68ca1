#include "checkpoint/pieces.h"

#include <algorithm>
#include <cstring>

#include "core/stop.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/moe/prepare_weights.h"

namespace tessera::checkpoint {
namespace {

constexpr uint64_t kStepBytes = 64u << 20;  // between two looks at the caller's flag
constexpr size_t kChunkElements = 1 << 18;  // converted at a time

float load_element(const std::byte* place, DType dtype) {
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, place, sizeof(value));
    return value;
  }
  uint16_t half;
  std::memcpy(&half, place, sizeof(half));
  return dtype == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

void store_element(std::byte* place, DType dtype, float value) {
  if (dtype == DType::f32) return void(std::memcpy(place, &value, sizeof(value)));
  const uint16_t half = dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
  std::memcpy(place, &half, sizeof(half));
}

void convert(const std::byte* source, DType from, std::byte* destination, DType to, size_t count) {
  for (size_t i = 0; i < count; ++i)
    store_element(destination + i * dtype_size(to), to, load_element(source + i * dtype_size(from), from));
}

std::vector<std::byte> read_all(const Slice& slice, const CountBytes& count) {
  std::vector<std::byte> bytes(slice.bytes);
  slice.read(bytes, count);
  return bytes;
}

moe::ScaleType scale_type(const Slice& slice) {
  const std::string& dtype = slice.tensor->info.dtype;
  return dtype == "BF16" ? moe::ScaleType::bf16 : dtype == "F8_E8M0" ? moe::ScaleType::e8m0 : moe::ScaleType::f32;
}

}  // namespace

Slice Slice::whole(const io::SafetensorsFolder& folder, const io::StoredTensor& tensor) {
  return {&folder, &tensor, 0, tensor.num_bytes()};
}

Slice Slice::of_expert(const io::SafetensorsFolder& folder, const io::StoredTensor& tensor, int64_t index) {
  const uint64_t bytes = tensor.num_bytes() / static_cast<uint64_t>(tensor.info.shape.front());
  return {&folder, &tensor, static_cast<uint64_t>(index) * bytes, bytes};
}

void Slice::read(std::span<std::byte> window, const CountBytes& count) const {
  TESSERA_CHECK(window.size() == bytes, tensor->info.name, window.size(), bytes);
  for (uint64_t done = 0; done < bytes;) {
    throw_if_stopped();
    const uint64_t step = std::min(kStepBytes, bytes - done);
    folder->read(*tensor, begin + done, window.subspan(done, step));
    done += step;
    count(step);
  }
}

DType read_dtype(const io::SafetensorsFolder& folder, const io::StoredTensor& tensor) {
  for (int i = 0; i < kNumDTypes; ++i) {
    if (kDTypes[i].name == tensor.info.dtype) return DType(i);
  }
  throw Error(folder.place(tensor), "dtype " + tensor.info.dtype, "dtype F32, F16 or BF16");
}

void fill_elements(const Slice& slice, DType from, DType to, std::span<std::byte> window, const CountBytes& count) {
  if (from == to) return slice.read(window, count);
  const size_t num_elements = slice.bytes / dtype_size(from);
  Buffer<std::byte> chunk(std::min(kChunkElements, num_elements) * dtype_size(from));
  for (size_t begin = 0; begin < num_elements; begin += kChunkElements) {
    const size_t elements = std::min(kChunkElements, num_elements - begin);
    Slice part = slice;
    part.begin += begin * dtype_size(from);
    part.bytes = elements * dtype_size(from);
    part.read(chunk.span().first(part.bytes), count);
    convert(chunk.data(), from, window.data() + begin * dtype_size(to), to, elements);
  }
}

void fill_turned(const Slice& slice, DType from, DType to, int64_t rows, int64_t columns, std::span<std::byte> window,
                 const CountBytes& count) {
  Buffer<std::byte> stored(slice.bytes);
  slice.read(stored.span(), count);
  // A layer of one expert whose down is this matrix: [I, H] becomes [H, I].
  moe::LayerConfig config{.hidden_size = static_cast<int32_t>(rows),
                          .intermediate_size = static_cast<int32_t>(columns),
                          .num_experts = 1,
                          .top_k = 1,
                          .dtype = from};
  if (from == to) {
    return moe::prepare_weights(config, {nullptr, stored.data()}, {nullptr, window.data()}, moe::Device::cpu, nullptr);
  }
  Buffer<std::byte> turned(slice.bytes);
  moe::prepare_weights(config, {nullptr, stored.data()}, {nullptr, turned.data()}, moe::Device::cpu, nullptr);
  convert(turned.data(), from, window.data(), to, static_cast<size_t>(rows * columns));
}

void fill_block_scales(const Slice& slice, moe::ScaleGrid grid, const moe::WeightShape& shape, int32_t up_offset,
                       std::span<std::byte> window, const CountBytes& count) {
  const std::vector<std::byte> stored = read_all(slice, count);
  try {
    moe::convert_scales({stored.data(), scale_type(slice), grid}, shape, up_offset,
                        reinterpret_cast<float*>(window.data()));
  } catch (const Error& error) {
    throw Error(slice.place(), error.what());
  }
}

void fill_row_scales(const Slice& slice, int64_t rows, std::span<std::byte> window, const CountBytes& count) {
  const std::vector<std::byte> stored = read_all(slice, count);
  const moe::ScaleType type = scale_type(slice);
  const size_t one = type == moe::ScaleType::f32 ? 4 : type == moe::ScaleType::bf16 ? 2 : 1;
  const auto grid = stored.size() == one ? moe::ChannelGrid::matrices : moe::ChannelGrid::rows;
  try {
    moe::convert_channel_scales({stored.data(), type, grid}, {.rows = rows}, reinterpret_cast<float*>(window.data()));
  } catch (const Error& error) {
    throw Error(slice.place(), error.what());
  }
}

ReadMxfp4 read_mxfp4(const Slice& codes, const Slice& exponents, int64_t rows, int64_t columns, bool gate_and_up,
                     const CountBytes& count) {
  ReadMxfp4 read;
  read.exponents.resize(exponents.bytes);
  exponents.read(std::as_writable_bytes(std::span(read.exponents)), count);
  read.codes.resize(codes.bytes);
  codes.read(std::as_writable_bytes(std::span(read.codes)), count);
  read.matrix = {read.codes.data(), read.exponents.data(), rows, columns, gate_and_up};
  return read;
}

}  // namespace tessera::checkpoint
