// How activations and weights lie in device memory for the classifier's products.
//
//   f16, bf16   one plane of 16-bit elements
//   split       two planes of fp16: hi = fp16(v), lo = fp16(v - hi); three products of planes give fp32's accuracy
//   f32         one plane of fp32; what a product or a pooling kernel may write, never what a product reads
//
// A matrix is [planes][rows][stride] elements; `plane_stride` is the distance of planes in elements. Rows are padded to
// a stride that is a multiple of 8 elements, the padding holds zeros.
#pragma once

#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera::cta {

enum class Operand : uint8_t { f16, bf16, split, f32 };

TESSERA_HOST_DEVICE constexpr int32_t num_planes(Operand kind) { return kind == Operand::split ? 2 : 1; }
TESSERA_HOST_DEVICE constexpr int64_t element_bytes(Operand kind) { return kind == Operand::f32 ? 4 : 2; }
constexpr int64_t padded_stride(int64_t columns) { return (columns + 7) / 8 * 8; }

struct OperandView {
  void* data = nullptr;  // device memory, 16-byte aligned
  Operand kind = Operand::f16;
  int64_t stride = 0;        // elements from row to row, a multiple of 8
  int64_t plane_stride = 0;  // elements from plane to plane; unused with one plane
};

}  // namespace tessera::cta
