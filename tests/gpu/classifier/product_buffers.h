// One task of the implicit GEMM in guarded device memory: what its tests fill, launch and compare.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ostream>

#include "cuda/kernels/implicit_gemm/launch.h"
#include "gpu/classifier/operand_buffer.h"

namespace tessera::testing {

struct ProductShape {
  int64_t records;
  int32_t channels, positions, taps, features;

  friend std::ostream& operator<<(std::ostream& out, const ProductShape& s) {
    return out << s.records << " records, " << s.channels << " channels, " << s.positions << " positions, " << s.taps
               << " taps, " << s.features << " features";
  }
};

struct ProductBuffers {
  ProductShape shape;
  int64_t capacity;      // records that x and out have room for
  int64_t channels;      // of a row of x, with the padding
  int64_t columns;       // of a row of the weights
  OperandBuffer x;       // [capacity * positions, channels]
  OperandBuffer weight;  // [features, columns]
  OperandBuffer out;     // [capacity, features]
  GuardedBuffer bias;    // fp32 [features]

  /// `weight_margin`: elements of a weight row's stride beyond its columns.
  ProductBuffers(const ProductShape& product, Operand kind, Operand out_kind, int64_t weight_margin,
                 int64_t least_capacity = 0)
      : shape(product),
        capacity(std::max(least_capacity, product.records)),
        channels(cta::padded_stride(product.channels)),
        columns(product.taps == 1 ? channels : kernels::implicit_gemm::weight_columns(channels, product.taps)),
        x(kind, capacity * product.positions, channels, channels + 8),
        weight(kind, product.features, columns, columns + weight_margin),
        out(out_kind, capacity, product.features, cta::padded_stride(product.features) + 8),
        bias(static_cast<size_t>(product.features) * sizeof(float)) {}

  kernels::implicit_gemm::Task task(float scale, bool relu) const {
    kernels::implicit_gemm::Task task;
    task.x = x.view();
    task.weight = weight.view();
    task.channels = static_cast<int32_t>(channels);
    task.positions = shape.positions;
    task.taps = shape.taps;
    task.out_features = shape.features;
    task.scale = scale;
    task.bias = static_cast<const float*>(bias.data());
    task.relu = relu;
    task.out = out.view();
    return task;
  }
};

}  // namespace tessera::testing
