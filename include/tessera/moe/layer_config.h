// What every back end of the MoE layer is told: sizes, weights, and the arguments of one run.
//
//   out[t] = sum_s topk_weights[t, s] * down[e] * act(gate[e] * x[t], up[e] * x[t])     where e serves topk_ids[t, s]
//          + shared_weight[t] * (the shared expert of x[t])                             where there is one
//
// e is the expert of topk_ids[t, s]. The sum is taken in the order of the slots, the shared expert last. A slot whose
// id belongs to no expert of this shard adds nothing; a token without any expert is exactly +0. Accumulation is fp32;
// the intermediate, the expert's rows and out are rounded once each to the layer's type. Weights of format fp8_block
// and fp8_channel are multiplied by tokens and an intermediate that are quantised as quantize.h does rows; the
// intermediate is not rounded otherwise, but with round_like_engines. Pointers are memory of the device that runs the
// layer.
#pragma once

#include <cstdint>

#include "tessera/core/activation.h"
#include "tessera/core/dtype.h"
#include "tessera/core/gate_up_order.h"
#include "tessera/moe/weight_format.h"

namespace tessera::moe {

using tessera::GateUpOrder;

/// How far inside their first block of scales the routed experts' weights begin, 0 for the beginning: a scale belongs
/// to rows (or columns) i of equal (offset + i) / 128. So weights of a shard that begins inside a block, and up rows
/// under a grid that counts through gate and up, keep the scales that they have. The intermediate is quantised by the
/// blocks of down.
struct ScaleOffsets {
  int32_t gate = 0;  ///< of row 0 of gate; not gated: of gate_up
  int32_t up = 0;    ///< of row 0 of up; not gated: 0
  int32_t down = 0;  ///< of column 0 of down

  friend bool operator==(const ScaleOffsets&, const ScaleOffsets&) = default;
};

struct LayerConfig {
  int32_t hidden_size = 0;        ///< H, a multiple of kWidthMultiple (limits.h) or more, by the weight_format
  int32_t intermediate_size = 0;  ///< I, a multiple of the same
  int32_t num_experts = 0;        ///< E that these weights hold, 1..kMaxExperts
  int32_t top_k = 0;              ///< k, 1..kMaxTopK
  DType dtype = DType::bf16;      ///< of tokens, biases, intermediate, rows, out; CUDA: bf16 or f16, CPU: also f32
  bool gated = true;
  Activation activation{};
  int32_t first_expert = 0;              ///< global id of expert 0 of this shard; unused with an expert map
  int32_t num_mapped_experts = 0;        ///< entries of LayerWeights::expert_map; 0: no map
  int32_t shared_intermediate_size = 0;  ///< I_s of the shared expert, a multiple of the same; 0: none
  GateUpOrder gate_up_order = GateUpOrder::gate_first;
  WeightFormat weight_format = WeightFormat::dense;  ///< of the four weights
  /// All below the block's size. CUDA: equal multiples of 16, up's too where gated, and then no shared expert.
  ScaleOffsets scale_offsets{};
  /// Of fp8_channel, how many static scales LayerWeights has for x and for the intermediate: 0, then they are made of
  /// the rows; 1; or one for each expert, E, and one more for a shared expert. A row is quantised by its expert's.
  int32_t num_gate_up_input_scales = 0;
  int32_t num_down_input_scales = 0;
  /// Of formats that quantise rows: also round to dtype what goes into the activation and what comes out of it, as
  /// engines do that keep both in memory. Differs from what it otherwise is by per cents of a code.
  bool round_like_engines = false;
};

/// Row-major, aligned to kAlignment (limits.h); must outlive the layer. Weights and scales are of the weight_format: a
/// scale belongs to a block of B rows and C columns of a weight, both of which the format gives; null for a format
/// without scales. With scale_offsets there are as many blocks as they ask for: ceil((max(gate, up) + I) / B) rows of
/// gate_up's, ceil((down + I) / C) columns of down's. Of fp8_channel, B is 1 and C the whole row: [E, 2I] in the order
/// of the rows, as gate_up_bias; [E, H].
struct LayerWeights {
  const void* gate_up = nullptr;         ///< gated [E, 2I, H], see GateUpOrder; non-gated [E, I, H]
  const void* down = nullptr;            ///< [E, H, I]
  const void* gate_up_bias = nullptr;    ///< [E, 2I] in the order of the rows, or [E, I]; null: none
  const void* down_bias = nullptr;       ///< [E, H]; null: none
  const void* shared_gate_up = nullptr;  ///< [2 I_s, H] or [I_s, H], as gate_up
  const void* shared_down = nullptr;     ///< [H, I_s]
  const int32_t* expert_map = nullptr;   ///< [num_mapped_experts]: global id to expert of this shard, else negative
  const void* gate_up_scale = nullptr;   ///< [E, 2, ceil(I/B), ceil(H/C)] gate, up; non-gated [E, ceil(I/B), ceil(H/C)]
  const void* down_scale = nullptr;      ///< [E, ceil(H/B), ceil(I/C)]
  const void* shared_gate_up_scale = nullptr;  ///< [2, ceil(I_s/B), ceil(H/C)] or [ceil(I_s/B), ceil(H/C)]
  const void* shared_down_scale = nullptr;     ///< [ceil(H/B), ceil(I_s/C)]
  const float* gate_up_input_scale = nullptr;  ///< [num_gate_up_input_scales] of x; null: none
  const float* down_input_scale = nullptr;     ///< [num_down_input_scales] of the intermediate
};

struct LayerInputs {
  const void* x = nullptr;         ///< [T, H] of the layer's dtype, or with x_scale of e4m3
  const void* topk_ids = nullptr;  ///< [T, k] int32 or int64
  bool ids_are_64_bit = false;
  const void* topk_weights = nullptr;    ///< [T, k] of topk_weights_dtype
  void* out = nullptr;                   ///< [T, H]
  int32_t num_tokens = 0;                ///< T; 0 does nothing
  const float* shared_weight = nullptr;  ///< [T], null: 1
  DType topk_weights_dtype = DType::f32;
  /// [T, ceil(H / 128)], of fp8_channel [T]: x is quantised already, and is multiplied as it is. Of formats that
  /// quantise tokens; null: the layer does.
  const float* x_scale = nullptr;
};

}  // namespace tessera::moe
