// The two transforms around the products. Both read every value once and are bound by HBM.
//
// A thread takes a few neighbouring columns (channels, features) of one record, all positions or bins of them in its
// registers. Positions s and S - s share their factors up to the sign of the sine, so their sum and difference are
// formed first, which halves the multiplications:
//
//   forward        a_s = x_s + x_(S-s),  d_s = x_s - x_(S-s)         0 < s < S / 2
//                  Re X_b = x_0 + sum_s a_s cos(2 pi b s / S) (+ x_(S/2) cos(pi b))
//                  Im X_b =     - sum_s d_s sin(2 pi b s / S)
//   inverse_pool   even_j = Y_0 + sum_b 2 Re Y_b cos(2 pi b j / S) (+ Y_(S/2) cos(pi j))
//                  odd_j  =     - sum_b 2 Im Y_b sin(2 pi b j / S)
//                  y_j = even_j + odd_j,  y_(S-j) = even_j - odd_j   each j up to S / 2 gives two positions
//
// kPositions 16: everything unrolled, factors are immediates, those that are 0 cost nothing. kPositions 0: any S up to
// 32; values are in registers all the same (loops of fixed length that are left early), factors in shared memory.
#pragma once

#include <cstdint>

#include "cuda/cta/operand.cuh"
#include "cuda/cta/operand_chunk.cuh"
#include "cuda/kernels/spectrum/launch.h"
#include "cuda/kernels/spectrum/policy.h"
#include "cuda/kernels/spectrum/twiddle.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/warp.cuh"

namespace tessera::kernels::spectrum {

using cta::Operand;

inline constexpr Policy kPolicy = default_policy();

// What the number of positions decides; 0: known at run time.
template <int kPositions>
struct Shape {
  static_assert(kPositions == 0 || kPositions == kUnrolledPositions);
  static constexpr int kColumns = kPositions > 0 ? kPolicy.unrolled_columns : kPolicy.any_length_columns;
  static constexpr int kHalf = (kPositions > 0 ? kPositions : kMaxPositions) / 2;  // largest s, b or j of a pair
  static constexpr int kUnrolledOuter = kPositions > 0 ? kHalf + 1 : 1;            // how far to unroll the outer loop
};

// cos and sin of 2 pi k / S for 0 <= k < S.
template <int kPositions>
class Factors {
 public:
  // Of a CTA, before any thread leaves it. `table` is the [2 * S] of twiddle_table.
  __device__ Factors(const float* table, int32_t positions, float* shared) : shared_(shared), positions_(positions) {
    if constexpr (kPositions == 0) {
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < 2 * positions; i += kPolicy.threads) shared[i] = table[i];
      __syncthreads();  // the table is in shared memory
    }
  }
  __device__ float cosine(int32_t k) const {
    if constexpr (kPositions > 0) {
      return cosine_of_16(k);
    } else {
      return shared_[k];
    }
  }
  __device__ float sine(int32_t k) const {
    if constexpr (kPositions > 0) {
      return sine_of_16(k);
    } else {
      return shared_[positions_ + k];
    }
  }

 private:
  const float* shared_;
  int32_t positions_;
};

// sum += factor * value, one rounding. A factor of 0 that is known to the compiler costs nothing.
template <int kPositions, int kColumns>
__device__ inline void add_scaled(float (&sum)[kColumns], float factor, const float (&value)[kColumns]) {
  if (kPositions > 0 && factor == 0.0f) return;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) sum[i] = __fmaf_rn(factor, value[i], sum[i]);
}

struct ForwardParams {
  cta::OperandView x;               // [N * S, stride]
  cta::OperandView bins[kMaxBins];  // [N, stride_b] each
  const float* twiddle;             // [2 * S]
  uint8_t* finite;                  // [N] or null
  int64_t num_threads;              // N * record_threads that have work
  int32_t record_threads;
  int32_t imaginary_offset;
  int32_t channels;   // C
  int32_t positions;  // S
};

