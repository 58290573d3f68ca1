// Quantises rows of 16-bit elements to e4m3 with one fp32 scale for each row and 128 columns.
//
//   quantize_rows::launch(args, stream);
//
// The arithmetic is that of cuda/grouped/quantize_rows.cuh. Nothing is allocated. Enqueued on `stream`; returns before
// it has run. Throws Error naming the argument that is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tessera/core/dtype.h"

namespace tessera::kernels::quantize_rows {

struct Args {
  DType dtype;       // bf16 or f16
  const void* rows;  // [num_rows, columns], 16-byte aligned
  void* codes;       // [num_rows, columns], e4m3, 16-byte aligned
  float* scales;     // [num_rows, ceil(columns / 128)]
  int32_t num_rows;
  int32_t columns;  // a positive multiple of 16
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::quantize_rows
