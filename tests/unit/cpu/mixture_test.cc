#include "cpu/mixture.h"

#include <numeric>
#include <random>
#include <tuple>

#include "cpu/reference.h"
#include "stage_reference.h"
#include "tessera/core/check.h"
#include "unit/numeric_check.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

struct MixtureLayer {
  std::vector<float> weight, bias;
  int64_t out, in;

  MixtureLayer(int64_t with_out, int64_t with_in, bool integers, uint64_t seed) : out(with_out), in(with_in) {
    const auto size = static_cast<size_t>(out * in);
    weight = integers ? test::random_integers(size, 2, seed) : test::random_normal(size, 0.2f, seed);
    bias = integers ? test::random_integers(static_cast<size_t>(out), 8, seed + 1)
                    : test::random_normal(static_cast<size_t>(out), 1, seed + 1);
  }
  LinearLayer view() const { return {weight.data(), bias.data(), out, in}; }
};

struct TestMixture {
  MixtureLayer router;
  std::vector<MixtureLayer> experts;
  std::vector<float> output_bias;

  TestMixture(int64_t num_experts, int64_t expert_size, int64_t in, bool integers, bool with_output_bias, uint64_t seed)
      : router(num_experts, in, false, seed) {
    if (integers) {  // equal logits: weights of exactly 1 / num_experts
      std::fill(router.weight.begin(), router.weight.end(), 0.5f);
      std::fill(router.bias.begin(), router.bias.end(), -3.0f);
    }
    for (int64_t e = 0; e < num_experts; ++e) {
      experts.emplace_back(expert_size, in, integers, seed + 10 + static_cast<uint64_t>(2 * e));
    }
    if (with_output_bias) output_bias = test::random_integers(static_cast<size_t>(expert_size), 8, seed + 5);
  }

  Mixture make(DType operand, int64_t max_rows, ThreadPool& pool) const {
    std::vector<LinearLayer> views;
    for (const MixtureLayer& expert : experts) views.push_back(expert.view());
    return Mixture(router.view(), views, output_bias.empty() ? nullptr : output_bias.data(), operand, max_rows, pool);
  }
};

struct MixtureShape {
  int64_t experts, size, in;
};

// One expert; odd counts; more experts than any vector is wide; the small model.
const MixtureShape kMixtureShapes[] = {{1, 7, 5}, {3, 11, 20}, {4, 64, 96}, {37, 5, 9}, {8, 1, 1}};

struct Result {
  std::vector<float> y, weights;
};

Result run(Mixture& mixture, const MixtureShape& shape, const std::vector<float>& h) {
  const int64_t num_rows = static_cast<int64_t>(h.size()) / shape.in;
  std::vector<float> padded(static_cast<size_t>(padded_rows(num_rows) * shape.in), 1e30f);  // ignored, whatever it is
  std::copy(h.begin(), h.end(), padded.begin());
  GuardedArray<float> y(static_cast<size_t>(num_rows * shape.size));
  GuardedArray<float> weights(static_cast<size_t>(num_rows * shape.experts));
  mixture.run(padded.data(), num_rows, y.data(), weights.data());
  EXPECT_TRUE(y.intact());
  EXPECT_TRUE(weights.intact());
  return {{y.span().begin(), y.span().end()}, {weights.span().begin(), weights.span().end()}};
}

// Reference of one row: router from fp32, experts from operands rounded as declared.
struct RowReference {
  std::vector<double> y, magnitude, weights;
};