// Positions of one thread's columns as sums and differences: sum[0] = x_0, sum[S / 2] = x_(S/2) if S is even.
template <int kPositions>
struct Folded {
  using S = Shape<kPositions>;
  float sum[S::kHalf + 1][S::kColumns];
  float difference[S::kHalf][S::kColumns];  // [0] is not used
};

// All loads go out before the first value is looked at.
template <Operand kKind, int kPositions>
__device__ inline void load_folded(const ForwardParams& params, int64_t record, int32_t column,
                                   Folded<kPositions>& folded) {
  using Shape = Shape<kPositions>;
  using Chunk = cta::OperandChunk<kKind, Shape::kColumns>;
  const int32_t positions = kPositions > 0 ? kPositions : params.positions;
  const int64_t first = record * positions * params.x.stride + column;
  Chunk near[Shape::kHalf + 1], far[Shape::kHalf + 1];
#pragma unroll
  for (int s = 0; s <= Shape::kHalf; ++s) {
    if (2 * s > positions) break;
    near[s] = cta::load_chunk_once<kKind, Shape::kColumns>(params.x, first + s * params.x.stride);
    if (s > 0 && 2 * s < positions)
      far[s] = cta::load_chunk_once<kKind, Shape::kColumns>(params.x, first + (positions - s) * params.x.stride);
  }
#pragma unroll
  for (int s = 0; s <= Shape::kHalf; ++s) {
    if (2 * s > positions) break;
    cta::unpack(near[s], folded.sum[s]);
    if (s == 0 || 2 * s >= positions) continue;
    float mirrored[Shape::kColumns];
    cta::unpack(far[s], mirrored);
#pragma unroll
    for (int i = 0; i < Shape::kColumns; ++i) {
      if (s < Shape::kHalf) folded.difference[s][i] = __fsub_rn(folded.sum[s][i], mirrored[i]);
      folded.sum[s][i] = __fadd_rn(folded.sum[s][i], mirrored[i]);
    }
  }
}

// Stores columns that exist: a bin's row has room for the real part up to `end`.
template <Operand kKind, int kColumns>
__device__ inline void store_columns(const cta::OperandView& view, int64_t record, int64_t column, int64_t end,
                                     const float (&values)[kColumns], uint32_t& largest) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) largest = max(largest, cta::magnitude_bits(values[i]));
  if (column < end) cta::store_chunk(view, record * view.stride + column, cta::pack_chunk<kKind>(values));
}

template <Operand kKind, int kPositions>
__global__ void __launch_bounds__(kPolicy.threads) forward_kernel(const __grid_constant__ ForwardParams params) {
  using Shape = Shape<kPositions>;
  __shared__ float shared_factors[kPositions > 0 ? 1 : 2 * kMaxPositions];
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int32_t positions = kPositions > 0 ? kPositions : params.positions;
  const Factors<kPositions> factors(params.twiddle, positions, shared_factors);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPolicy.threads + threadIdx.x;
  if (index >= params.num_threads) return;
  const int64_t record = index / params.record_threads;
  const int32_t column = static_cast<int32_t>(index - record * params.record_threads) * Shape::kColumns;
  Folded<kPositions> folded{};
  if (column < params.channels) load_folded<kKind, kPositions>(params, record, column, folded);

  uint32_t largest = 0;
#pragma unroll(Shape::kUnrolledOuter)
  for (int32_t bin = 0; bin < num_bins(positions); ++bin) {
    float real[Shape::kColumns], imaginary[Shape::kColumns] = {};
#pragma unroll
    for (int i = 0; i < Shape::kColumns; ++i) real[i] = folded.sum[0][i];
    int32_t angle = 0;  // bin * s modulo S
#pragma unroll
    for (int s = 1; s <= Shape::kHalf; ++s) {
      if (2 * s > positions) break;
      angle += bin;
      if (angle >= positions) angle -= positions;
      add_scaled<kPositions>(real, factors.cosine(angle), folded.sum[s]);
      if (s < Shape::kHalf && 2 * s < positions)
        add_scaled<kPositions>(imaginary, -factors.sine(angle), folded.difference[s]);
    }
    const cta::OperandView& view = params.bins[bin];
    if (is_real_bin(bin, positions)) {
      store_columns<kKind>(view, record, column, view.stride, real, largest);
    } else {
      store_columns<kKind>(view, record, column, params.imaginary_offset, real, largest);
      store_columns<kKind>(view, record, int64_t{params.imaginary_offset} + column, view.stride, imaginary, largest);
    }
  }
  // Several threads may write this: all the same byte.
  if (params.finite != nullptr && largest > cta::largest_magnitude_bits(kKind)) params.finite[record] = 0;
}

