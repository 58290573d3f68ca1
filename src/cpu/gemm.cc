#include "cpu/gemm.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "cpu/gemm_kernel.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cpu {

GemmLibrary default_gemm_library() { return onednn_available() ? GemmLibrary::onednn : GemmLibrary::portable; }

std::string gemm_library_name() { return onednn_available() ? onednn_name() : "portable loops"; }

bool gemm_supports_bf16() { return onednn_supports_bf16(); }

Buffer<float> dense_weights(const GemmSpec& spec, const WeightView& weights) {
  Buffer<float> dense(static_cast<size_t>(spec.in_features * spec.out_features));
  // Square blocks: one of the two sides is strided, and a block's lines stay in the first-level cache.
  constexpr int64_t kBlock = 32;
  for (int64_t in_begin = 0; in_begin < spec.in_features; in_begin += kBlock) {
    const int64_t in_end = std::min(spec.in_features, in_begin + kBlock);
    for (int64_t out_begin = 0; out_begin < spec.out_features; out_begin += kBlock) {
      const int64_t out_end = std::min(spec.out_features, out_begin + kBlock);
      for (int64_t in = in_begin; in < in_end; ++in) {
        float* row = dense.data() + in * spec.out_features;
        for (int64_t out = out_begin; out < out_end; ++out) {
          row[out] = weights.values[out * weights.out_stride + in * weights.in_stride];
        }
      }
    }
  }
  return dense;
}

bool gives_equal_rows(const GemmSpec& spec, const GemmKernel& kernel) {
  // One row, repeated over the tile, for as many different rows as it takes to see a thousand columns: by chance alone
  // two orders of summation agree in some of them, but not in all.
  const int64_t num_probes = std::clamp<int64_t>(1000 / spec.out_features, 1, 16);
  const size_t in_features = static_cast<size_t>(spec.in_features);
  const size_t row_bytes = in_features * dtype_size(spec.operand);
  Buffer<std::byte> a(static_cast<size_t>(spec.rows) * row_bytes);
  Buffer<float> c(static_cast<size_t>(spec.rows * spec.out_features));
  Buffer<std::byte> scratch(kernel.scratch_bytes());
  std::minstd_rand random(1);
  for (int64_t probe = 0; probe < num_probes; ++probe) {
    for (size_t i = 0; i < in_features; ++i) {
      const float value = static_cast<float>(random()) * 0x1p-30f - 1.0f;
      const uint16_t rounded = f32_to_bf16(value);
      if (spec.operand == DType::f32) std::memcpy(a.data() + i * sizeof(value), &value, sizeof(value));
      if (spec.operand == DType::bf16) std::memcpy(a.data() + i * sizeof(rounded), &rounded, sizeof(rounded));
    }
    for (int64_t row = 1; row < spec.rows; ++row) {
      std::memcpy(a.data() + static_cast<size_t>(row) * row_bytes, a.data(), row_bytes);
    }
    std::fill(c.begin(), c.end(), 0.1f);
    kernel.run(a.data(), c.data(), scratch.data());
    for (int64_t row = 1; row < spec.rows; ++row) {
      const size_t bytes = static_cast<size_t>(spec.out_features) * sizeof(float);
      if (std::memcmp(c.data() + row * spec.out_features, c.data(), bytes) != 0) return false;
    }
  }
  return true;
}

PackedGemm::PackedGemm(const GemmSpec& spec, const WeightView& weights, GemmLibrary library) : spec_(spec) {
  TESSERA_CHECK(spec.rows >= 1 && spec.out_features >= 1 && spec.in_features >= 1, spec.rows, spec.out_features,
                spec.in_features);
  TESSERA_CHECK(spec.operand != DType::f16, dtype_name(spec.operand));
  if (spec.operand == DType::bf16 && (library == GemmLibrary::portable || !gemm_supports_bf16())) {
    throw Error("precision", "bf16", "fp32 or fp64: bf16 needs oneDNN and a processor with AVX512-BF16 or AMX");
  }
  if (library == GemmLibrary::onednn) {
    kernel_ = make_onednn_gemm(spec, weights);
    if (!kernel_) throw Error("matrix products", "oneDNN", "portable loops: this build has no oneDNN");
    if (gives_equal_rows(spec, *kernel_)) return;
    // oneDNN 2.6 and 3.2 on AVX2 treat the last rows of some tiles (8, 44, 126 rows) by another kernel.
    if (spec.operand != DType::f32) {
      throw Error("precision", "bf16",
                  "fp32 or fp64: on this processor a row's bf16 products depend on its place in the tile");
    }
  }
  kernel_ = make_portable_gemm(spec, weights);
}

PackedGemm::~PackedGemm() = default;
PackedGemm::PackedGemm(PackedGemm&&) noexcept = default;
PackedGemm& PackedGemm::operator=(PackedGemm&&) noexcept = default;

size_t PackedGemm::scratch_bytes() const { return kernel_->scratch_bytes(); }
size_t PackedGemm::packed_bytes() const { return kernel_->packed_bytes(); }

void PackedGemm::run(const void* a, float* c, std::byte* scratch) const { kernel_->run(a, c, scratch); }

}  // namespace tessera::cpu
