#include "cpu/head.h"

#include "cpu/reference.h"
#include "stage_reference.h"
#include "tessera/core/check.h"
#include "unit/numeric_check.h"

namespace tessera::cpu {
namespace {

using test::GuardedArray;

struct TestLayer {
  std::vector<float> weight, bias;
  int64_t out, in;
  LinearLayer view() const { return {weight.data(), bias.data(), out, in}; }
};

// sizes: input, hidden layers, classes.
std::vector<TestLayer> random_layers(const std::vector<int64_t>& sizes, int range, uint64_t seed) {
  std::vector<TestLayer> layers;
  for (size_t i = 0; i + 1 < sizes.size(); ++i) {
    const auto size = static_cast<size_t>(sizes[i] * sizes[i + 1]);
    const auto out = static_cast<size_t>(sizes[i + 1]);
    ++seed;
    layers.push_back({range > 0 ? test::random_integers(size, range, seed) : test::random_normal(size, 0.3f, seed),
                      range > 0 ? test::random_integers(out, range, seed + 50) : test::random_normal(out, 1, seed + 50),
                      sizes[i + 1], sizes[i]});
  }
  return layers;
}

Head make(const std::vector<TestLayer>& layers, DType operand, ThreadPool& pool) {
  std::vector<LinearLayer> hidden;
  for (size_t i = 0; i + 1 < layers.size(); ++i) hidden.push_back(layers[i].view());
  return Head(hidden, layers.back().view(), operand, pool);
}

std::vector<float> run(Head& head, const std::vector<TestLayer>& layers, const std::vector<float>& y) {
  const int64_t num_rows = static_cast<int64_t>(y.size()) / layers.front().in;
  std::vector<float> padded(static_cast<size_t>(padded_rows(num_rows) * layers.front().in), 1e30f);
  std::copy(y.begin(), y.end(), padded.begin());
  GuardedArray<float> logits(static_cast<size_t>(num_rows * layers.back().out));
  head.run(padded.data(), num_rows, logits.data());
  EXPECT_TRUE(logits.intact());
  return {logits.span().begin(), logits.span().end()};
}

// Hidden layers' operands rounded as declared, the output layer's not at all.
std::vector<double> reference_logits(const std::vector<TestLayer>& layers, std::span<const float> y, DType operand) {
  std::vector<double> x(y.begin(), y.end());
  for (const TestLayer& layer : layers) {
    const bool is_output = &layer == &layers.back();
    const DType type = is_output ? DType::f32 : operand;
    for (double& value : x) value = test::rounded(static_cast<float>(value), type);
    x = reference::linear(test::rounded(layer.weight, type), layer.bias, x);
    if (!is_output) reference::relu(x);
  }
  return x;
}

const std::vector<std::vector<int64_t>> kChains = {{5, 3}, {7, 11, 2}, {64, 32, 16, 2}, {3, 1, 9, 1, 4}, {33, 70, 1}};

TEST(Head, IsExactForIntegers) {
  ThreadPool pool(2);
  for (const DType operand : operand_types()) {
    for (const std::vector<int64_t>& chain : {std::vector<int64_t>{5, 3}, {7, 11, 2}, {3, 1, 9, 4}}) {
      // Every intermediate stays below 256, which bf16 holds exactly.
      const auto layers = random_layers(chain, 1, 1);
      const auto y = test::random_integers(static_cast<size_t>(70 * chain.front()), 2, 2);
      Head head = make(layers, operand, pool);
      std::vector<double> expected;
      for (size_t row = 0; row < 70; ++row) {
        const auto in = static_cast<size_t>(chain.front());
        const auto logits = reference_logits(layers, std::span(y).subspan(row * in, in), operand);
        expected.insert(expected.end(), logits.begin(), logits.end());
      }
      EXPECT_TRUE(test::exactly(run(head, layers, y), expected));
    }
  }
}

TEST(Head, FollowsTheReference) {
  ThreadPool pool(2);
  for (const DType operand : operand_types()) {
    for (const std::vector<int64_t>& chain : kChains) {
      const auto layers = random_layers(chain, 0, 3);
      const auto y = test::random_normal(static_cast<size_t>(67 * chain.front()), 1, 4);
      Head head = make(layers, operand, pool);
      const std::vector<float> logits = run(head, layers, y);
      std::vector<float> expected;
      for (size_t row = 0; row < 67; ++row) {
        const auto in = static_cast<size_t>(chain.front());
        for (const double logit : reference_logits(layers, std::span(y).subspan(row * in, in), operand)) {
          expected.push_back(static_cast<float>(logit));
        }
      }
      // An intermediate next to a rounding boundary of bf16 may fall to the other side.
      const double tau = operand == DType::bf16 ? 0.02 : 1e-5;
      EXPECT_TRUE(test::logits_within(logits, expected, tau)) << chain.size() << " sizes " << dtype_name(operand);
      EXPECT_FALSE(test::logits_within(std::vector<float>(logits.size()), expected, tau));
    }
  }
}

TEST(Head, TheOutputLayerIsNeverRounded) {
  if (!gemm_supports_bf16()) GTEST_SKIP() << "no bf16 here";
  ThreadPool pool(1);
  const std::vector<TestLayer> layers = {{{1.0f + 0x1p-20f}, {0x1p-20f}, 1, 1}};
  Head head = make(layers, DType::bf16, pool);
  const std::vector<float> y = {1.0f + 0x1p-21f};
  EXPECT_EQ(run(head, layers, y)[0], (1.0f + 0x1p-20f) * (1.0f + 0x1p-21f) + 0x1p-20f);
}

TEST(Head, ARowsBitsDependOnItAlone) {
  for (const DType operand : operand_types()) {
    for (const std::vector<int64_t>& chain : kChains) {
      const auto layers = random_layers(chain, 0, 5);
      const auto y = test::random_normal(static_cast<size_t>(140 * chain.front()), 1, 6);
      std::vector<float> expected;
      for (const int num_threads : {1, 2, 4}) {
        ThreadPool pool(num_threads);
        Head head = make(layers, operand, pool);
        for (const int64_t count : {140, 1, 64, 65}) {
          const std::vector<float> logits = run(head, layers, {y.begin(), y.begin() + count * chain.front()});
          if (expected.empty()) expected = logits;
          EXPECT_TRUE(test::same_bits(logits, std::span(expected).first(logits.size())));
        }
      }
    }
  }
}

TEST(Head, RefusesLayersThatDoNotFit) {
  ThreadPool pool(1);
  auto layers = random_layers({4, 5, 2}, 1, 7);
  EXPECT_GT(make(layers, DType::f32, pool).memory_bytes(), 0u);
  layers[0].out = 4;
  EXPECT_THROW(make(layers, DType::f32, pool), ProgrammerError);
}

}  // namespace
}  // namespace tessera::cpu