struct InverseParams {
  cta::OperandView bins[kMaxBins];  // [N, stride_b] each
  cta::OperandView out;             // [N, stride]
  const float* twiddle;             // [2 * S]
  const float* bias;                // [F]
  int64_t num_threads;              // N * record_threads that have work
  int32_t record_threads;
  int32_t imaginary_offset;
  int32_t num_features;           // F
  int32_t filters;                // features of a width
  int32_t positions;              // S
  int32_t last_pool[kMaxWidths];  // S - K: the last position that a width looks at
};

// Bins of one thread's features, those that stand for two conjugate bins doubled (exact).
template <int kPositions>
struct Bins {
  using S = Shape<kPositions>;
  float real[S::kHalf + 1][S::kColumns];
  float imaginary[S::kHalf][S::kColumns];  // [0] is not used
};

template <Operand kKind, int kColumns>
__device__ inline void unpack_doubled(const cta::OperandChunk<kKind, kColumns>& chunk, float (&values)[kColumns]) {
  cta::unpack(chunk, values);
#pragma unroll
  for (int i = 0; i < kColumns; ++i) values[i] = __fadd_rn(values[i], values[i]);
}

// All loads go out before the first value is looked at.
template <Operand kKind, int kPositions>
__device__ inline void load_bins(const InverseParams& params, int64_t record, int32_t feature, Bins<kPositions>& bins) {
  using Shape = Shape<kPositions>;
  using Chunk = cta::OperandChunk<kKind, Shape::kColumns>;
  const int32_t positions = kPositions > 0 ? kPositions : params.positions;
  Chunk real[Shape::kHalf + 1], imaginary[Shape::kHalf + 1];
#pragma unroll
  for (int b = 0; b <= Shape::kHalf; ++b) {
    if (2 * b > positions) break;
    const int64_t place = record * params.bins[b].stride + feature;
    real[b] = cta::load_chunk_once<kKind, Shape::kColumns>(params.bins[b], place);
    if (!is_real_bin(b, positions))
      imaginary[b] = cta::load_chunk_once<kKind, Shape::kColumns>(params.bins[b], place + params.imaginary_offset);
  }
#pragma unroll
  for (int b = 0; b <= Shape::kHalf; ++b) {
    if (2 * b > positions) break;
    if (is_real_bin(b, positions)) {
      cta::unpack(real[b], bins.real[b]);
    } else {
      unpack_doubled(real[b], bins.real[b]);
      if (b < Shape::kHalf) unpack_doubled(imaginary[b], bins.imaginary[b]);
    }
  }
}

// The same where the thread's last columns are beyond F: what lies there may never have been written.
template <Operand kKind, int kPositions>
__device__ inline void load_last_bins(const InverseParams& params, int64_t record, int32_t feature,
                                      Bins<kPositions>& bins) {
  using Shape = Shape<kPositions>;
  const int32_t positions = kPositions > 0 ? kPositions : params.positions;
#pragma unroll
  for (int b = 0; b <= Shape::kHalf; ++b) {
    if (2 * b > positions) break;
    cta::OperandView view = params.bins[b];
    view.kind = kKind;  // it is; the compiler knows it now
    const bool is_real = is_real_bin(b, positions);
    const int64_t place = record * view.stride + feature;
#pragma unroll
    for (int i = 0; i < Shape::kColumns; ++i) {
      if (feature + i >= params.num_features) break;
      const float real = cta::load_operand(view, place + i);
      bins.real[b][i] = is_real ? real : __fadd_rn(real, real);
      if (is_real || b == Shape::kHalf) continue;
      const float imaginary = cta::load_operand(view, place + params.imaginary_offset + i);
      bins.imaginary[b][i] = __fadd_rn(imaginary, imaginary);
    }
  }
}

