// Quantises tokens of 16-bit elements to e4m3, with one fp32 scale for each token and 128 columns, or for all of a
// token, or by scales that are given, into the rows that they are routed to, or row by row. Tokens that are e4m3
// already are copied there, with their scales. Whatever shares a scale, each block of 128 columns of a row gets it.
//
//   quantize_rows::launch(args, stream);
//
// The arithmetic is that of cuda/grouped/quantize_rows.cuh. Nothing is allocated. Enqueued on `stream`; returns before
// it has run. Throws Error naming the argument that is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/grouped/routing.h"
#include "tessera/core/dtype.h"

namespace tessera::kernels::quantize_rows {

struct Args {
  DType dtype;         // bf16 or f16
  const void* tokens;  // [num_tokens, columns], 16-byte aligned
  const int32_t*
      token_row;  // [num_tokens, num_slots]: row of each slot, negative: none; null: one slot, row t of token t
  void* codes;    // [rows, columns], e4m3, 16-byte aligned
  float* scales;  // [ceil(columns / 128), scale_stride]: those of a block of all rows, side by side
  int32_t num_tokens;
  int32_t num_slots;
  int32_t columns;  // a positive multiple of 16
  int32_t scale_stride;
  int32_t* counters = nullptr;  // [num_counters], set to 0 for the kernels behind this one
  int64_t num_counters = 0;
  /// [num_tokens, ceil(columns / 128)], with one_scale [num_tokens]: tokens are e4m3 and these their scales; null: of
  /// dtype, and quantised.
  const float* token_scales = nullptr;
  bool one_scale = false;  ///< a token has one, over all of its columns
  /// Static scales that tokens are quantised by: [1], or of each expert, [num_given_scales], the last that of all from
  /// it on; null: made of the tokens. Of several, `routing` says whose a slot is.
  const float* given_scales = nullptr;
  int32_t num_given_scales = 0;
  grouped::Routing routing{};
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::quantize_rows
