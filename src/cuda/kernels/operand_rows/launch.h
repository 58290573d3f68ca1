// Brings inputs into the layout of the products, [record][position][channel] of an operand kind.
//
//   convert_embeddings   fp32 [N, C, S], channel-major as users hold them -> rows [N * S, C], rounded, plus a verdict a
//                        record
//   gather_tokens        token ids [N, S] -> the rows of an embedding table that is already in operand form
//
// Enqueued on `stream`; nothing is allocated; capturable. N = 0 launches nothing. Errors name the argument. Both copy
// at the rate of HBM: see README.md.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/operand.h"

namespace tessera::kernels::operand_rows {

inline constexpr int32_t kMaxPositions = 512;

struct ConvertArgs {
  const float* embeddings;  // [N, C, S] device memory, 16-byte aligned
  cta::OperandView rows;    // [N * S, stride >= C]; columns from C to stride are written as zeros
  // [N]: 1, or 0 if a value is NaN, infinite or beyond the kind: |x| > 65504 for f16 and split; for bf16 what rounds to
  // infinity
  uint8_t* finite;
  int64_t num_records;  // N
  int32_t channels;     // C
  int32_t positions;    // S, 1..512
};
void convert_embeddings(const ConvertArgs& args, cudaStream_t stream);

struct GatherArgs {
  const int32_t* ids;      // [num_rows], each in [0, V)
  cta::OperandView table;  // [V, stride]
  cta::OperandView rows;   // [num_rows, stride], same kind and stride
  int64_t num_rows;
};
void gather_tokens(const GatherArgs& args, cudaStream_t stream);

}  // namespace tessera::kernels::operand_rows
