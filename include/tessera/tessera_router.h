/* From a router's logits to the experts of each token, in C. Include tessera/tessera.h.
 */
#ifndef TESSERA_TESSERA_ROUTER_H_
#define TESSERA_TESSERA_ROUTER_H_

#include "tessera/tessera_moe.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tessera_router_kind {
  TESSERA_SOFTMAX_TOPK = 0,
  TESSERA_TOPK_SOFTMAX = 1,
  TESSERA_SOFTMAX_TOPK_RENORMALIZE = 2,
  TESSERA_SIGMOID_GROUPED = 3,
  TESSERA_SIGMOID_RENORMALIZE = 4
} tessera_router_kind;

/* From a router's logits to the experts of each token, as tessera/moe/router.h defines. */
typedef struct tessera_router_config {
  size_t struct_bytes;
  int32_t kind;        /* tessera_router_kind, default TOPK_SOFTMAX */
  int32_t num_experts; /* E */
  int32_t top_k;       /* k */
  int32_t num_groups;  /* SIGMOID_GROUPED only, else 1 (the default), as is the next */
  int32_t topk_groups;
  float scale;          /* default 1 */
  int32_t logits_dtype; /* tessera_dtype, default F32 */
  int32_t device;       /* default TESSERA_CPU */
} tessera_router_config;

TESSERA_API void tessera_router_config_init_sized(tessera_router_config* config, size_t struct_bytes);
TESSERA_INLINE void tessera_router_config_init(tessera_router_config* config) {
  tessera_router_config_init_sized(config, sizeof(*config));
}

/* logits [T, E], bias [E] or NULL, topk_ids [T, k] int32, topk_weights [T, k] float; num_nan_rows NULL or [1], to which
 * the number of rows of NaN alone is added. All memory of `device`, what is written apart from all else; enqueued on
 * `stream` there. */
TESSERA_API tessera_status tessera_route(const tessera_router_config* config, int32_t num_tokens, const void* logits,
                                         const float* bias, int32_t* topk_ids, float* topk_weights,
                                         int32_t* num_nan_rows, void* stream);

#ifdef __cplusplus
}
#endif

#endif
