// Combine: out[t, :] = sum over slots s of topk_weights[t, s] * rows[token_row[t, s], :], in fp32, in slot order,
// rounded once.
//
// Slots whose token_row is -1 add nothing; a token without rows is exactly +0. Every element of out is written.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/marks.h"
#include "tessera/core/dtype.h"

namespace tessera::kernels::combine {

struct Args {
  DType dtype;                           // bf16 or f16: of rows and out
  const void* rows;                      // [R, H]
  const int32_t* token_row;              // [T, k + S]
  const void* topk_weights;              // [T, k] of topk_weights_dtype
  void* out;                             // [T, H]
  int32_t num_tokens;                    // T; 0 launches nothing
  int32_t num_slots;                     // k + S
  int32_t hidden_size;                   // H, a multiple of 8
  int32_t num_shared_experts = 0;        // S: the last slots of a token
  const float* shared_weight = nullptr;  // [T], of all shared experts; null: 1
  DType topk_weights_dtype = DType::f32;
  cuda::KernelMarks* marks = nullptr;  // [1] or null: none
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::combine