// best = max_j y_j over the positions j <= last; not a number if one of them is none.
template <int kPositions>
__device__ inline void pool(const Bins<kPositions>& bins, const Factors<kPositions>& factors, int32_t positions,
                            const int32_t (&last)[Shape<kPositions>::kColumns],
                            float (&best)[Shape<kPositions>::kColumns]) {
  using Shape = Shape<kPositions>;
#pragma unroll(Shape::kUnrolledOuter)
  for (int32_t j = 0; 2 * j <= positions; ++j) {
    float even[Shape::kColumns], odd[Shape::kColumns] = {};
#pragma unroll
    for (int i = 0; i < Shape::kColumns; ++i) even[i] = bins.real[0][i];
    int32_t angle = 0;  // b * j modulo S
#pragma unroll
    for (int b = 1; b <= Shape::kHalf; ++b) {
      if (2 * b > positions) break;
      angle += j;
      if (angle >= positions) angle -= positions;
      add_scaled<kPositions>(even, factors.cosine(angle), bins.real[b]);
      if (b < Shape::kHalf && 2 * b < positions) add_scaled<kPositions>(odd, -factors.sine(angle), bins.imaginary[b]);
    }
#pragma unroll
    for (int i = 0; i < Shape::kColumns; ++i) {
      const float y = __fadd_rn(even[i], odd[i]);
      if (j == 0) best[i] = y;  // K <= S: every width looks at position 0
      if (j <= last[i]) best[i] = ptx::max_or_nan(best[i], y);
      if (j > 0 && positions - j <= last[i]) best[i] = ptx::max_or_nan(best[i], __fsub_rn(even[i], odd[i]));
    }
  }
}

template <Operand kKind, int kPositions>
__global__ void __launch_bounds__(kPolicy.threads) inverse_pool_kernel(const __grid_constant__ InverseParams params) {
  using Shape = Shape<kPositions>;
  __shared__ float shared_factors[kPositions > 0 ? 1 : 2 * kMaxPositions];
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int32_t positions = kPositions > 0 ? kPositions : params.positions;
  const Factors<kPositions> factors(params.twiddle, positions, shared_factors);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPolicy.threads + threadIdx.x;
  if (index >= params.num_threads) return;
  const int64_t record = index / params.record_threads;
  const int32_t feature = static_cast<int32_t>(index - record * params.record_threads) * Shape::kColumns;

  Bins<kPositions> bins{};
  if (feature + Shape::kColumns <= params.num_features) {
    load_bins<kKind, kPositions>(params, record, feature, bins);
  } else {
    load_last_bins<kKind, kPositions>(params, record, feature, bins);
  }
  int32_t last[Shape::kColumns];
  int32_t width = min(feature, params.num_features - 1) / params.filters;
  int32_t next_width = (width + 1) * params.filters;  // its first feature
#pragma unroll
  for (int i = 0; i < Shape::kColumns; ++i) {
    if (feature + i == next_width && next_width < params.num_features) {
      ++width;
      next_width += params.filters;
    }
    last[i] = params.last_pool[width];
  }
  float best[Shape::kColumns] = {};
  pool<kPositions>(bins, factors, positions, last, best);
#pragma unroll
  for (int i = 0; i < Shape::kColumns; ++i) {
    const bool exists = feature + i < params.num_features;
    best[i] = exists ? ptx::max_or_nan(__fadd_rn(best[i], params.bias[feature + i]), 0.0f) : 0.0f;
  }
  cta::store_operands(params.out, record * params.out.stride + feature, best);
}

}  // namespace tessera::kernels::spectrum
