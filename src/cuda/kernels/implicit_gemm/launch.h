// Implicit GEMM, host side: convolutions with max-pooling and plain products, several of them as tasks of one launch.
//
//   pooled    out[n, f] = act(bias[f] + scale * max_j sum_{l, c} x[n, j + l, c] * w[f, l, c])        j = 0 .. P - taps
//   plain     out[n, f] = act(bias[f] + scale * sum_c x[n, 0, c] * w[f, 0, c])                       P = taps = 1
//
// x [N, P, C] and w are operands (f16, bf16, or split: three products of their planes). Nothing is materialised: TMA
// boxes pick rows and taps. What a record's outputs are depends on that record alone, bit for bit.
//
// Weights lie in the order in which they are read: [F][C / 64, rounded up][taps][64], the last channels padded with
// zeros; a plain product's are simply [F][C].
//
//   ImplicitGemm gemm(tasks, max_records);         // tensor maps, once; takes a few bytes of device memory
//   gemm.launch(num_records, stream);              // any number of times
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>

#include "cuda/core/operand.h"

namespace tessera::kernels::implicit_gemm {

inline constexpr int32_t kMaxTasks = 64;

constexpr int64_t weight_columns(int64_t channels, int64_t taps) { return (channels + 63) / 64 * 64 * taps; }
// Where channel c of tap l lies in a feature's row of a convolution.
constexpr int64_t weight_column(int64_t channel, int64_t tap, int64_t taps) {
  return (channel / 64 * taps + tap) * 64 + channel % 64;
}

struct Task {
  cta::OperandView x;           // [max_records * positions, stride >= channels]: f16, bf16 or split
  cta::OperandView weight;      // [out_features * taps, stride >= channels], same kind; plane by plane
  int32_t channels = 0;         // C, a multiple of 8 (padding holds zeros)
  int32_t positions = 1;        // P, 1..512
  int32_t taps = 1;             // 1..P
  int32_t out_features = 0;     // F
  float scale = 1.0f;           // a power of two: undoes the scaling of split weights
  const float* bias = nullptr;  // [F] or null
  bool relu = false;
  cta::OperandView out;  // [max_records, stride >= F] any kind; `data` may point at a column of a wider matrix
};

class ImplicitGemm {
 public:
  /// All tasks have one operand kind. Throws Error for shapes that cannot be.
  ImplicitGemm(std::span<const Task> tasks, int64_t max_records);
  ~ImplicitGemm();
  ImplicitGemm(const ImplicitGemm&) = delete;

  /// Enqueued on `stream`; one launch at a time of one object. `device_num_records` (device memory, or null) replaces
  /// num_records, which is then an upper bound; single-task objects only. num_ctas 0: one a multiprocessor.
  void launch(int64_t num_records, cudaStream_t stream, const int32_t* device_num_records = nullptr,
              int32_t num_ctas = 0) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera::kernels::implicit_gemm
