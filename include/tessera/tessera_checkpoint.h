/* MoE layers of a checkpoint on disk: Hugging Face folders of config.json and safetensors. Include
 * tessera/tessera.h.
 *
 *   tessera_checkpoint_open("Qwen3-30B-A3B", &checkpoint);
 *   tessera_load_options_init(&options); options.layer = 3;
 *   tessera_layer_plan_create(checkpoint, &options, &plan);            what a layer needs: configuration and sizes
 *   tessera_layer_plan_get(plan, &config, &sizes);
 *   tessera_layer_plan_read(plan, &memory, NULL, NULL);                into the caller's memory
 *   tessera_moe_create(&config, &weights, &layer);
 *
 * Which families and formats, and what is refused: tessera/checkpoint/checkpoint.h, load_layer.h.
 */
#ifndef TESSERA_TESSERA_CHECKPOINT_H_
#define TESSERA_TESSERA_CHECKPOINT_H_

#include "tessera/tessera_moe.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tessera_checkpoint tessera_checkpoint;
typedef struct tessera_layer_plan tessera_layer_plan;

/* Reads config.json, the index and every file's header, no weight. TESSERA_INVALID_ARGUMENT names file and tensor. */
TESSERA_API tessera_status tessera_checkpoint_open(const char* folder, tessera_checkpoint** checkpoint);
/* NULL is allowed; plans made of it stay usable. */
TESSERA_API void tessera_checkpoint_close(tessera_checkpoint* checkpoint);

/* What it holds and how each layer would run here: a JSON object, as `tessera inspect --json` prints. Valid until the
 * checkpoint is closed; NULL on an error. */
TESSERA_API const char* tessera_checkpoint_description(tessera_checkpoint* checkpoint);

enum { TESSERA_AS_STORED = -1 };

typedef struct tessera_load_options {
  size_t struct_bytes;
  int32_t layer; /* as the checkpoint counts; default 0 */
  int32_t shard; /* experts E * shard / num_shards and on; default 0 of 1 */
  int32_t num_shards;
  int32_t device;        /* default TESSERA_CPU */
  int32_t dtype;         /* tessera_dtype of x, out and dense weights; default TESSERA_AS_STORED */
  int32_t weight_format; /* tessera_weight_format that MXFP4 becomes; default TESSERA_AS_STORED: FP8_BLOCK if exact */
  int32_t shared_expert; /* 1, 0; default TESSERA_AS_STORED: with shard 0 */
} tessera_load_options;

/* Bytes of the arrays that a layer has; 0: it does not have it. */
typedef struct tessera_layer_sizes {
  size_t struct_bytes;
  size_t gate_up, down, gate_up_bias, down_bias, shared_gate_up, shared_down;
  size_t gate_up_scale, down_scale, shared_gate_up_scale, shared_down_scale;
  uint64_t read_bytes;                  /* from disk */
  int64_t num_blocks, num_exact_blocks; /* of MXFP4: of 128 x 128, and those that FP8_BLOCK holds to the bit */
} tessera_layer_sizes;

/* Memory of the options' device, aligned to tessera_moe_limits' alignment; NULL where the size is 0. */
typedef struct tessera_layer_memory {
  size_t struct_bytes;
  void *gate_up, *down, *gate_up_bias, *down_bias, *shared_gate_up, *shared_down;
  void *gate_up_scale, *down_scale, *shared_gate_up_scale, *shared_down_scale;
} tessera_layer_memory;

TESSERA_API void tessera_load_options_init_sized(tessera_load_options* options, size_t struct_bytes);
TESSERA_API void tessera_layer_sizes_init_sized(tessera_layer_sizes* sizes, size_t struct_bytes);
TESSERA_API void tessera_layer_memory_init_sized(tessera_layer_memory* memory, size_t struct_bytes);
TESSERA_INLINE void tessera_load_options_init(tessera_load_options* options) {
  tessera_load_options_init_sized(options, sizeof(*options));
}
TESSERA_INLINE void tessera_layer_sizes_init(tessera_layer_sizes* sizes) {
  tessera_layer_sizes_init_sized(sizes, sizeof(*sizes));
}
TESSERA_INLINE void tessera_layer_memory_init(tessera_layer_memory* memory) {
  tessera_layer_memory_init_sized(memory, sizeof(*memory));
}

/* Checks all that headers can tell of one layer; of MXFP4 it reads the scales. TESSERA_STOPPED as tessera_set_stop
 * says. */
TESSERA_API tessera_status tessera_layer_plan_create(const tessera_checkpoint* checkpoint,
                                                     const tessera_load_options* options, tessera_layer_plan** plan);
TESSERA_API void tessera_layer_plan_destroy(tessera_layer_plan* plan);

/* `config` and `sizes` as their init functions made them; either may be NULL. */
TESSERA_API tessera_status tessera_layer_plan_get(const tessera_layer_plan* plan, tessera_moe_config* config,
                                                  tessera_layer_sizes* sizes);

/* Called by the thread that reads, after at most 64 MiB, with bytes read so far and in all. */
typedef void (*tessera_progress)(void* context, uint64_t done, uint64_t total);

/* Fills the memory from disk; when it returns all is there, or, after an error, anything. TESSERA_STOPPED as above. */
TESSERA_API tessera_status tessera_layer_plan_read(const tessera_layer_plan* plan, const tessera_layer_memory* memory,
                                                   tessera_progress progress, void* context);

#ifdef __cplusplus
}
#endif

#endif
