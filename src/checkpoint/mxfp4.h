// MXFP4 weights, 4 bits with a power of two for each 32 columns, as e4m3 with a scale each 128 x 128, or as 16-bit
// numbers: to the bit, or not at all.
//
//   codes [rows, columns / 2], low half of a byte first: sign, then 0, 0.5, 1, 1.5, 2, 3, 4 or 6
//   exponents [rows, columns / 32]: the number is the code's times 2^(exponent - 127); 255 is NaN
//
// A block becomes exact if all its numbers are e4m3 numbers times one power of two: e4m3 spans 2^-9 to 448, so
// exponents of a block that has both the largest and the smallest codes may lie 14 apart. Which numbers are there is
// looked at, not only which exponents.
#pragma once

#include <cstdint>
#include <span>

#include "tessera/core/dtype.h"
#include "tessera/core/gate_up_order.h"

namespace tessera::checkpoint {

/// A matrix as it is stored. Columns are a multiple of 32.
struct Mxfp4Matrix {
  const uint8_t* codes = nullptr;
  const uint8_t* exponents = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  bool gate_and_up = false;  ///< rows are gate's and up's in turn, which do not share blocks

  int64_t parts() const { return gate_and_up ? 2 : 1; }
  int64_t row(int64_t part, int64_t i) const { return gate_and_up ? 2 * i + part : i; }
};

/// Blocks of a matrix, and how many of them e4m3 holds exactly.
struct ExactBlocks {
  int64_t num_blocks = 0;
  int64_t num_exact = 0;
};

/// The scales that make blocks exact: [parts, ceil(rows / parts / 128), ceil(columns / 128)]; those of blocks that
/// cannot be are 0. Without codes, by exponents alone: what it then calls exact is exact. Throws Error naming row and
/// group for an exponent that is NaN; `where` names the matrix.
ExactBlocks find_scales(const Mxfp4Matrix& matrix, float* scales, const char* where);

/// Codes [rows, columns] of e4m3 under scales that find_scales found, all blocks exact.
void to_e4m3(const Mxfp4Matrix& matrix, const float* scales, uint8_t* codes);

/// [rows, columns] of bf16, f16 or f32. Throws Error naming row and group for a number that the type cannot hold
/// exactly.
void to_dense(const Mxfp4Matrix& matrix, DType dtype, std::byte* values, const char* where);

}  // namespace tessera::checkpoint
