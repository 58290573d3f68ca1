// Layers on the GPU against the host model, bit for bit: no tolerance anywhere.
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
