// How pieces of a layer's arrays come from a checkpoint: as they are stored, with their type changed, turned, or
// re-encoded.
//
//   piece.fill(window);                                      // [piece.bytes] of array piece.array, from piece.offset
//
// Closures of these functions are what a plan is made of; each reads what it needs when it is called.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/layer_tensors.h"
#include "checkpoint/mxfp4.h"
#include "tessera/checkpoint/load_layer.h"
#include "tessera/moe/convert_scales.h"

namespace tessera::checkpoint {

struct Piece {
  LayerArray array = LayerArray::gate_up;
  size_t offset = 0;  ///< in the array, in bytes
  size_t bytes = 0;
  uint64_t read_bytes = 0;                                                               ///< from disk
  std::function<void(std::span<std::byte>, const std::function<void(uint64_t)>&)> fill;  ///< told of bytes as it reads
};

using CountBytes = std::function<void(uint64_t)>;

/// A matrix, or several, in a tensor: bytes `begin` to `begin + bytes`.
struct Slice {
  const io::SafetensorsFolder* folder = nullptr;
  const io::StoredTensor* tensor = nullptr;
  uint64_t begin = 0;
  uint64_t bytes = 0;

  /// All of it.
  static Slice whole(const io::SafetensorsFolder& folder, const io::StoredTensor& tensor);
  /// What matrix (or vector, ...) `index` of the first dimension has.
  static Slice of_expert(const io::SafetensorsFolder& folder, const io::StoredTensor& tensor, int64_t index);

  /// In steps of at most 64 MiB; ends with Stopped where core/stop.h says so.
  void read(std::span<std::byte> window, const CountBytes& count) const;
  std::string place() const { return folder->place(*tensor); }
};

/// Of a type that safetensors names so. Throws Error for another.
DType read_dtype(const io::SafetensorsFolder& folder, const io::StoredTensor& tensor);

/// Elements of `from`, rounded to `to` where that differs.
void fill_elements(const Slice& slice, DType from, DType to, std::span<std::byte> window, const CountBytes& count);

/// [rows, columns] of what is stored as [columns, rows].
void fill_turned(const Slice& slice, DType from, DType to, int64_t rows, int64_t columns, std::span<std::byte> window,
                 const CountBytes& count);

/// Scales of blocks as a layer reads them. Errors name the tensor.
void fill_block_scales(const Slice& slice, moe::ScaleGrid grid, const moe::WeightShape& shape, int32_t up_offset,
                       std::span<std::byte> window, const CountBytes& count);

/// Scales of rows as floats; a tensor with one has it for every row. Errors name the tensor.
void fill_row_scales(const Slice& slice, int64_t rows, std::span<std::byte> window, const CountBytes& count);

/// An expert's matrix of MXFP4, read.
struct ReadMxfp4 {
  std::vector<uint8_t> codes, exponents;
  Mxfp4Matrix matrix;
};
ReadMxfp4 read_mxfp4(const Slice& codes, const Slice& exponents, int64_t rows, int64_t columns, bool gate_and_up,
                     const CountBytes& count);

}  // namespace tessera::checkpoint
