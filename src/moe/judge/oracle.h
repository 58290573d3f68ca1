// The MoE layer by its definition, slowly: fp64 sums in plain loops, rounded where layer_config.h declares it and
// nowhere else. What every back end is judged by, in tests, benchmarks and examples.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// Unit roundoff of what a product is summed in: fp32 on the CPU; the sums of WGMMA truncate.
inline constexpr double kCpuAccumulatorUnit = 0x1p-24;
inline constexpr double kWgmmaAccumulatorUnit = 0x1p-21;
/// e4m3: WGMMA keeps 13 bits below the largest term. Four of them, 2e-3, of the magnitudes' sum; seen with the exact
/// model where all terms have one sign, and sums are promoted each 128 of K: 1.25e-3.
inline constexpr double kE4m3AccumulatorUnit = 0x1p-11;

/// Limits of the relative error of a row, of a format that quantises rows: what is rounded the other way before the
/// intermediate is quantised may become another code. One code weighs the more, the fewer there are; the exact model of
/// the tensor cores comes up to nine tenths of kQuantizedRowLimit times narrow_row_factor in the battery (I = 80 to
/// 320).
inline constexpr double kQuantizedRowLimit = 1.5e-2;
double narrow_row_factor(int32_t intermediate_size);

struct OracleResult {
  std::vector<double> out;    ///< [tokens, H], before the last rounding
  std::vector<double> bound;  ///< [tokens, H]: how far from `out` a right result, rounded to the layer's type, may lie
};

/// Half the distance from 1 to the next number of the type.
double unit_roundoff(DType dtype);

/// `value` rounded once to the type, to nearest even; too large ones become infinite.
double rounded_to(double value, DType dtype);

/// Row i of the result is token tokens[i]; all pointers are host memory. The bound is, per element,
/// 2u|out| + 4 u_acc sum|w y| + sum over slots of |w| (2u|y| + 4 u_acc (|h||down|) + (error of h)|down|), where the
/// error of h is 2u|h| and what 4 u_acc (|x||gate_up|) before the activation become behind it. Of a format that
/// quantises rows, tokens are quantised by the same recipe to the same bits, and so is h: in place of 2u|h| its error
/// is the distance to the farthest code that such an h may have got.
OracleResult oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                    std::span<const int32_t> tokens, double accumulator_unit = kCpuAccumulatorUnit);

/// The same for every token.
OracleResult oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                    double accumulator_unit = kCpuAccumulatorUnit);

}  // namespace tessera::moe
