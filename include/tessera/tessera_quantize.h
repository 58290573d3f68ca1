/* Numbers to 8 bits, e4m3, with scales, as layers of weight format TESSERA_FP8_BLOCK have them. Include
 * tessera/tessera.h. What is computed, bit for bit: tessera/core/e4m3.h.
 */
#ifndef TESSERA_TESSERA_QUANTIZE_H_
#define TESSERA_TESSERA_QUANTIZE_H_

#include "tessera/tessera_moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Refuses scales that no weight can have, not finite or negative, before a layer uses them: TESSERA_INVALID_ARGUMENT
 * names tensor, expert and block. 0 is accepted. The scales are read on the host: of weights on a GPU, before they go
 * there. Of `config` sizes, gated and weight_format are read. */
TESSERA_API tessera_status tessera_moe_check_scales(const tessera_moe_config* config,
                                                    const tessera_moe_weights* weights);

/* values [rows, columns] of a tessera_dtype -> codes [rows, columns] e4m3, scales [rows, ceil(columns / 128)]: what a
 * layer of FP8_BLOCK does to x. For each row and 128 columns of it (the last may be fewer), in fp32, each step rounded
 * to nearest even: scale = max(amax, 1e-10) * (1/448), code = e4m3(value * (1/scale)), at most 448. A NaN makes its
 * scale and all codes under it NaN. Host memory. */
TESSERA_API tessera_status tessera_quantize_rows(const void* values, int32_t dtype, int64_t rows, int64_t columns,
                                                 void* codes, float* scales);

/* A weight [num_matrices, rows, columns] of a tessera_dtype -> codes of the same shape, e4m3, and a scale each 128 x
 * 128 by the same recipe: [num_matrices, ceil(rows / 128), ceil(columns / 128)], or, with `gate_and_up` rows in
 * `gate_up_order`, [num_matrices, 2, ceil(rows / 2 / 128), ceil(columns / 128)], gate's before up's. Host memory. */
TESSERA_API tessera_status tessera_quantize_blocks(const void* values, int32_t dtype, int64_t num_matrices,
                                                   int64_t rows, int64_t columns, int32_t gate_and_up,
                                                   int32_t gate_up_order, void* codes, float* scales);

#ifdef __cplusplus
}
#endif

#endif
