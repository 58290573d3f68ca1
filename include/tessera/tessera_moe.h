/* The MoE layer in C: create a plan of it once, ask what workspace a run needs, run. Include tessera/tessera.h.
 *
 *   out[t] = sum_s topk_weights[t, s] * down[e] * act(gate[e] * x[t], up[e] * x[t])     with e = topk_ids[t, s]
 *
 * What is computed, where it is rounded, and what holds bit for bit: tessera/moe/layer_config.h.
 */
#ifndef TESSERA_TESSERA_MOE_H_
#define TESSERA_TESSERA_MOE_H_

#include "tessera/tessera.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tessera_activation {
  TESSERA_IDENTITY = 0,
  TESSERA_SILU = 1, /* gated: SwiGLU */
  TESSERA_GELU_TANH = 2,
  TESSERA_GELU_ERF = 3,
  TESSERA_RELU = 4,
  TESSERA_RELU_SQUARED = 5,  /* non-gated only */
  TESSERA_CLAMPED_SWIGLU = 6 /* gated only: (up + beta) * gate * sigmoid(alpha * gate), gate <= limit, |up| <= limit */
} tessera_activation;

typedef enum tessera_gate_up_order {
  TESSERA_GATE_FIRST = 0,  /* [E, 2, I, H]: all gate rows, then all up rows */
  TESSERA_INTERLEAVED = 1, /* [E, I, 2, H]: gate row 0, up row 0, gate row 1, ... */
  TESSERA_UP_FIRST = 2     /* [E, 2, I, H]: all up rows, then all gate rows */
} tessera_gate_up_order;

typedef enum tessera_weight_format {
  TESSERA_DENSE = 0, /* elements of the layer's dtype, no scales */
  /* e4m3 elements (no infinity, one NaN), float scales, B = C = 128; hidden and intermediate sizes multiples of 16. x
   * and the intermediate are quantised by tessera_quantize_rows's recipe */
  TESSERA_FP8_BLOCK = 1,
  /* The same elements, B = 1 and C the whole row: scales are [E, 2I] in the order of the rows, [E, H]. x has one scale
   * a token; it and the intermediate may have static ones */
  TESSERA_FP8_CHANNEL = 2
} tessera_weight_format;

/* What a layer can be, whatever its device and type. */
typedef struct tessera_moe_limit_values {
  size_t struct_bytes;    /* a library older than this header knows the first so many bytes only */
  int32_t width_multiple; /* hidden and intermediate sizes are multiples of it; FP8: of 16 */
  int32_t max_experts;    /* experts that one layer's weights hold */
  int32_t max_top_k;      /* slots a token */
  int32_t alignment;      /* in bytes: of weights, x, out, workspaces and router logits */
  int32_t max_threads;    /* num_threads of a layer and of a classifier */
} tessera_moe_limit_values;

/* Constants of this library; never NULL, never freed. */
TESSERA_API const tessera_moe_limit_values* tessera_moe_limits(void);

typedef struct tessera_moe_config {
  size_t struct_bytes;
  int32_t hidden_size;              /* H, a multiple of width_multiple */
  int32_t intermediate_size;        /* I, a multiple of width_multiple */
  int32_t num_experts;              /* E that these weights hold, 1..max_experts */
  int32_t top_k;                    /* k, 1..max_top_k */
  int32_t dtype;                    /* tessera_dtype of x, biases, out; F32 on the CPU only. Default BF16 */
  int32_t gated;                    /* default 1 */
  int32_t activation;               /* tessera_activation, default SILU */
  float alpha, beta, limit;         /* of CLAMPED_SWIGLU; default 1, 0, 0, which others keep */
  int32_t gate_up_order;            /* tessera_gate_up_order, default GATE_FIRST */
  int32_t first_expert;             /* global id of expert 0 of this shard; unused with an expert map */
  int32_t num_mapped_experts;       /* entries of expert_map; 0: no map */
  int32_t shared_intermediate_size; /* of a shared expert; 0: none. CUDA: a multiple of intermediate_size */
  int32_t device;                   /* default TESSERA_CPU */
  int32_t num_threads;              /* CPU: 0..max_threads, 0: every processor of this process; CUDA: 0 */
  int32_t weight_format;            /* tessera_weight_format, default DENSE */
  int32_t gate_scale_offset, up_scale_offset, down_scale_offset; /* 0..127, see tessera_convert_scales; CUDA: equal */
  /* FP8_CHANNEL: entries of gate_up_input_scale and of down_input_scale. 0: scales are made of the rows; 1; or one an
   * expert, E, and one more for a shared expert */
  int32_t num_gate_up_input_scales, num_down_input_scales;
  int32_t round_like_engines; /* default 0; FP8: what enters and leaves the activation is rounded to dtype, too */
} tessera_moe_config;

/* Row-major memory of the configuration's device, aligned to `alignment` bytes. Used as it lies, never copied: it must
 * outlive the layer. NULL members are absent. */
