// Transpose: out[b, c, r] = in[b, r, c] for a batch of matrices of 16-bit elements.
//
// Bound by HBM: every element is read and written once, 16 bytes at a time. Enqueued on `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tessera::kernels::transpose {

struct Args {
  const void* in;        // [num_matrices, rows, columns]
  void* out;             // [num_matrices, columns, rows], apart from `in`
  int32_t num_matrices;  // 0 launches nothing
  int32_t rows;          // a positive multiple of 8, as columns
  int32_t columns;
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::transpose
