// Layers on the GPU against the host model, bit for bit: no tolerance anywhere.
#include <algorithm>
#include <bit>
#include <functional>

#include "gpu/moe/device_activation.h"
#include "gpu/moe/exact_fuzz.h"
#include "gpu/moe/gpu_fixture.h"
#include "tessera/core/thread_pool.h"

namespace tessera::testing {
namespace {

using moe::ExactLayer;

void expect_equal_bits(const FuzzResult& result, int layers) {
  EXPECT_EQ(result.layers, layers);
  EXPECT_GT(result.elements, int64_t{1000} * layers);
  EXPECT_EQ(result.differing, 0) << "of " << result.elements << " elements";
  for (const std::string& problem : result.problems) ADD_FAILURE() << problem;
}

// A layer that the GPU ran; it or its answer is then changed.
class PlantedLayerErrors : public ::testing::Test {
 protected:
  // Many elements of the finer type: another order of K shows in few of those that were rounded to 16 bits.
  static bool fits(const ExactCase& c) {
    const moe::LayerConfig& l = c.config;
    return l.gated && l.activation.kind == ActivationKind::relu && l.hidden_size >= 48 && l.intermediate_size >= 64 &&
           c.num_tokens > 100 && l.dtype == DType::f16 && l.shared_intermediate_size == 0;
  }
  static ExactCase layer_that_fits() {
    static const uint64_t kSeed = [] {
      uint64_t seed = 1;
      while (!fits(ExactCase(seed))) ++seed;
      return seed;
    }();
    return ExactCase(kSeed);
  }
  std::string problem(const DeviceAnswer& got) const { return problem_of(case_, got, layer_, intermediate_); }

  ExactRunner runner_;
  const ExactCase case_ = layer_that_fits();
  const ExactLayer layer_{case_.config, case_.weights(), case_.inputs()};
  const std::vector<uint16_t> intermediate_ = layer_.intermediate(moe::exact_activation);
  const DeviceAnswer right_ = runner_.run(case_);
};

TEST_F(PlantedLayerErrors, OneBitOfEachStage) {
  ASSERT_EQ(problem(right_), "");
  for (auto stage : {&DeviceAnswer::intermediate, &DeviceAnswer::rows, &DeviceAnswer::out}) {
    DeviceAnswer got = right_;
    (got.*stage)[(got.*stage).size() / 3] ^= 1u;
    EXPECT_NE(problem(got), "");
  }
}

TEST_F(PlantedLayerErrors, ANeighboursElement) {
  for (auto stage : {&DeviceAnswer::intermediate, &DeviceAnswer::rows, &DeviceAnswer::out}) {
    DeviceAnswer got = right_;
    std::vector<uint16_t>& values = got.*stage;
    const auto place = std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>());
    ASSERT_NE(place, values.end());
    *place = *(place + 1);
    EXPECT_NE(problem(got), "");
  }
}

TEST_F(PlantedLayerErrors, LostProducts) {
  ExactCase c = case_;  // one element of K of every token
  for (size_t token = 0; token < static_cast<size_t>(c.num_tokens); ++token)
    c.x[token * static_cast<size_t>(c.config.hidden_size) + 17] = 0;
  EXPECT_NE(problem(runner_.run(c)), "");
}

TEST_F(PlantedLayerErrors, OrderOfK) {
  // Two instructions' worth of K change places in tokens and weights: the same products, summed in another order.
  ExactCase c = case_;
  for (auto* values : {&c.x, &c.gate_up}) {
    for (auto row = values->begin(); row != values->end(); row += c.config.hidden_size)
      std::swap_ranges(row, row + 16, row + 32);
  }
  EXPECT_NE(problem(runner_.run(c)), "");
}

TEST_F(PlantedLayerErrors, AWrongRounding) {
  const auto cut = [](const Activation& a, const float* gate, const float* up, float* h, size_t count) {
    moe::exact_activation(a, gate, up, h, count);
    for (size_t i = 0; i < count; ++i) h[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(h[i]) & 0xFFFFE000u);
  };
  EXPECT_NE(problem_of(case_, right_, layer_, layer_.intermediate(cut)), "");
  EXPECT_GT(fuzz_layers(1, 20, ExactKinds::host, cut).differing, 0);  // the count of the many layers sees it too
}

TEST(MoeExact, FuzzedLayers) { expect_equal_bits(fuzz_layers(1, 5000, ExactKinds::host, moe::exact_activation), 5000); }

// SiLU, GELU, clamped SwiGLU: the device evaluates the activation of the model's products, the rest is the host's.
TEST(MoeExact, FuzzedLayersWithApproximateActivations) {
  DeviceActivation activation;
  expect_equal_bits(fuzz_layers(1, 1000, ExactKinds::any, activation.function()), 1000);
}

// A case of the fixture, copied to the host, some of its tokens.
struct OnHost {
  moe::LayerConfig config;
  std::vector<uint16_t> x, gate_up, down, gate_up_bias, down_bias;
  std::vector<int32_t> ids;
  std::vector<float> topk_weights;
  int32_t num_tokens = 0;

