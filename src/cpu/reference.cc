#include "cpu/reference.h"

#include <algorithm>
#include <cmath>

#include "tessera/core/check.h"

namespace tessera::cpu::reference {

std::vector<double> conv_relu_max(std::span<const double> x, int64_t channels, int64_t positions,
                                  std::span<const float> weight, std::span<const float> bias, int64_t width) {
  const size_t filters = bias.size();
  TESSERA_CHECK(x.size() == static_cast<size_t>(channels * positions), x.size(), channels, positions);
  TESSERA_CHECK(weight.size() == filters * static_cast<size_t>(channels * width), weight.size(), filters, width);
  std::vector<double> out(filters);
  for (size_t o = 0; o < filters; ++o) {
    for (int64_t j = 0; j + width <= positions; ++j) {
      double sum = bias[o];
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t l = 0; l < width; ++l) {
          sum += x[static_cast<size_t>(c * positions + j + l)] *
                 weight[(o * static_cast<size_t>(channels) + static_cast<size_t>(c)) * static_cast<size_t>(width) +
                        static_cast<size_t>(l)];
        }
      }
      out[o] = std::max(out[o], sum);  // out starts at 0, which is the ReLU
    }
  }
  return out;
}

std::vector<double> linear(std::span<const float> weight, std::span<const float> bias, std::span<const double> x) {
  TESSERA_CHECK(weight.size() == bias.size() * x.size(), weight.size(), bias.size(), x.size());
  std::vector<double> out(bias.begin(), bias.end());
  for (size_t o = 0; o < out.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) out[o] += weight[o * x.size() + i] * x[i];
  }
  return out;
}

void relu(std::span<double> x) {
  for (double& value : x) value = std::max(value, 0.0);
}

std::vector<double> softmax(std::span<const double> x) {
  const double largest = *std::max_element(x.begin(), x.end());
  std::vector<double> out;
  double total = 0;
  for (const double value : x) total += out.emplace_back(std::exp(value - largest));
  for (double& value : out) value /= total;
  return out;
}

std::vector<double> mix(std::span<const double> weights, std::span<const std::vector<double>> y) {
  TESSERA_CHECK(weights.size() == y.size() && !y.empty(), weights.size(), y.size());
  std::vector<double> out(y.front().size());
  for (size_t e = 0; e < y.size(); ++e) {
    for (size_t i = 0; i < out.size(); ++i) out[i] += weights[e] * y[e][i];
  }
  return out;
}

}  // namespace tessera::cpu::reference
