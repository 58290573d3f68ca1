// Scales of e4m3 weights as checkpoints hold them -> as a layer of WeightFormat::fp8_block, or of fp8_channel, reads
// them. Once, at load.
//
//   convert_scales({stored, ScaleType::bf16}, {E, 2 * I, H, true}, 0, gate_up_scale);         // Qwen, Mistral
//   convert_scales({stored, ScaleType::e8m0}, {E, H, I}, 0, down_scale);                      // DeepSeek V3.2
//   const int32_t offset = I % 128;                                                           // Transformers 5
//   convert_scales({stored, ScaleType::f32, ScaleGrid::concatenated}, {E, 2 * I, H, true}, offset, gate_up_scale);
//   config.scale_offsets.up = offset;
//   convert_channel_scales({stored, ScaleType::f32, ChannelGrid::halves}, {E, 2 * I, H, true}, gate_up_scale);
//
// A scale is multiplied with: W = e4m3(w) * scale, whatever a checkpoint calls it (weight_scale_inv). No value changes:
// all types are exact in fp32, and scales that one block would have to share, but do not, are refused.
#pragma once

#include <cstdint>

#include "tessera/moe/quantize.h"

namespace tessera::moe {

/// How a stored scale is written.
enum class ScaleType : uint8_t {
  f32,
  bf16,
  e8m0,  ///< one byte: 2^(byte - 127), 255 is NaN
};

/// Which block rows a tensor of gate's and up's scales has; B(n) = ceil(n / 128), a row for each block of H.
enum class ScaleGrid : uint8_t {
  per_projection,  ///< [E, 2 B(I), B(H)]: gate's, then up's; of a weight that is one projection [E, B(rows), ..]
  concatenated,    ///< [E, B(2I), B(H)]: of gate's rows and up's counted through; one block may have rows of both
  interleaved,     ///< [E, 2 B(I), B(H)]: gate's block 0, up's block 0, gate's block 1, ...
};

/// Host memory, as a file has it.
struct StoredScales {
  const void* values = nullptr;
  ScaleType type = ScaleType::f32;
  ScaleGrid grid = ScaleGrid::per_projection;
};

/// The scales of a weight of this shape, whose `order` does not matter -> [num_matrices, parts, B(I + up_offset),
/// B(H)], gate's before up's, or [num_matrices, B(rows), B(columns)] of one projection. Blocks of which no row is left
/// are 0.
///
/// `up_offset` is that of LayerConfig::scale_offsets: 0, or of a concatenated grid also I % 128, with which every scale
/// stays what it is. With 0 and an I that is no multiple of 128, up's rows of one block have two stored scales: they
/// must be equal. Throws Error naming expert and block where they are not, and for a scale that is negative, infinite
/// or NaN; 0 is accepted. Also for a null pointer, a size or number that cannot be.
void convert_scales(const StoredScales& stored, const WeightShape& shape, int32_t up_offset, float* scales);

/// What a tensor of scales without blocks belongs to.
enum class ChannelGrid : uint8_t {
  rows,      ///< [E, rows]: each row of a weight, in the order of the rows
  halves,    ///< [E, 2]: all gate rows, all up rows, whatever their order
  matrices,  ///< [E]: a weight
};

/// Host memory, as a file has it.
struct StoredChannelScales {
  const void* values = nullptr;
  ScaleType type = ScaleType::f32;
  ChannelGrid grid = ChannelGrid::rows;
};

/// The scales of a weight of this shape, whose columns do not matter -> [num_matrices, rows], one each row in their
/// order. No value changes. Throws Error naming expert and row for a scale that is negative, infinite or NaN; 0 is
/// accepted. Also for a null pointer, a size or number that cannot be, halves of a weight that has none.
void convert_channel_scales(const StoredChannelScales& stored, const WeightShape& shape, float* scales);

}  // namespace tessera::moe
