// Rows of the layer's type to fp32 and back. Loops without branches, the same bits as the conversions of core/dtype.h.
#pragma once

#include <cstdint>

#include "tessera/core/dtype.h"

namespace tessera::cpu {

/// out[i] = values[i], exact; f32 is copied.
void to_f32(const void* values, DType dtype, int64_t size, float* out);

/// out[i] = values[i] rounded to nearest even; too large ones become infinite, NaN stays NaN (quiet).
void from_f32(const float* values, int64_t size, DType dtype, void* out);

}  // namespace tessera::cpu
