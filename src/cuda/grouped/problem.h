// What the two products of an MoE layer work on: one struct, filled once by the host and taken by the kernels as it is.
//
//   GEMM 1   intermediate[r] = act(tokens[row_token[r]] * gate_up[e]^T + gate_up_bias[e])     [R, I]
//   GEMM 2   rows[r]         = intermediate[r] * down[e]^T + down_bias[e]                     [R, H]
//
// for every routed row r of every expert e of the plan. Row-major, 16-byte aligned device memory; sizes are multiples
// of 8 elements, of 16 where these have one byte. A kernel that runs one of the two needs what that one names; the rest
// may be null or 0.
#pragma once

#include <cstdint>

#include "cuda/grouped/plan_view.h"
#include "cuda/grouped/routing.h"
#include "cuda/grouped/tiling.h"
#include "tessera/core/activation.h"
#include "tessera/core/dtype.h"
#include "tessera/core/gate_up_order.h"
#include "tessera/core/host_device.h"

namespace tessera::grouped {

enum class Role : uint8_t { gate_up, up_only, down };  // GEMM 1 gated, GEMM 1 non-gated, GEMM 2

/// Of row scales, what 16 bytes hold; and what a tile of 128 rows reads at once, from 16 bytes on in which they begin.
inline constexpr int32_t kScaleAlignment = 4;
inline constexpr int32_t kTileScales = 128 + kScaleAlignment;

/// Which of the plan's tile prefixes a role walks.
TESSERA_HOST_DEVICE constexpr int gemm_idx(Role role) { return role == Role::down ? 1 : 0; }

struct Problem {
  PlanView plan;
  Tiling tilings[kNumGemms];  // those that the plan was built with
  int32_t hidden_size;        // H
  int32_t intermediate_size;  // I
  // Of I, columns that the weights lack, the first: they begin so far inside a block of scales. What lies there is 0.
  int32_t weight_front;        // gate_up has I - weight_front rows a half, down as many columns
  int32_t num_experts;         // E: of the plan's experts, those that tokens are routed to
  int32_t num_shared_experts;  // S: experts E.. of the plan, slices of one that is S * I wide, without bias
  int32_t max_rows;            // rows of intermediate and of rows: T * (k + S)
  DType dtype;                 // bf16 or f16: of biases and rows, and of the operands that have two bytes
  int32_t operand_bytes;       // of an element of tokens, weights and intermediate; 1: e4m3, with the scales below
  GateUpOrder gate_up_order;   // of gate_up, its bias and shared_gate_up where they are gated
  Activation activation;
  const void* tokens;          // [T, H]; of one byte: [max_rows, H], one for each routed row, in their order
  const void* gate_up;         // gated [E, 2I, H], else [E, I, H]
  const void* down;            // [E, H, I]
  const void* gate_up_bias;    // gated [E, 2I], else [E, I]; null: none
  const void* down_bias;       // [E, H]; null: none
  const void* shared_gate_up;  // gated [2 S I, H], else [S I, H]
  const void* shared_down;     // [H, S I]
  void* intermediate;          // [max_rows, I]
  void* rows;                  // [max_rows, H]
  // Scales of e4m3 operands: blocks of 128 columns of K, of weights also of 128 rows; B(n) = ceil(n / 128). With
  // weight_rows_scaled a weight's are one each row, in the order of the rows: gated [E, 2I], else [E, I]; [E, H]; of
  // the shared experts [2 S I] or [S I]; [H].
  const float* token_scales;          // [B(H), scale_stride], of rows below max_rows
  const float* gate_up_scale;         // gated [E, 2, B(I), B(H)], gate's before up's in any order; else [E, B(I), B(H)]
  const float* down_scale;            // [E, B(H), B(I)]
  const float* shared_gate_up_scale;  // gated [2, S B(I), B(H)], else [S B(I), B(H)]
  const float* shared_down_scale;     // [B(H), S B(I)]
  float* intermediate_scales;         // [B(I), scale_stride], of rows below max_rows
  const float* given_scales;          // [num_given_scales]: of the intermediate, where it is weight_rows_scaled
  int32_t num_given_scales;           // 0: made of the rows; 1; or one each expert, of the shared experts the last
  bool weight_rows_scaled;
  // Of e4m3 weights: tokens [T, H] are of dtype, the intermediate stays in `activations`, and both are quantised by
  // each CTA that reads them: of expert_gemm_rows.
  bool quantized_when_read;
  bool round_like_engines;  // of e4m3: what enters and leaves the activation is rounded to dtype
  // Of a kernel whose CTAs make less than a block of the intermediate: where it stands until it is quantised.
  float* activations;       // [max_rows, I]
  int32_t* block_arrivals;  // [max_rows, B(I)], 0 before GEMM 1
  int32_t scale_stride;  // a multiple of kScaleAlignment, at least max_rows + kTileScales: a tile reads past its rows
  Routing routing;       // of kernels that find each expert's rows themselves; `plan` needs row places only then

  /// K, the length of a role's sums, and the number of its output columns.
  TESSERA_HOST_DEVICE constexpr int32_t sum_length(Role role) const {
    return role == Role::down ? intermediate_size : hidden_size;
  }
  TESSERA_HOST_DEVICE constexpr int32_t out_columns(Role role) const {
    return role == Role::down ? hidden_size : intermediate_size;
  }
  /// Of these, where the weight's own begin.
  TESSERA_HOST_DEVICE constexpr int32_t first_of_sum(Role role) const { return role == Role::down ? weight_front : 0; }
  TESSERA_HOST_DEVICE constexpr int32_t first_column(Role role) const { return role == Role::down ? 0 : weight_front; }
  TESSERA_HOST_DEVICE constexpr const void* weight(Role role) const { return role == Role::down ? down : gate_up; }
  TESSERA_HOST_DEVICE constexpr const void* shared_weight(Role role) const {
    return role == Role::down ? shared_down : shared_gate_up;
  }
  TESSERA_HOST_DEVICE constexpr const void* bias(Role role) const {
    return role == Role::down ? down_bias : gate_up_bias;
  }
  /// The intermediate's static scale of an expert of the plan; null: made of each row.
  TESSERA_HOST_DEVICE constexpr const float* given_scale(int32_t expert) const {
    return num_given_scales == 0 ? nullptr : given_scales + (expert < num_given_scales ? expert : num_given_scales - 1);
  }
  TESSERA_HOST_DEVICE constexpr void* out(Role role) const { return role == Role::down ? rows : intermediate; }
};

}  // namespace tessera::grouped