  OnHost(LayerRun& run, const LayerCase& c, const std::vector<int32_t>& tokens) : config(run.config()) {
    const auto copied = [](const void* from, size_t count) {
      std::vector<uint16_t> to(count);
      TESSERA_CUDA_CHECK(cudaMemcpy(to.data(), from, count * 2, cudaMemcpyDeviceToHost));
      return to;
    };
    const auto h = static_cast<size_t>(c.hidden), i = static_cast<size_t>(c.intermediate),
               e = static_cast<size_t>(c.experts), k = static_cast<size_t>(c.top_k), halves = size_t{c.gated ? 2u : 1u};
    const moe::LayerWeights weights = run.weights();
    gate_up = copied(weights.gate_up, e * halves * i * h);
    down = copied(weights.down, e * h * i);
    if (c.bias) gate_up_bias = copied(weights.gate_up_bias, e * halves * i);
    if (c.bias) down_bias = copied(weights.down_bias, e * h);
    const auto all_x = copied(run.inputs().x, static_cast<size_t>(c.tokens) * h);
    const auto all_weights = run.topk_weights().download<float>(static_cast<size_t>(c.tokens) * k);
    const auto all_ids = run.host_ids();
    for (const int32_t token : tokens) {
      const auto t = static_cast<size_t>(token);
      x.insert(x.end(), &all_x[t * h], &all_x[t * h] + h);
      ids.insert(ids.end(), &all_ids[t * k], &all_ids[t * k] + k);
      topk_weights.insert(topk_weights.end(), &all_weights[t * k], &all_weights[t * k] + k);
    }
    num_tokens = static_cast<int32_t>(tokens.size());
  }
  moe::LayerWeights weights() const {
    return {gate_up.data(), down.data(), gate_up_bias.empty() ? nullptr : gate_up_bias.data(),
            down_bias.empty() ? nullptr : down_bias.data()};
  }
  moe::LayerInputs inputs() const {
    moe::LayerInputs in;
    in.x = x.data();
    in.topk_ids = ids.data();
    in.topk_weights = topk_weights.data();
    in.num_tokens = num_tokens;
    return in;
  }
};

// What a row of tokens gives does not depend on the others, so as many are judged as time allows.
void expect_exact(const LayerCase& c, int max_tokens, ThreadPool& threads, DeviceActivation& activation) {
  LayerRun run(c);
  const auto got = run.run();
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < std::min(c.tokens, max_tokens); ++i)
    tokens.push_back(static_cast<int32_t>(int64_t{i} * c.tokens / std::min(c.tokens, max_tokens)));
  const OnHost host(run, c, tokens);
  const auto expected = ExactLayer(host.config, host.weights(), host.inputs(), &threads).out(activation.function());
  std::vector<uint16_t> sampled;
  for (const int32_t token : tokens) {
    const auto begin = got.begin() + static_cast<ptrdiff_t>(token) * c.hidden;
    sampled.insert(sampled.end(), begin, begin + c.hidden);
  }
  EXPECT_EQ(difference_of("out of the sampled tokens", sampled, expected, c.hidden), "") << c;
}

// Larger than the battery's, which battery_test.cc goes through.
std::vector<LayerCase> larger_cases() {
  std::vector<LayerCase> cases = {{1024, 512, 2, 1, 300}};
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const char* routing : {"balanced", "best", "worst", "last", "zipf", "random", "foreign", "any"})
      cases.push_back({512, 1024, 16, 4, 500, routing, dtype});
  }
  for (const int experts : {1, 7, 63, 64, 65, 256, 257, 1024})
    cases.push_back({64, 512, experts, std::min(experts, 2), 200});
  for (const int top_k : {8, 17, 32}) cases.push_back({64, 512, 32, top_k, 60});
  return cases;
}

TEST(MoeExact, LargerCases) {
  ThreadPool threads(available_processors());
  DeviceActivation activation;
  for (const LayerCase& c : larger_cases()) expect_exact(c, 24, threads, activation);
}

// The widths of published models, few experts, sampled tokens: long sums over K.
TEST(MoeExact, SampledTokensOfRealShapes) {
  ThreadPool threads(available_processors());
  DeviceActivation activation;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    expect_exact({2048, 768, 16, 8, 2000, "random", dtype}, 6, threads, activation);  // Qwen3-30B-A3B
    expect_exact({7168, 2048, 4, 2, 700, "random", dtype}, 4, threads, activation);   // DeepSeek-V3
    expect_exact({2880, 2880, 4, 2, 500, "random", dtype}, 4, threads, activation);   // gpt-oss
    expect_exact({4096, 14336, 2, 1, 300, "random", dtype}, 2, threads, activation);  // Mixtral 8x7B
  }
}

}  // namespace
}  // namespace tessera::testing
