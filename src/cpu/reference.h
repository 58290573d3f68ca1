// The oracle: each operation of the classifier once, from its definition, in double precision, one plain loop nest
// each. Deliberately slow; shared by the fp64 precision and by the tests of everything faster.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera::cpu::reference {

/// max over j of relu(bias[o] + sum_{c,l} x[c, j + l] * weight[o, c, l]).
/// x [channels, positions], weight [filters, channels, width], bias [filters] -> [filters]
std::vector<double> conv_relu_max(std::span<const double> x, int64_t channels, int64_t positions,
                                  std::span<const float> weight, std::span<const float> bias, int64_t width);

/// weight x + bias. weight [out, in], x [in], bias [out] -> [out]
std::vector<double> linear(std::span<const float> weight, std::span<const float> bias, std::span<const double> x);

void relu(std::span<double> x);

/// exp(x_i) / sum of exp(x), with the largest subtracted first.
std::vector<double> softmax(std::span<const double> x);

/// sum_e weights[e] * y[e]. y: [experts][size]
std::vector<double> mix(std::span<const double> weights, std::span<const std::vector<double>> y);

}  // namespace tessera::cpu::reference
