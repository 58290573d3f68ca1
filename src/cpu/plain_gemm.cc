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

// Random operands as bytes, uniform in [-1, 1).
void fill_random(std::minstd_rand& random, DType dtype, Buffer<std::byte>& out) {
  const size_t element = dtype_size(dtype);
  for (size_t i = 0; i < out.size(); i += element) {
    const float value = static_cast<float>(random()) * 0x1p-30f - 1.0f;
    from_f32(&value, 1, dtype, out.data() + i);
  }
}

// What a product of one height makes of each row of `rows`, repeated over the whole tile; empty if the places in the
// tile differ.
std::vector<float> results_of(int64_t height, const PlainGemmSpec& spec, const PlainGemmKernel& kernel,
                              const Buffer<std::byte>& rows, const Buffer<std::byte>& weights, size_t row_bytes) {
  const auto out_features = static_cast<size_t>(spec.out_features);
  Buffer<std::byte> a(static_cast<size_t>(height) * row_bytes);
  Buffer<float> c(static_cast<size_t>(height) * out_features);
  Buffer<std::byte> scratch(kernel.scratch_bytes());
  std::vector<float> results;
  for (size_t begin = 0; begin < rows.size(); begin += row_bytes) {
    for (size_t place = 0; place < a.size(); place += row_bytes) {
      std::memcpy(a.data() + place, rows.data() + begin, row_bytes);
    }
    kernel.run(height, a.data(), weights.data(), c.data(), scratch.data());
    for (size_t place = out_features; place < c.size(); place += out_features) {
      if (std::memcmp(c.data() + place, c.data(), out_features * sizeof(float)) != 0) return {};
    }
    results.insert(results.end(), c.data(), c.data() + out_features);
  }
  return results;
}

// The most heights that agree bit for bit, the taller of two equally many: oneDNN 2.6 with AMX cuts the sum of 2048
// products differently for 256 rows than for up to 192. As many random rows as make a thousand columns: by chance alone
// two orders of summation agree in some of them, but not in all.
std::vector<int64_t> equal_heights(const PlainGemmSpec& spec, DType operand, const PlainGemmKernel& kernel) {
  const int64_t num_rows = std::clamp<int64_t>(1000 / spec.out_features, 1, 16);
  const size_t row_bytes = static_cast<size_t>(spec.in_features) * dtype_size(operand);
  std::minstd_rand random(1);
  Buffer<std::byte> rows(static_cast<size_t>(num_rows) * row_bytes);
  Buffer<std::byte> weights(static_cast<size_t>(spec.out_features) * row_bytes);
  fill_random(random, operand, rows);
  fill_random(random, operand, weights);
  struct Group {
    std::vector<float> results;
    std::vector<int64_t> heights;
  };
  std::vector<Group> groups;
  for (const int64_t height : offered_heights(operand)) {
    std::vector<float> results = results_of(height, spec, kernel, rows, weights, row_bytes);
    if (results.empty()) continue;
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
      return std::memcmp(group.results.data(), results.data(), results.size() * sizeof(float)) == 0;
    });
    if (same == groups.end()) {
      groups.push_back({std::move(results), {height}});
    } else {
      same->heights.push_back(height);
    }
  }
  std::vector<int64_t> best;
  for (const Group& group : groups) {
    if (group.heights.size() >= best.size()) best = group.heights;
  }
  return best;
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
