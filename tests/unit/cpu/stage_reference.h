// References of whole stages for the tests, made of the operations of cpu/reference.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/convolution.h"
#include "cpu/reference.h"
#include "unit/random_values.h"

namespace tessera::cpu {

struct TestConvolution {
  ConvolutionShape shape;
  std::vector<std::vector<float>> weight;  // per width
  std::vector<std::vector<float>> bias;

  std::vector<ConvolutionWeights> view() const {
    std::vector<ConvolutionWeights> views;
    for (size_t i = 0; i < weight.size(); ++i) views.push_back({weight[i].data(), bias[i].data()});
    return views;
  }
};

/// Weights [-2, 2] and biases [-9, 9], integers or real numbers.
inline TestConvolution random_convolution(const ConvolutionShape& shape, bool integers, uint64_t seed) {
  TestConvolution convolution = {shape, {}, {}};
  for (const int64_t width : shape.widths) {
    const auto size = static_cast<size_t>(shape.filters * shape.channels * width);
    const auto filters = static_cast<size_t>(shape.filters);
    ++seed;
    convolution.weight.push_back(integers ? test::random_integers(size, 2, seed)
                                          : test::random_normal(size, 0.3f, seed));
    convolution.bias.push_back(integers ? test::random_integers(filters, 9, seed + 100)
                                        : test::random_normal(filters, 1, seed + 100));
  }
  return convolution;
}

struct StageReference {
  std::vector<double> values;
  std::vector<double> magnitudes;  // sums of absolute products
};

/// Features of one record [channels, positions], with operands rounded to `operand`.
inline StageReference reference_features(const TestConvolution& convolution, std::span<const float> record,
                                         DType operand) {
  StageReference features;
  std::vector<double> x;
  std::vector<double> absolute_x;
  for (const float value : record) {
    x.push_back(test::rounded(value, operand));
    absolute_x.push_back(std::abs(x.back()));
  }
  const ConvolutionShape& shape = convolution.shape;
  const auto absolute = [](std::vector<float> values) {
    for (float& value : values) value = std::abs(value);
    return values;
  };
  for (size_t i = 0; i < shape.widths.size(); ++i) {
    const auto weight = test::rounded(convolution.weight[i], operand);
    const auto& bias = convolution.bias[i];
    const auto values = reference::conv_relu_max(x, shape.channels, shape.positions, weight, bias, shape.widths[i]);
    const auto magnitudes = reference::conv_relu_max(absolute_x, shape.channels, shape.positions, absolute(weight),
                                                     absolute(bias), shape.widths[i]);
    features.values.insert(features.values.end(), values.begin(), values.end());
    features.magnitudes.insert(features.magnitudes.end(), magnitudes.begin(), magnitudes.end());
  }
  return features;
}

inline StageReference reference_features(const TestConvolution& convolution, const std::vector<float>& records,
                                         int64_t num_records, DType operand) {
  StageReference all;
  const size_t size = static_cast<size_t>(convolution.shape.channels * convolution.shape.positions);
  for (size_t record = 0; record < static_cast<size_t>(num_records); ++record) {
    const StageReference one =
        reference_features(convolution, std::span(records).subspan(record * size, size), operand);
    all.values.insert(all.values.end(), one.values.begin(), one.values.end());
    all.magnitudes.insert(all.magnitudes.end(), one.magnitudes.begin(), one.magnitudes.end());
  }
  return all;
}

/// Operand types that this build and processor have.
inline std::vector<DType> operand_types() {
  std::vector<DType> types = {DType::f32};
  if (gemm_supports_bf16()) types.push_back(DType::bf16);
  return types;
}

/// Each with the bug it catches.
inline const std::vector<ConvolutionShape>& convolution_shapes() {
  static const std::vector<ConvolutionShape> shapes = {
      {7, 5, 5, {1, 5}},           // widths 1 and the whole sequence; nothing a multiple of anything
      {3, 1, 2, {1}},              // a sequence of one
      {64, 16, 33, {3, 5, 7, 9}},  // the full-size model's positions: 16 records a tile
      {8, 56, 16, {1, 2, 5, 56}},  // one window beside 56: 64 records a tile, four windows a product
      {5, 300, 9, {2, 40}},        // one record a tile; two products a width, the last one padded
      {17, 70, 20, {7}},           // two records a tile of 64 windows each
      {1, 2, 1, {1, 1, 2}},        // one channel, one filter, a width twice
      {40, 16, 64, {16, 15}},      // few windows
  };
  return shapes;
}

}  // namespace tessera::cpu
