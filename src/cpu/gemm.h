// Products of fixed-height tiles with weights that are packed once: C[rows, out] (+)= A[rows, in] x W[out, in]^T.
//
//   const PackedGemm gemm({.rows = 64, .out_features = 1024, .in_features = 4096}, {weight, 4096, 1});
//   Buffer<std::byte> scratch(gemm.scratch_bytes());         // one per thread
//   gemm.run(a, c, scratch.data());                          // any number of threads at once
//
// Sums and C are fp32 whatever the operands. The number of rows is part of the product: a caller with fewer rows pads.
// That is what makes a row's result depend on that row alone: libraries choose their kernel by the number of rows, and
// with it the order of the sums. For a given product, library and processor, equal rows of A give equal rows of C,
// wherever in the tile they stand and whatever the other rows hold. The constructor tries that out, and where oneDNN
// does not keep it, the portable loops are used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "tessera/core/dtype.h"

namespace tessera::cpu {

enum class GemmLibrary : uint8_t {
  portable,  ///< our own blocked loops: fp32 only, everywhere
  onednn,    ///< if this build has it
};

struct GemmSpec {
  int64_t rows = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  DType operand = DType::f32;  ///< f32 or bf16; what A holds and what the weights are rounded to
  bool accumulate = false;     ///< add to what C holds instead of overwriting it
};

/// Weights as the caller has them: element (o, i) is values[o * out_stride + i * in_stride]. Read by the constructor
/// only.
struct WeightView {
  const float* values = nullptr;
  int64_t out_stride = 0;
  int64_t in_stride = 0;
};

/// oneDNN where the build has it, else portable.
GemmLibrary default_gemm_library();

/// "oneDNN 2.6.3 (AVX512-BF16, AMX)", "portable loops".
std::string gemm_library_name();

/// Whether PackedGemm takes bf16 operands here: oneDNN, and a processor that multiplies them in hardware.
bool gemm_supports_bf16();

class GemmKernel;  // gemm_kernel.h

class PackedGemm {
 public:
  /// Sizes >= 1. Throws Error for bf16 where gemm_supports_bf16() is false, and for a library that is not built in.
  PackedGemm(const GemmSpec& spec, const WeightView& weights, GemmLibrary library = default_gemm_library());
  ~PackedGemm();
  PackedGemm(PackedGemm&&) noexcept;
  PackedGemm& operator=(PackedGemm&&) noexcept;

  const GemmSpec& spec() const { return spec_; }
  /// Bytes that `run` needs beside its operands, aligned to kHostAlignment; may be 0.
  size_t scratch_bytes() const;
  /// Memory that the packed weights take.
  size_t packed_bytes() const;

  /// a: [rows, in_features] of spec().operand (bf16 as uint16_t), c: [rows, out_features], both dense and row-major.
  void run(const void* a, float* c, std::byte* scratch) const;

 private:
  GemmSpec spec_;
  std::unique_ptr<const GemmKernel> kernel_;
};

}  // namespace tessera::cpu
