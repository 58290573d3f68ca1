// Products of a few heights of tile with weights that are read as they lie, never packed ahead:
// C[height, out] = A[height, in] x W[out, in]^T.
//
//   const PlainGemm gemm({.out_features = 128, .in_features = 2048, .weights = DType::bf16});
//   const int64_t height = gemm.height_for(num_rows);                   // a caller with fewer rows pads
//   gemm.run(height, a, w, c, scratch);                                 // scratch: gemm.scratch_bytes(), one a thread
//
// For weights that are used by a few hundred rows at a time, as an expert's are: packing them would cost as much as the
// product, and a packed copy as much memory as the model. Sums and C are fp32. Heights differ so that few rows do not
// cost as much as many, yet equal rows of A give equal rows of C, whatever the height, the place in the tile and the
// other rows: the constructor tries that out and keeps only heights that agree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/gemm.h"
#include "tessera/core/dtype.h"

namespace tessera::cpu {

struct PlainGemmSpec {
  int64_t out_features = 0;
  int64_t in_features = 0;
  DType weights = DType::f32;
};

class PlainGemmKernel;  // gemm_kernel.h

class PlainGemm {
 public:
  /// Sizes >= 1. Any dtype: bf16 weights are multiplied as bf16 where the library and the processor can; otherwise, and
  /// f16 always, they are converted to fp32 product by product.
  explicit PlainGemm(const PlainGemmSpec& spec, GemmLibrary library = default_gemm_library());
  ~PlainGemm();
  PlainGemm(PlainGemm&&) noexcept;
  PlainGemm& operator=(PlainGemm&&) noexcept;

  const PlainGemmSpec& spec() const { return spec_; }
  /// What A holds: bf16 or f32.
  DType operand() const { return operand_; }
  /// The least height that holds `rows`, 1 <= rows <= max_height().
  int64_t height_for(int64_t rows) const;
  int64_t max_height() const { return heights_.back(); }
  const std::vector<int64_t>& heights() const { return heights_; }
  /// Bytes that `run` needs beside its operands, aligned to kHostAlignment; may be 0.
  size_t scratch_bytes() const;

  /// a: [height, in_features] of operand() (bf16 as uint16_t), weights: [out_features, in_features] of spec().weights,
  /// c: [height, out_features], all dense and row-major. height: one of heights().
  void run(int64_t height, const void* a, const void* weights, float* c, std::byte* scratch) const;

 private:
  size_t converted_bytes() const;
  bool prepare(GemmLibrary library, DType operand);

  PlainGemmSpec spec_;
  DType operand_ = DType::f32;
  std::vector<int64_t> heights_;  // ascending
  std::unique_ptr<const PlainGemmKernel> kernel_;
};

}  // namespace tessera::cpu
