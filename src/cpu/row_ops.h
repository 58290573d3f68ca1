// The loops between the products: conversions, maxima, sums of rows. All of them fix the order of every sum, so that
// each vector unit gives the same bits; arrays must not overlap unless said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/core/dtype.h"

namespace tessera::cpu {

/// One record [channels, positions] to rows of channels: element (c, p) goes to out[p * position_stride + c], rounded
/// to bf16 for the second. Returns whether every element is finite after the conversion.
bool transpose_record(const float* record, int64_t channels, int64_t positions, float* out, int64_t position_stride);
bool transpose_record(const float* record, int64_t channels, int64_t positions, uint16_t* out, int64_t position_stride);

/// out[i] = values[i] rounded to nearest even. Values must not be NaN; too large ones become infinite.
void round_to_bf16(const float* values, int64_t size, uint16_t* out);

/// `values` as an operand of that type: copied, or rounded to bf16.
void store_operand(const float* values, int64_t size, DType operand, std::byte* out);

/// maxima[i] = max(maxima[i], values[i]); NaN if either is NaN.
void max_into(const float* values, int64_t size, float* maxima);

/// values[i] += bias[i], or max(values[i] + bias[i], 0); NaN stays.
void add_bias(const float* bias, int64_t size, float* values);
void add_bias_relu(const float* bias, int64_t size, float* values);

/// sum[i] += scale * (values[i] + bias[i])
void add_scaled(const float* values, const float* bias, float scale, int64_t size, float* sum);

/// out[f] = max over windows j of (taps[0][j][f] + taps[1][j+1][f] + ... + taps[width-1][j+width-1][f]), summed in that
/// order, where taps[l][p] is the row rows[p] + l * size. rows: [num_windows + width - 1].
void gather_add_max(const float* const* rows, int64_t num_windows, int64_t width, int64_t size, float* out);

/// Softmax of `logits` into `weights` (may be the same array), with the largest subtracted.
void softmax(const float* logits, int64_t size, float* weights);

}  // namespace tessera::cpu
