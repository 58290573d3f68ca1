#include "cpu/gemm.h"

#include <algorithm>

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

PackedGemm::PackedGemm(const GemmSpec& spec, const WeightView& weights, GemmLibrary library) : spec_(spec) {
  TESSERA_CHECK(spec.rows >= 1 && spec.out_features >= 1 && spec.in_features >= 1, spec.rows, spec.out_features,
                spec.in_features);
  TESSERA_CHECK(spec.operand != DType::f16, dtype_name(spec.operand));
  if (spec.operand == DType::bf16 && (library == GemmLibrary::portable || !gemm_supports_bf16())) {
    throw Error("precision", "bf16", "fp32: bf16 needs oneDNN and a processor with AVX512-BF16 or AMX");
  }
  kernel_ = library == GemmLibrary::onednn ? make_onednn_gemm(spec, weights) : make_portable_gemm(spec, weights);
  if (!kernel_) throw Error("matrix products", "oneDNN", "portable loops: this build has no oneDNN");
}

PackedGemm::~PackedGemm() = default;
PackedGemm::PackedGemm(PackedGemm&&) noexcept = default;
PackedGemm& PackedGemm::operator=(PackedGemm&&) noexcept = default;

size_t PackedGemm::scratch_bytes() const { return kernel_->scratch_bytes(); }
size_t PackedGemm::packed_bytes() const { return kernel_->packed_bytes(); }

void PackedGemm::run(const void* a, float* c, std::byte* scratch) const { kernel_->run(a, c, scratch); }

}  // namespace tessera::cpu
