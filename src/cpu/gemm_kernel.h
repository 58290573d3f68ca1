// What a library of matrix products provides; PackedGemm (gemm.h) is the face of it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/plain_gemm.h"
#include "tessera/core/buffer.h"

namespace tessera::cpu {

class GemmKernel {
 public:
  virtual ~GemmKernel() = default;
  virtual size_t scratch_bytes() const = 0;
  virtual size_t packed_bytes() const = 0;
  virtual void run(const void* a, float* c, std::byte* scratch) const = 0;
};

std::unique_ptr<const GemmKernel> make_portable_gemm(const GemmSpec& spec, const WeightView& weights);

/// nullptr in a build without oneDNN.
std::unique_ptr<const GemmKernel> make_onednn_gemm(const GemmSpec& spec, const WeightView& weights);
/// What PlainGemm is the face of. `height` is one of those that the kernel was made for; the weights are of the operand
/// type.
class PlainGemmKernel {
 public:
  virtual ~PlainGemmKernel() = default;
  virtual size_t scratch_bytes() const = 0;
  virtual void run(int64_t height, const void* a, const void* weights, float* c, std::byte* scratch) const = 0;
};

/// fp32, any height.
std::unique_ptr<const PlainGemmKernel> make_portable_plain_gemm(const PlainGemmSpec& spec);

/// nullptr in a build without oneDNN.
std::unique_ptr<const PlainGemmKernel> make_onednn_plain_gemm(const PlainGemmSpec& spec, DType operand,
                                                              const std::vector<int64_t>& heights);

bool onednn_available();
bool onednn_supports_bf16();
std::string onednn_name();

/// Whether a row gives the same bits wherever in the tile it stands: PackedGemm uses no kernel that does not.
bool gives_equal_rows(const GemmSpec& spec, const GemmKernel& kernel);

/// The weights as a dense [in_features, out_features] array.
Buffer<float> dense_weights(const GemmSpec& spec, const WeightView& weights);

}  // namespace tessera::cpu