typedef struct tessera_moe_weights {
  size_t struct_bytes;
  const void* gate_up;        /* [E, 2I, H] in gate_up_order, or [E, I, H] if not gated */
  const void* down;           /* [E, H, I] */
  const void* gate_up_bias;   /* [E, 2I] in the order of the rows, or [E, I] */
  const void* down_bias;      /* [E, H] */
  const void* shared_gate_up; /* [2 I_s, H] or [I_s, H] */
  const void* shared_down;    /* [H, I_s] */
  const int32_t* expert_map;  /* [num_mapped_experts]: global id to expert of this shard, else negative */
  /* Of weight formats with scales, one a block of B rows and C columns; else NULL. */
  const void* gate_up_scale;        /* [E, 2, ceil(I/B), ceil(H/C)] gate, up, or [E, ceil(I/B), ceil(H/C)] */
  const void* down_scale;           /* [E, ceil(H/B), ceil(I/C)] */
  const void* shared_gate_up_scale; /* [2, ceil(I_s/B), ceil(H/C)] or [ceil(I_s/B), ceil(H/C)] */
  const void* shared_down_scale;    /* [ceil(H/B), ceil(I_s/C)] */
  const float* gate_up_input_scale; /* [num_gate_up_input_scales]: static scales of x; else NULL */
  const float* down_input_scale;    /* [num_down_input_scales], of the intermediate */
} tessera_moe_weights;

typedef struct tessera_moe_inputs {
  size_t struct_bytes;
  int32_t num_tokens;         /* T; 0 does nothing */
  int32_t ids_are_64_bit;     /* default 0 */
  const void* x;              /* [T, H] of dtype; with x_scale e4m3 */
  const void* topk_ids;       /* [T, k] int32 or int64; an id of no expert of this shard adds nothing */
  const void* topk_weights;   /* [T, k] of topk_weights_dtype */
  void* out;                  /* [T, H], every element is written */
  const float* shared_weight; /* [T]; NULL: 1 */
  int32_t topk_weights_dtype; /* tessera_dtype, default F32 */
  const float* x_scale;       /* FP8_BLOCK: [T, ceil(H / 128)], FP8_CHANNEL: [T], of an x that is quantised; or NULL */
} tessera_moe_inputs;

typedef struct tessera_moe tessera_moe;

TESSERA_API void tessera_moe_config_init_sized(tessera_moe_config* config, size_t struct_bytes);
TESSERA_API void tessera_moe_weights_init_sized(tessera_moe_weights* weights, size_t struct_bytes);
TESSERA_API void tessera_moe_inputs_init_sized(tessera_moe_inputs* inputs, size_t struct_bytes);
TESSERA_INLINE void tessera_moe_config_init(tessera_moe_config* config) {
  tessera_moe_config_init_sized(config, sizeof(*config));
}
TESSERA_INLINE void tessera_moe_weights_init(tessera_moe_weights* weights) {
  tessera_moe_weights_init_sized(weights, sizeof(*weights));
}
TESSERA_INLINE void tessera_moe_inputs_init(tessera_moe_inputs* inputs) {
  tessera_moe_inputs_init_sized(inputs, sizeof(*inputs));
}

TESSERA_API tessera_status tessera_moe_create(const tessera_moe_config* config, const tessera_moe_weights* weights,
                                              tessera_moe** layer);
/* NULL is allowed. On a GPU the caller sees to it that no run is still in flight. */
TESSERA_API void tessera_moe_destroy(tessera_moe* layer);

/* Exact size of the workspace for up to `max_tokens` tokens. One workspace a run in flight. */
TESSERA_API tessera_status tessera_moe_workspace_bytes(const tessera_moe* layer, int32_t max_tokens, size_t* bytes);

/* GPU: enqueues on `stream` (a cudaStream_t; NULL is the default stream) and returns; no allocation, no
 * synchronisation, capturable in a CUDA graph; any number of threads may run one layer at a time. CPU: returns when the
 * work is done; `stream` must be NULL; one run at a time. `out` and the workspace overlap neither each other nor
 * anything that is read, the weights included: TESSERA_INVALID_ARGUMENT names the two. */
TESSERA_API tessera_status tessera_moe_run(const tessera_moe* layer, const tessera_moe_inputs* inputs, void* workspace,
                                           size_t workspace_bytes, void* stream);

/* Weights as some checkpoints hold them, gate_up [E, H, 2I] (or [E, H, I]) and down [E, I, H], become the rows this
 * layer reads, [E, 2I, H] and [E, H, I]: done once at load. Sizes, dtype, gated and device are read from `config`; the
 * order of gate and up stays as it is (columns become rows). Neither output may overlap an input or the other. On a GPU
 * it is enqueued on `stream`. Either pair may be NULL on both sides. Of weight format DENSE alone. */
TESSERA_API tessera_status tessera_moe_prepare_weights(const tessera_moe_config* config, const void* gate_up,
                                                       const void* down, void* prepared_gate_up, void* prepared_down,
                                                       void* stream);

#ifdef __cplusplus
}
#endif

#include "tessera/tessera_checkpoint.h" /* IWYU pragma: export */
#include "tessera/tessera_quantize.h"   /* IWYU pragma: export */
#include "tessera/tessera_router.h"     /* IWYU pragma: export */

#endif
