// Rows of numbers to e4m3 with scales and back, by the definition in core/e4m3.h. Vector loops, the same bits on every
// processor.
#pragma once

#include <cstdint>

namespace tessera::cpu {

/// The largest of `so_far` and the magnitude_bits of the values.
uint32_t largest_magnitude(const float* values, int64_t size, uint32_t so_far = 0);

/// codes[i] = e4m3_code(values[i], inverse_scale)
void encode_e4m3(const float* values, int64_t size, float inverse_scale, uint8_t* codes);

/// out[i] = e4m3_to_f32(codes[i]) * scale, rounded to nearest.
void decode_e4m3(const uint8_t* codes, int64_t size, float scale, float* out);

/// A row, group after group: codes [size], scales [ceil(size / group)].
void quantize_row(const float* values, int64_t size, int64_t group, uint8_t* codes, float* scales);

/// What quantising a row leaves of it: values[i] = e4m3_to_f32(code) * scale. In place.
void round_row_by_e4m3(float* values, int64_t size, int64_t group);

/// The same by a scale that is given.
void round_by_e4m3(float* values, int64_t size, float scale);

}  // namespace tessera::cpu
