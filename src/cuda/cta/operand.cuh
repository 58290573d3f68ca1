// Writing and reading single values of an OperandView on the device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/core/operand.h"

namespace tessera::cta {

// Rounds to nearest even. `index` = row * stride + column.
__device__ inline void store_operand(const OperandView& view, int64_t index, float value) {
  switch (view.kind) {
    case Operand::f16: static_cast<__half*>(view.data)[index] = __float2half_rn(value); return;
    case Operand::bf16: static_cast<__nv_bfloat16*>(view.data)[index] = __float2bfloat16_rn(value); return;
    case Operand::f32: static_cast<float*>(view.data)[index] = value; return;
    case Operand::split: {
      const __half high = __float2half_rn(value);
      static_cast<__half*>(view.data)[index] = high;
      static_cast<__half*>(view.data)[view.plane_stride + index] = __float2half_rn(value - __half2float(high));
      return;
    }
  }
}

// The value that the products see: hi + lo of a split.
__device__ inline float load_operand(const OperandView& view, int64_t index) {
  switch (view.kind) {
    case Operand::f16: return __half2float(static_cast<const __half*>(view.data)[index]);
    case Operand::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(view.data)[index]);
    case Operand::f32: return static_cast<const float*>(view.data)[index];
    default: break;
  }
  const __half* high = static_cast<const __half*>(view.data) + index;
  return __half2float(high[0]) + __half2float(high[view.plane_stride]);
}

}  // namespace tessera::cta