RowReference reference_row(const TestMixture& mixture, std::span<const float> h, DType operand, size_t dropped) {
  const std::vector<double> x(h.begin(), h.end());
  std::vector<double> rounded_x;
  std::vector<double> absolute_x;
  for (const float value : h) {
    rounded_x.push_back(test::rounded(value, operand));
    absolute_x.push_back(std::abs(rounded_x.back()));
  }
  const auto absolute = [](std::vector<float> values) {
    for (float& value : values) value = std::abs(value);
    return values;
  };
  RowReference row;
  row.weights = reference::softmax(reference::linear(mixture.router.weight, mixture.router.bias, x));
  std::vector<double> weights = row.weights;
  if (dropped < weights.size()) weights[dropped] = 0;
  std::vector<std::vector<double>> outputs;
  std::vector<std::vector<double>> magnitudes;
  for (const MixtureLayer& expert : mixture.experts) {
    const auto weight = test::rounded(expert.weight, operand);
    outputs.push_back(reference::linear(weight, expert.bias, rounded_x));
    magnitudes.push_back(reference::linear(absolute(weight), absolute(expert.bias), absolute_x));
  }
  row.y = reference::mix(weights, outputs);
  row.magnitude = reference::mix(weights, magnitudes);
  for (size_t i = 0; i < mixture.output_bias.size(); ++i) {
    row.y[i] += mixture.output_bias[i];
    row.magnitude[i] += std::abs(mixture.output_bias[i]);
  }
  if (!mixture.output_bias.empty()) reference::relu(row.y);
  return row;
}

RowReference reference_rows(const TestMixture& mixture, const std::vector<float>& h, DType operand,
                            size_t dropped = SIZE_MAX) {
  const auto in = static_cast<size_t>(mixture.router.in);
  RowReference all;
  for (size_t begin = 0; begin < h.size(); begin += in) {
    const RowReference row = reference_row(mixture, std::span(h).subspan(begin, in), operand, dropped);
    all.y.insert(all.y.end(), row.y.begin(), row.y.end());
    all.magnitude.insert(all.magnitude.end(), row.magnitude.begin(), row.magnitude.end());
    all.weights.insert(all.weights.end(), row.weights.begin(), row.weights.end());
  }
  return all;
}

TEST(Mixture, IsExactForIntegersAndEqualExperts) {
  ThreadPool pool(3);
  for (const DType operand : operand_types()) {
    for (const MixtureShape& shape :
         {MixtureShape{1, 7, 5}, MixtureShape{2, 11, 20}, MixtureShape{4, 64, 96}, MixtureShape{8, 1, 1}}) {
      for (const bool with_bias : {false, true}) {
        const TestMixture weights(shape.experts, shape.size, shape.in, true, with_bias, 1);
        const auto h = test::random_integers(static_cast<size_t>(70 * shape.in), 4, 2);
        Mixture mixture = weights.make(operand, 70, pool);
        const Result result = run(mixture, shape, h);
        const RowReference expected = reference_rows(weights, h, operand);
        EXPECT_TRUE(test::exactly(result.y, expected.y)) << shape.experts << " experts";
        EXPECT_TRUE(test::exactly(result.weights, expected.weights));
      }
    }
  }
}

TEST(Mixture, StaysWithinTheRoundingBounds) {
  ThreadPool pool(2);
  for (const DType operand : operand_types()) {
    for (const MixtureShape& shape : kMixtureShapes) {
      for (const bool with_bias : {false, true}) {
        SCOPED_TRACE(str_cat(shape.experts, " experts of ", shape.size, " ", dtype_name(operand)));
        const TestMixture weights(shape.experts, shape.size, shape.in, false, with_bias, 3);
        const auto h = test::random_normal(static_cast<size_t>(67 * shape.in), 1, 4);
        Mixture mixture = weights.make(operand, 100, pool);
        const Result result = run(mixture, shape, h);
        const RowReference expected = reference_rows(weights, h, operand);
        // A weight's error multiplies the whole sum of its expert: the logits' rounding, exp and the division.
        constexpr double kUnitWeights = 8 * test::kUnitF32;
        EXPECT_TRUE(test::elements_within(result.y, expected.y, expected.magnitude, test::kUnitF32, kUnitWeights));
        for (size_t i = 0; i < expected.weights.size(); ++i) {
          ASSERT_NEAR(result.weights[i], expected.weights[i], 1e-5);
        }
      }
    }
  }
}

