// Convolutions as products in frequency space: the real DFT of S positions in front of them, the inverse with the
// pooling behind them.
//
//   forward        X_b[n, :] = sum_s x[n, s, :] e^(-2 pi i b s / S)          bins b = 0 .. S / 2
//   (products)     Y_b = X_b conj(W_b), where W_b holds the factor 1 / S     by the implicit GEMM, one task a bin
//   inverse_pool   out[n, f] = relu(bias[f] + max_j y[n, j, f]),   j = 0 .. S - K_f
//                  y[n, j, f] = sum over bins of m_b (Re Y_b cos(2 pi b j / S) - Im Y_b sin(2 pi b j / S)), m_b = 1 for
//                  the bins 0 and S / 2, else 2
//
// Bins 0 and, for an even S, S / 2 are real: their rows hold C (or F) values. The others hold real parts, then
// imaginary parts, `imaginary_offset` apart. Window positions beyond S - K wrap around and are not looked at. Sums are
// fp32, in the order of s and b, positions (bins) that share their factors taken together first: a result depends on
// its own column alone, bit for bit. The factors come from `twiddle`, made by twiddle_table on the host in double.
//
// Enqueued on `stream`; nothing is allocated; capturable. Errors name the argument.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/core/operand.h"

namespace tessera::kernels::spectrum {

inline constexpr int32_t kMaxPositions = 32;
inline constexpr int32_t kMaxBins = kMaxPositions / 2 + 1;
inline constexpr int32_t kMaxWidths = 16;

constexpr int32_t num_bins(int32_t positions) { return positions / 2 + 1; }
constexpr bool is_real_bin(int32_t bin, int32_t positions) { return bin == 0 || 2 * bin == positions; }

// [S] cosines, then [S] sines, of 2 pi i / S, S in 1..32; quarter turns exact, symmetric to the bit.
std::vector<float> twiddle_table(int32_t positions);

struct ForwardArgs {
  cta::OperandView x;  // [N * S, stride >= C], f16, bf16 or split
  // [N, stride_b] each, same kind; stride_b >= C, or >= imaginary_offset + C; columns that hold no value are written as
  // zeros
  cta::OperandView bins[kMaxBins];
  int32_t imaginary_offset;  // a multiple of 8, >= C
  const float* twiddle;      // [2 * S] device memory
  int64_t num_records;       // N; 0 launches nothing
  int32_t channels;          // C: a multiple of 8 (padded)
  int32_t positions;         // S, 2..32
  // [N] or null: set to 0 if a value of the record's bins is NaN, infinite or beyond the kind, else left as it is. A
  // sum over S positions can be so where every position is within the kind.
  uint8_t* finite = nullptr;
};
void forward(const ForwardArgs& args, cudaStream_t stream);

struct InversePoolArgs {
  cta::OperandView bins[kMaxBins];  // [N, stride_b] each: f16, bf16 or f32; columns that hold no value are not read
  int32_t imaginary_offset;         // a multiple of 8, >= F
  const float* twiddle;             // [2 * S] device memory
  const float* bias;                // [F]
  cta::OperandView out;             // [N, stride >= F], any kind; columns from F to stride are written as zeros
  int64_t num_records;              // N; 0 launches nothing
  int32_t num_features;             // F = filters * num_widths; feature f belongs to width f / filters
  int32_t filters;
  int32_t num_widths;
  int32_t widths[kMaxWidths];  // K, each in [1, S]
  int32_t positions;           // S, 2..32
};
void inverse_pool(const InversePoolArgs& args, cudaStream_t stream);

}  // namespace tessera::kernels::spectrum
