// Convolutions of known tokens as sums of table rows:
//
//   out[n, w * F + f] = relu(bias[w * F + f] + max_j sum_l table[row[n, j + l]][first_tap_w + l][f])
//
// where table[r][tap] was made by one product of an embedding with every tap of every filter. A launch holds a task a
// width (their tiles cost differently); sums are fp32 in the order of l, so that a sentence's bits depend on its rows
// alone. Bound by the reads of the table: sum over widths of (S - K + 1) * K rows of F elements a sentence.
//
// The columns of `out` up to the next multiple of 8 become zeros; what lies beyond them is left alone. The maximum and
// the ReLU hide NaN: a NaN in the table comes out as 0 or as another window's sum.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/operand.h"

namespace tessera::kernels::gather_pool {

inline constexpr int32_t kMaxWidths = 16;

struct Args {
  const int32_t* rows;     // [N, S], each in [0, rows of the table)
  cta::OperandView table;  // [rows * num_taps, stride >= F]: f16, bf16 or f32; taps of all widths, width after width
  const float* bias;       // [num_widths * F]
  cta::OperandView out;    // [N, stride >= num_widths * F], any kind
  int64_t num_records;     // N; 0 launches nothing
  int32_t positions;       // S, 1..512
  int32_t filters;         // F
  int32_t num_widths;
  int32_t widths[kMaxWidths];  // K, each in [1, S]
};

// Enqueued on `stream`; nothing is allocated; capturable. Throws Error naming the argument that is wrong.
void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::gather_pool
