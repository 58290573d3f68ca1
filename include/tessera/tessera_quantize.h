/* Numbers to 8 bits, e4m3, with scales, as layers of weight formats TESSERA_FP8_BLOCK and _CHANNEL have them.
 * Include tessera/tessera.h. What is computed, bit for bit: tessera/core/e4m3.h.
 */
#ifndef TESSERA_TESSERA_QUANTIZE_H_
#define TESSERA_TESSERA_QUANTIZE_H_

#include "tessera/tessera_moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Refuses scales that no weight can have, not finite or negative, before a layer uses them: TESSERA_INVALID_ARGUMENT
 * names tensor, expert and block or row. 0 is accepted, but of static scales of rows. The scales are read on the host:
 * of weights on a GPU, before they go there. Of `config` sizes, gated and weight_format are read. */
TESSERA_API tessera_status tessera_moe_check_scales(const tessera_moe_config* config,
                                                    const tessera_moe_weights* weights);

/* values [rows, columns] of a tessera_dtype -> codes [rows, columns] e4m3, scales [rows, ceil(columns / 128)]: what a
 * layer of FP8_BLOCK does to x. For each row and 128 columns of it (the last may be fewer), in fp32, each step rounded
 * to nearest even: scale = max(amax, 1e-10) * (1/448), code = e4m3(value * (1/scale)), at most 448. A NaN makes its
 * scale and all codes under it NaN. Host memory. */
TESSERA_API tessera_status tessera_quantize_rows(const void* values, int32_t dtype, int64_t rows, int64_t columns,
                                                 void* codes, float* scales);

/* The same with one scale for all columns of a row, scales [rows]: what a layer of FP8_CHANNEL does to x, and what
 * makes its weights. */
TESSERA_API tessera_status tessera_quantize_whole_rows(const void* values, int32_t dtype, int64_t rows, int64_t columns,
                                                       void* codes, float* scales);

/* A weight [num_matrices, rows, columns] of a tessera_dtype -> codes of the same shape, e4m3, and a scale each 128 x
 * 128 by the same recipe: [num_matrices, ceil(rows / 128), ceil(columns / 128)], or, with `gate_and_up` rows in
 * `gate_up_order`, [num_matrices, 2, ceil(rows / 2 / 128), ceil(columns / 128)], gate's before up's. Host memory. */
TESSERA_API tessera_status tessera_quantize_blocks(const void* values, int32_t dtype, int64_t num_matrices,
                                                   int64_t rows, int64_t columns, int32_t gate_and_up,
                                                   int32_t gate_up_order, void* codes, float* scales);

typedef enum tessera_scale_type {
  TESSERA_SCALE_F32 = 0,
  TESSERA_SCALE_BF16 = 1,
  TESSERA_SCALE_E8M0 = 2 /* a byte: 2^(byte - 127), 255 is NaN */
} tessera_scale_type;

/* Block rows of a tensor of gate's and up's scales, in blocks B(n) = ceil(n / 128). */
typedef enum tessera_scale_grid {
  TESSERA_SCALES_PER_PROJECTION = 0, /* [E, 2 B(I), B(H)]: gate's, then up's; of one projection [E, B(rows), ..] */
  TESSERA_SCALES_CONCATENATED = 1,   /* [E, B(2I), B(H)]: of gate's rows and up's counted through */
  TESSERA_SCALES_INTERLEAVED = 2     /* [E, 2 B(I), B(H)]: gate's block 0, up's block 0, gate's block 1, ... */
} tessera_scale_grid;

/* Scales of a weight [num_matrices, rows, columns] as a checkpoint holds them -> as a layer reads them, exactly:
 * [num_matrices, 2, B(rows / 2 + up_offset), B(columns)] with `gate_and_up` rows, else [num_matrices, B(rows),
 * B(columns)]. Refused by expert and block: what is negative or not finite, and two scales that one block would have to
 * share. The second there is only under a CONCATENATED grid where I = rows / 2 is no multiple of 128, since up's rows
 * begin inside a block: with `up_offset` = I % 128, which then is the layer's up_scale_offset, every scale stays as it
 * is (else 0). The offsets of a layer say how far inside their first block of scales gate rows, up rows and columns of
 * down begin: also those of a shard that begins at I = 64, say. Host memory. */
TESSERA_API tessera_status tessera_convert_scales(const void* stored, int32_t scale_type, int32_t grid,
                                                  int64_t num_matrices, int64_t rows, int64_t columns,
                                                  int32_t gate_and_up, int32_t up_offset, float* scales);

/* What a tensor of scales without blocks belongs to. */
typedef enum tessera_channel_grid {
  TESSERA_SCALES_OF_ROWS = 0,    /* [E, rows], in the order of the rows */
  TESSERA_SCALES_OF_HALVES = 1,  /* [E, 2]: all gate rows, all up rows, whatever their order */
  TESSERA_SCALES_OF_MATRICES = 2 /* [E]: a weight */
} tessera_channel_grid;

/* The same for a layer of FP8_CHANNEL: [num_matrices, rows], one each row in their order. `gate_up_order` counts for
 * HALVES alone, which only `gate_and_up` rows have. Host memory. */
TESSERA_API tessera_status tessera_convert_channel_scales(const void* stored, int32_t scale_type, int32_t channel_grid,
                                                          int64_t num_matrices, int64_t rows, int32_t gate_and_up,
                                                          int32_t gate_up_order, float* scales);

#ifdef __cplusplus
}
#endif

#endif