TEST(Mixture, ADroppedExpertIsFound) {
  ThreadPool pool(1);
  const MixtureShape shape = {4, 64, 96};
  const TestMixture weights(shape.experts, shape.size, shape.in, false, false, 5);
  const auto h = test::random_normal(static_cast<size_t>(9 * shape.in), 1, 6);
  Mixture mixture = weights.make(DType::f32, 9, pool);
  const Result result = run(mixture, shape, h);
  for (size_t dropped = 0; dropped < 4; ++dropped) {
    const RowReference wrong = reference_rows(weights, h, DType::f32, dropped);
    EXPECT_FALSE(test::elements_within(result.y, wrong.y, wrong.magnitude, test::kUnitF32, 8 * test::kUnitF32));
  }
}

TEST(Mixture, ARowsBitsDependOnItAlone) {
  for (const DType operand : operand_types()) {
    for (const MixtureShape& shape : kMixtureShapes) {
      const TestMixture weights(shape.experts, shape.size, shape.in, false, true, 7);
      const auto h = test::random_normal(static_cast<size_t>(150 * shape.in), 1, 8);
      Result expected;
      for (const int num_threads : {1, 2, 3, 4}) {
        ThreadPool pool(num_threads);
        for (const int64_t max_rows : {150, 1000}) {
          Mixture mixture = weights.make(operand, max_rows, pool);
          for (const int64_t count : {150, 1, 63, 64, 65}) {
            const Result result = run(mixture, shape, {h.begin(), h.begin() + count * shape.in});
            if (expected.y.empty()) expected = result;
            EXPECT_TRUE(test::same_bits(result.y, std::span(expected.y).first(result.y.size())));
            EXPECT_TRUE(test::same_bits(result.weights, std::span(expected.weights).first(result.weights.size())));
          }
        }
      }
    }
  }
}

TEST(Mixture, ChecksItsArguments) {
  ThreadPool pool(1);
  const TestMixture weights(3, 4, 5, true, false, 9);
  Mixture mixture = weights.make(DType::f32, 8, pool);
  EXPECT_GT(mixture.memory_bytes(), 0u);
  std::vector<float> h(64 * 5);
  std::vector<float> y(9 * 4);
  std::vector<float> router_weights(9 * 3);
  EXPECT_THROW(mixture.run(h.data(), 9, y.data(), router_weights.data()), ProgrammerError);
  mixture.run(nullptr, 0, nullptr, nullptr);
  const std::vector<LinearLayer> two = {weights.experts[0].view(), weights.experts[1].view()};
  EXPECT_THROW(Mixture(weights.router.view(), two, nullptr, DType::f32, 8, pool), ProgrammerError);
}

TEST(FoldLayers, IsTheProductOfTheLayers) {
  ThreadPool pool(2);
  for (const auto& [out, middle, in] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {70, 33, 21}, {64, 5, 130}}) {
    const MixtureLayer outer(out, middle, true, 10);
    const MixtureLayer inner(middle, in, true, 11);
    const FoldedLayer folded = fold_layers(outer.view(), inner.view(), pool);
    std::vector<double> weight;
    std::vector<double> bias;
    for (int64_t o = 0; o < out; ++o) {
      const auto row = std::span(outer.weight).subspan(static_cast<size_t>(o * middle), static_cast<size_t>(middle));
      bias.push_back(std::inner_product(row.begin(), row.end(), inner.bias.begin(), 0.0));
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t m = 0; m < middle; ++m) {
          sum += double{row[static_cast<size_t>(m)]} * inner.weight[static_cast<size_t>(m * in + i)];
        }
        weight.push_back(sum);
      }
    }
    EXPECT_TRUE(test::exactly(folded.weight.span(), weight));
    EXPECT_TRUE(test::exactly(folded.bias.span(), bias));
  }
}

TEST(FoldLayers, RefusesLayersThatDoNotFit) {
  ThreadPool pool(1);
  const MixtureLayer outer(3, 4, true, 12);
  const MixtureLayer inner(5, 2, true, 13);
  EXPECT_THROW(fold_layers(outer.view(), inner.view(), pool), ProgrammerError);
}

}  // namespace
}  // namespace tessera::cpu
