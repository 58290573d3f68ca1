// Numbers to e4m3 with scales, on the host: tokens by rows, weights by blocks, as WeightFormat::fp8_block has them, or
// both by rows, as fp8_channel does.
//
//   quantize_rows(x, DType::bf16, {num_tokens, hidden}, codes, scales);                   // a scale each 128 columns
//   quantize_rows(gate_up, DType::bf16, {E * 2 * I, hidden, kWholeRow}, codes, scales);   // a scale each row
//   quantize_blocks(gate_up, DType::bf16, {E, 2 * I, H, true, order}, codes, scales);      // a scale each 128 x 128
//   check_scales(config, weights);                                                        // of a checkpoint, at load
//
// The recipe, and what NaN and infinity do, is tessera/core/e4m3.h: bit for bit what a layer does to its tokens. One
// thread; matrices are apart from each other, so a caller may share them among threads.
#pragma once

#include <cstdint>

#include "tessera/core/dtype.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/gate_up_order.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

struct RowsShape {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t group = kScaleGroup;  ///< columns that share a scale: 128, or kWholeRow
};

/// values [rows, columns] of any dtype -> codes [rows, columns], scales [rows, ceil(columns / group)]. Throws Error for
/// a negative size, another group or a null pointer.
void quantize_rows(const void* values, DType dtype, const RowsShape& shape, uint8_t* codes, float* scales);

/// Of a weight [num_matrices, rows, columns].
struct WeightShape {
  int64_t num_matrices = 1;
  int64_t rows = 0;
  int64_t columns = 0;
  bool gate_and_up = false;  ///< rows are 2 I: gate and up rows in `order`, which do not share blocks
  GateUpOrder order = GateUpOrder::gate_first;

  int64_t num_parts() const { return gate_and_up ? 2 : 1; }
};

/// values -> codes of the same shape, scales [num_matrices, parts, ceil(rows / parts / 128), ceil(columns / 128)],
/// those of gate before those of up whatever the order. A block's scale is made of its largest magnitude as a row's is.
/// Throws Error for a negative size, an odd number of gate and up rows or a null pointer.
void quantize_blocks(const void* values, DType dtype, const WeightShape& shape, uint8_t* codes, float* scales);

/// Throws Error naming tensor, expert and block (or row) for a scale of these weights (host memory) that is not finite
/// or is negative; 0 is accepted: experts that were never trained have it. A static scale of rows must be positive,
/// too: rows are divided by it. Nothing for a format without scales. A layer does not look at them: its weights may be
/// on a device.
void check_scales(const LayerConfig& config, const LayerWeights& weights);

}  // namespace tessera::moe
