// Blocked fp32 loops that the compiler vectorises. Weights are kept as panels of kPanel columns, [in_features, kPanel]
// each, so that the inner loop reads them in order.
#include <algorithm>

#include "cpu/gemm_kernel.h"
#include "cpu/page_buffer.h"
#include "cpu/vector_clones.h"
#include "tessera/core/check.h"

namespace tessera::cpu {
namespace {

constexpr int64_t kPanel = 32;  // two vectors of AVX-512, four of AVX2
constexpr int64_t kRows = 4;    // rows that share one load of the weights; kRows * kPanel sums stay in registers
// Products summed before they are added to C: a panel's part (kDepth * kPanel * 4 bytes = 32 KiB) stays in the
// first-level cache, and short partial sums keep the rounding error of a long sum small.
constexpr int64_t kDepth = 256;

// c[kRows, columns] (+)= a[kRows, depth] x panel[depth, kPanel]; rows lie a_stride and c_stride apart.
template <int64_t kNumRows>
inline __attribute__((always_inline)) void multiply_panel(const float* a, int64_t a_stride, const float* panel,
                                                          int64_t depth, float* c, int64_t c_stride, int64_t columns,
                                                          bool add) {
  float sums[kNumRows][kPanel] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t row = 0; row < kNumRows; ++row) {
      const float factor = a[row * a_stride + k];
      for (int64_t column = 0; column < kPanel; ++column) sums[row][column] += factor * panel[k * kPanel + column];
    }
  }
  for (int64_t row = 0; row < kNumRows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const float before = add ? c[row * c_stride + column] : 0.0f;
      c[row * c_stride + column] = before + sums[row][column];
    }
  }
}

TESSERA_VECTOR_CLONES void multiply(const float* a, const float* packed, float* c, int64_t rows, int64_t in_features,
                                    int64_t out_features, bool accumulate) {
  for (int64_t k_begin = 0; k_begin < in_features; k_begin += kDepth) {
    const int64_t depth = std::min(kDepth, in_features - k_begin);
    const bool add = accumulate || k_begin > 0;
    for (int64_t out_begin = 0; out_begin < out_features; out_begin += kPanel) {
      const int64_t columns = std::min(kPanel, out_features - out_begin);
      const float* panel = packed + out_begin * in_features + k_begin * kPanel;
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows) {
        multiply_panel<kRows>(a + row * in_features + k_begin, in_features, panel, depth,
                              c + row * out_features + out_begin, out_features, columns, add);
      }
      for (; row < rows; ++row) {
        multiply_panel<1>(a + row * in_features + k_begin, in_features, panel, depth,
                          c + row * out_features + out_begin, out_features, columns, add);
      }
    }
  }
}

class PortableGemm final : public GemmKernel {
 public:
  PortableGemm(const GemmSpec& spec, const WeightView& weights)
      : spec_(spec),
        packed_(static_cast<size_t>((spec.out_features + kPanel - 1) / kPanel * kPanel * spec.in_features) *
                sizeof(float)) {
    const Buffer<float> dense = dense_weights(spec, weights);
    float* out = reinterpret_cast<float*>(packed_.data());
    for (int64_t out_begin = 0; out_begin < spec.out_features; out_begin += kPanel) {
      const int64_t columns = std::min(kPanel, spec.out_features - out_begin);
      for (int64_t in = 0; in < spec.in_features; ++in, out += kPanel) {
        std::fill(std::copy_n(dense.data() + in * spec.out_features + out_begin, columns, out), out + kPanel, 0.0f);
      }
    }
  }

  size_t scratch_bytes() const override { return 0; }
  size_t packed_bytes() const override { return packed_.size(); }
  void run(const void* a, float* c, std::byte* /*scratch*/) const override {
    multiply(static_cast<const float*>(a), reinterpret_cast<const float*>(packed_.data()), c, spec_.rows,
             spec_.in_features, spec_.out_features, spec_.accumulate);
  }

 private:
  GemmSpec spec_;
  PageBuffer packed_;  // fp32 [ceil(out_features / kPanel), in_features, kPanel], zero beyond out_features
};

// The same loops, the panels filled anew for each product: for 16 rows that doubles the time, for 256 it is a tenth.
class PortablePlainGemm final : public PlainGemmKernel {
 public:
  explicit PortablePlainGemm(const PlainGemmSpec& spec) : spec_(spec) {}

  size_t scratch_bytes() const override {
    return static_cast<size_t>((spec_.out_features + kPanel - 1) / kPanel * kPanel * spec_.in_features) * sizeof(float);
  }
  void run(int64_t height, const void* a, const void* weights, float* c, std::byte* scratch) const override {
    auto* panels = reinterpret_cast<float*>(scratch);
    fill_panels(static_cast<const float*>(weights), panels);
    multiply(static_cast<const float*>(a), panels, c, height, spec_.in_features, spec_.out_features, false);
  }

 private:
  // Line by line of a panel's part that stays in the first-level cache: its source rows are read in order.
  void fill_panels(const float* weights, float* panels) const {
    constexpr int64_t kLines = 16;
    const int64_t depth = spec_.in_features;
    for (int64_t out_begin = 0; out_begin < spec_.out_features; out_begin += kPanel, panels += kPanel * depth) {
      const int64_t columns = std::min(kPanel, spec_.out_features - out_begin);
      if (columns < kPanel) std::fill_n(panels, kPanel * depth, 0.0f);
      for (int64_t k_begin = 0; k_begin < depth; k_begin += kLines) {
        const int64_t k_end = std::min(depth, k_begin + kLines);
        for (int64_t column = 0; column < columns; ++column) {
          const float* source = weights + (out_begin + column) * depth;
          for (int64_t k = k_begin; k < k_end; ++k) panels[k * kPanel + column] = source[k];
        }
      }
    }
  }

  PlainGemmSpec spec_;
};

}  // namespace

std::unique_ptr<const PlainGemmKernel> make_portable_plain_gemm(const PlainGemmSpec& spec) {
  return std::make_unique<PortablePlainGemm>(spec);
}

std::unique_ptr<const GemmKernel> make_portable_gemm(const GemmSpec& spec, const WeightView& weights) {
  return std::make_unique<PortableGemm>(spec, weights);
}

}  // namespace tessera::cpu
