#include "cpu/plain_gemm.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "cpu/convert.h"
#include "cpu/gemm_kernel.h"
#include "cpu/scratch.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cpu {
namespace {

// Heights on offer. oneDNN 2.6 with AMX takes as long for 16 rows as for 64 (it is busy reading the weights: 45 and 51
// us for 128 x 2048 of them), then about 0.55 us a row; fp32 products take their time by the row from the start. Beyond
// 256 rows A no longer fits the second-level cache beside the weights (measured on a Sapphire Rapids core, 2 MiB).
std::vector<int64_t> offered_heights(DType operand) {
  if (operand == DType::bf16) return {64, 128, 192, 256};
  return {16, 32, 64, 128, 192, 256};
}

// Random rows, each repeated over every tile of every height: a height stays if all its rows give the bits of the
// tallest one's first row. By chance alone two orders of summation agree in some columns, but not in a thousand.
std::vector<int64_t> equal_heights(const PlainGemmSpec& spec, DType operand, const PlainGemmKernel& kernel) {
  std::vector<int64_t> heights = offered_heights(operand);
  const int64_t num_probes = std::clamp<int64_t>(1000 / spec.out_features, 1, 16);
  const auto in_features = static_cast<size_t>(spec.in_features);
  const auto out_features = static_cast<size_t>(spec.out_features);
  const size_t row_bytes = in_features * dtype_size(operand);
  const auto tallest = static_cast<size_t>(heights.back());
  Buffer<std::byte> a(tallest * row_bytes);
  Buffer<std::byte> weights(out_features * row_bytes);
  Buffer<float> expected(out_features);
  Buffer<float> c(tallest * out_features);
  Buffer<std::byte> scratch(kernel.scratch_bytes());
  std::minstd_rand random(1);
  const auto fill = [&](size_t size, std::byte* out) {
    for (size_t i = 0; i < size; ++i) {
      const float value = static_cast<float>(random()) * 0x1p-30f - 1.0f;
      from_f32(&value, 1, operand, out + i * dtype_size(operand));
    }
  };
  fill(out_features * in_features, weights.data());
  for (int64_t probe = 0; probe < num_probes; ++probe) {
    fill(in_features, a.data());
    for (size_t row = 1; row < tallest; ++row) std::memcpy(a.data() + row * row_bytes, a.data(), row_bytes);
    kernel.run(heights.back(), a.data(), weights.data(), c.data(), scratch.data());
    std::copy_n(c.data(), out_features, expected.data());
    std::erase_if(heights, [&](int64_t height) {
      kernel.run(height, a.data(), weights.data(), c.data(), scratch.data());
      for (int64_t row = 0; row < height; ++row) {
        if (std::memcmp(c.data() + row * spec.out_features, expected.data(), out_features * sizeof(float)) != 0)
          return true;
      }
      return false;
    });
    if (heights.empty()) break;
  }
  return heights;
}

}  // namespace

PlainGemm::PlainGemm(const PlainGemmSpec& spec, GemmLibrary library) : spec_(spec) {
  TESSERA_CHECK(spec.out_features >= 1 && spec.in_features >= 1, spec.out_features, spec.in_features);
  if (library == GemmLibrary::onednn) {
    if (!onednn_available()) throw Error("matrix products", "oneDNN", "portable loops: this build has no oneDNN");
    if (spec.weights == DType::bf16 && gemm_supports_bf16() && prepare(library, DType::bf16)) return;
    if (prepare(library, DType::f32)) return;
  }
  TESSERA_CHECK(prepare(GemmLibrary::portable, DType::f32), "the portable loops give each row its own bits");
}

bool PlainGemm::prepare(GemmLibrary library, DType operand) {
  operand_ = operand;
  const std::vector<int64_t> offered = offered_heights(operand);
  kernel_ = library == GemmLibrary::onednn ? make_onednn_plain_gemm(spec_, operand, offered)
                                           : make_portable_plain_gemm(spec_);
  heights_ = equal_heights(spec_, operand, *kernel_);
  // Without the tallest the others agree with nothing; where only they are lost, few rows cost more and nothing else.
  return !heights_.empty();
}

PlainGemm::~PlainGemm() = default;
PlainGemm::PlainGemm(PlainGemm&&) noexcept = default;
PlainGemm& PlainGemm::operator=(PlainGemm&&) noexcept = default;

int64_t PlainGemm::height_for(int64_t rows) const {
  TESSERA_CHECK(rows >= 1 && rows <= max_height(), rows, max_height());
  return *std::lower_bound(heights_.begin(), heights_.end(), rows);
}

size_t PlainGemm::converted_bytes() const {
  if (operand_ == spec_.weights) return 0;
  return aligned_bytes(static_cast<size_t>(spec_.out_features * spec_.in_features) * sizeof(float));
}

size_t PlainGemm::scratch_bytes() const { return converted_bytes() + aligned_bytes(kernel_->scratch_bytes()); }

void PlainGemm::run(int64_t height, const void* a, const void* weights, float* c, std::byte* scratch) const {
  if (operand_ != spec_.weights) {
    auto* converted = reinterpret_cast<float*>(scratch);
    to_f32(weights, spec_.weights, spec_.out_features * spec_.in_features, converted);
    weights = converted;
  }
  kernel_->run(height, a, weights, c, scratch + converted_bytes());
}

}  // namespace tessera::cpu
