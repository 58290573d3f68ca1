// The router on the device: ids and weights have the host's bits, whatever the logits hold.
#include <bit>
#include <cstring>

#include "cuda/core/stream.h"
#include "gpu/captured_graph.h"
#include "gpu/moe/gpu_fixture.h"
#include "tessera/core/buffer.h"
#include "tessera/core/error.h"
#include "tessera/moe/cuda_router.h"

namespace tessera::testing {
namespace {

constexpr RouterKind kKinds[] = {RouterKind::softmax_topk, RouterKind::topk_softmax,
                                 RouterKind::softmax_topk_renormalize, RouterKind::sigmoid_grouped,
                                 RouterKind::sigmoid_renormalize};
constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

/// What a router gives, as bits.
struct Routed {
  std::vector<int32_t> ids;
  std::vector<uint32_t> weights;
  int32_t num_nan_rows = 0;

  friend bool operator==(const Routed&, const Routed&) = default;
};

/// First difference of `got` from `expected`; empty when there is none.
std::string difference(const Routed& got, const Routed& expected, int top_k) {
  for (size_t i = 0; i < expected.ids.size(); ++i) {
    const std::string place =
        str_cat("token ", i / static_cast<size_t>(top_k), " slot ", i % static_cast<size_t>(top_k));
    if (got.ids[i] != expected.ids[i]) return str_cat(place, ": id ", got.ids[i], ", expected ", expected.ids[i]);
    if (got.weights[i] != expected.weights[i]) {
      return str_cat(place, ": weight ", std::bit_cast<float>(got.weights[i]), ", expected ",
                     std::bit_cast<float>(expected.weights[i]), " (bits ", got.weights[i], " and ", expected.weights[i],
                     ")");
    }
  }
  if (got.num_nan_rows != expected.num_nan_rows)
    return str_cat(got.num_nan_rows, " rows of NaN, expected ", expected.num_nan_rows);
  return got == expected ? "" : "different sizes";
}

/// Rows of every sort, in turns: normal, few different values (ties), numbers among NaNs, infinities, all NaN, all
/// -inf, zeros of both signs, large numbers.
std::vector<float> hard_logits(int tokens, int experts, uint32_t seed) {
  std::vector<float> logits(static_cast<size_t>(tokens) * static_cast<size_t>(experts));
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto dice = rng();
    const float number = normal(rng);
    switch (i / static_cast<size_t>(experts) % 10) {
      case 0: logits[i] = std::round(number); break;
      case 1: logits[i] = dice % 3 == 0 ? NAN : number; break;
      case 2: logits[i] = dice % 4 == 0 ? INFINITY : dice % 4 == 1 ? -INFINITY : number; break;
      case 3: logits[i] = dice % 8 == 0 ? number : NAN; break;
      case 4: logits[i] = dice % 5 == 0 ? -NAN : dice % 5 == 1 ? INFINITY : std::round(number); break;
      case 5: logits[i] = NAN; break;
      case 6: logits[i] = -INFINITY; break;
      case 7: logits[i] = dice % 2 == 0 ? 0.0f : -0.0f; break;
      case 8: logits[i] = number * 1e4f; break;
      default: logits[i] = number; break;
    }
  }
  return logits;
}

/// `values` in the type, as bytes.
std::vector<uint8_t> encoded(const std::vector<float>& values, DType dtype) {
  std::vector<uint8_t> bytes(values.size() * dtype_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const uint16_t bits = dtype == DType::bf16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}

class RouterRun {
 public:
  RouterRun(const RouterConfig& config, int tokens, const std::vector<float>& logits, const std::vector<float>& bias)
      : config_(config), tokens_(tokens), logits_(encoded(logits, config.logits_dtype)), bias_(bias) {}

  Routed on_host() const {
    Routed routed = empty();
    std::vector<float> weights(routed.weights.size());
    // Host memory as aligned as the contract asks for.
    Buffer<uint8_t> logits(logits_.size());
    Buffer<float> bias(bias_.size());
    std::copy(logits_.begin(), logits_.end(), logits.begin());
    std::copy(bias_.begin(), bias_.end(), bias.begin());
    moe::route(config_, {logits.data(), bias.data(), routed.ids.data(), weights.data(), &routed.num_nan_rows, tokens_});
    std::transform(weights.begin(), weights.end(), routed.weights.begin(),
                   [](float weight) { return std::bit_cast<uint32_t>(weight); });
    return routed;
  }

  Routed on_device(cudaStream_t stream = nullptr) const {
    Routed routed = empty();
    GuardedBuffer logits(logits_.size()), bias(bias_.size() * sizeof(float)), ids(routed.ids.size() * sizeof(int32_t)),
        weights(routed.weights.size() * sizeof(float)), nan_rows(sizeof(int32_t));
    logits.upload(logits_);
    bias.upload(bias_);
    nan_rows.upload(std::vector<int32_t>{0});
    const auto* device_bias = bias_.empty() ? nullptr : static_cast<const float*>(bias.data());
    moe::cuda_route(config_,
                    {logits.data(), device_bias, static_cast<int32_t*>(ids.data()), static_cast<float*>(weights.data()),
                     static_cast<int32_t*>(nan_rows.data()), tokens_},
                    stream);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    EXPECT_TRUE(ids.guards_intact() && weights.guards_intact() && nan_rows.guards_intact());
    EXPECT_EQ(logits.download<uint8_t>(logits_.size()), logits_);
    routed.ids = ids.download<int32_t>(routed.ids.size());
    routed.weights = weights.download<uint32_t>(routed.weights.size());
    routed.num_nan_rows = nan_rows.download<int32_t>(1)[0];
    return routed;
  }

 private:
  Routed empty() const {
    const size_t slots = static_cast<size_t>(tokens_) * static_cast<size_t>(config_.top_k);
    return {std::vector<int32_t>(slots), std::vector<uint32_t>(slots), 0};
  }

  RouterConfig config_;
  int tokens_;
  std::vector<uint8_t> logits_;
  std::vector<float> bias_;
};

enum class Bias : uint8_t { none, numbers, hard };

/// hard: with NaNs and infinities.
std::vector<float> make_bias(Bias bias, int experts) {
  if (bias == Bias::none) return {};
  std::mt19937 rng(8);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  std::vector<float> values(static_cast<size_t>(experts));
  for (float& value : values) {
    const auto dice = rng() % 12;
    value = dice < 3 ? 0.0f : normal(rng);
    if (bias == Bias::hard && dice >= 9) value = dice == 9 ? NAN : dice == 10 ? -INFINITY : INFINITY;
  }
  return values;
}

void expect_host_bits(const RouterConfig& config, int tokens, Bias bias = Bias::none) {
  const RouterRun run(config, tokens, hard_logits(tokens, config.num_experts, 3), make_bias(bias, config.num_experts));
  EXPECT_EQ(difference(run.on_device(), run.on_host(), config.top_k), "")
      << "kind " << static_cast<int>(config.kind) << " E " << config.num_experts << " k " << config.top_k << " T "
      << tokens << " groups " << config.topk_groups << " of " << config.num_groups << " bias " << static_cast<int>(bias)
      << " " << dtype_name(config.logits_dtype);
}

RouterConfig make_config(RouterKind kind, int experts, int top_k, DType dtype = DType::f32) {
  RouterConfig config;
  config.kind = kind;
  config.num_experts = experts;
  config.top_k = top_k;
  config.logits_dtype = dtype;
  config.scale = kind == RouterKind::sigmoid_grouped ? 2.5f : 1.0f;
  return config;
}

TEST(MoeRouter, EveryNumberOfExperts) {
  for (const int experts : {1, 2, 3, 8, 60, 64, 65, 128, 256, 257, 512, 1024}) {
    for (const RouterKind kind : kKinds) {
      for (const DType dtype : kTypes) expect_host_bits(make_config(kind, experts, std::min(8, experts), dtype), 43);
    }
  }
}

TEST(MoeRouter, EveryTopK) {
  for (const int experts : {32, 65, 300}) {
    for (int top_k = 1; top_k <= 32; ++top_k) {
      for (const RouterKind kind : kKinds) expect_host_bits(make_config(kind, experts, top_k, DType::bf16), 21);
    }
  }
}

TEST(MoeRouter, AllExpertsChosen) {
  for (int experts = 1; experts <= 32; ++experts) {
    for (const RouterKind kind : kKinds) expect_host_bits(make_config(kind, experts, experts), 20);
  }
}

TEST(MoeRouter, EveryNumberOfTokens) {
  for (const int tokens : {0, 1, 2, 7, 8, 9, 31, 33, 300, 4096}) {
    for (const RouterKind kind : kKinds) expect_host_bits(make_config(kind, 128, 8, DType::bf16), tokens);
  }
}

TEST(MoeRouter, GroupsOfEverySize) {
  const int groups[][4] = {{256, 8, 4, 8},       {256, 8, 1, 32},     {128, 128, 32, 32}, {60, 12, 3, 6},
                           {1024, 512, 100, 32}, {1024, 1024, 40, 8}, {8, 8, 8, 8},       {192, 2, 1, 32},
                           {257, 257, 9, 9},     {1024, 1, 1, 8},     {512, 16, 16, 10},  {66, 33, 32, 16}};
  for (const auto& [experts, num_groups, topk_groups, top_k] : groups) {
    for (const DType dtype : kTypes) {
      RouterConfig config = make_config(RouterKind::sigmoid_grouped, experts, top_k, dtype);
      config.num_groups = num_groups;
      config.topk_groups = topk_groups;
      for (const Bias bias : {Bias::none, Bias::numbers, Bias::hard}) expect_host_bits(config, 33, bias);
    }
  }
}

// D1, D3: rows of NaN next to others leave the others' bits alone; ids stay distinct and in range.
TEST(MoeRouter, D1_NanRowsLeaveOthersAlone) {
  const int tokens = 300, experts = 64, top_k = 8;
  for (const RouterKind kind : kKinds) {
    std::mt19937 rng(4);
    std::normal_distribution<float> normal;
    std::vector<float> logits(static_cast<size_t>(tokens) * experts);
    for (float& l : logits) l = normal(rng);
    const RouterConfig config = make_config(kind, experts, top_k);
    const Routed clean = RouterRun(config, tokens, logits, {}).on_device();
    EXPECT_EQ(clean.num_nan_rows, 0);
    for (size_t i = 0; i < logits.size(); ++i) {
      const size_t token = i / experts;
      if (token % 3 == 0 || (token % 3 == 1 && token % 2 == 0 && i % 2 == 0)) logits[i] = NAN;
    }
    const Routed spoiled = RouterRun(config, tokens, logits, {}).on_device();
    EXPECT_EQ(spoiled.num_nan_rows, 100);
    for (size_t i = 0; i < clean.ids.size(); ++i) {
      const size_t token = i / top_k;
      const bool touched = token % 3 == 0 || (token % 3 == 1 && token % 2 == 0);
      if (!touched) {
        ASSERT_TRUE(spoiled.ids[i] == clean.ids[i] && spoiled.weights[i] == clean.weights[i]) << token;
      }
      if (token % 3 == 0) {
        ASSERT_EQ(spoiled.ids[i], static_cast<int32_t>(i % top_k)) << token;
        ASSERT_EQ(spoiled.weights[i], 0x7FC00000u) << token;
      }
      ASSERT_TRUE(spoiled.ids[i] >= 0 && spoiled.ids[i] < experts);
      for (size_t j = token * top_k; j < i; ++j) ASSERT_NE(spoiled.ids[j], spoiled.ids[i]) << token;
    }
  }
}

TEST(MoeRouter, BadRouterArgumentsNameThemselves) {
  GuardedBuffer memory(4096);
  auto* const floats = static_cast<float*>(memory.data());
  auto* const ints = static_cast<int32_t*>(memory.data());
  const RouterConfig good = make_config(RouterKind::topk_softmax, 64, 8);
  const auto error = [](const RouterConfig& config, const moe::RouterInputs& inputs) -> std::string {
    try {
      moe::cuda_route(config, inputs, nullptr);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  RouterConfig config = good;
  config.top_k = 33;
  EXPECT_NE(error(config, {floats, nullptr, ints, floats, nullptr, 1}).find("top_k"), std::string::npos);
  config = good;
  config.num_experts = 1025;
  EXPECT_NE(error(config, {floats, nullptr, ints, floats, nullptr, 1}).find("num_experts"), std::string::npos);
  EXPECT_NE(error(good, {nullptr, nullptr, ints, floats, nullptr, 1}).find("logits"), std::string::npos);
  EXPECT_NE(error(good, {floats + 1, nullptr, ints, floats, nullptr, 1}).find("logits"), std::string::npos);
  EXPECT_NE(error(good, {floats, nullptr, nullptr, floats, nullptr, 1}).find("topk_ids"), std::string::npos);
  EXPECT_NE(error(good, {floats, nullptr, ints, nullptr, nullptr, 1}).find("topk_weights"), std::string::npos);
  EXPECT_NE(error(good, {floats, nullptr, ints, floats, nullptr, -1}).find("num_tokens"), std::string::npos);
  EXPECT_EQ(error(good, {nullptr, nullptr, nullptr, nullptr, nullptr, 0}), "no error");
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (const uint8_t byte : memory.download<uint8_t>(4096)) ASSERT_EQ(byte, GuardedBuffer::kPoisonByte);
}

// C2, C3: logits of more than 2^31 elements; a few rows around the place where 32 bits end.
TEST(MoeRouter, C2_LogitsBeyondTwoToTheThirtyOne) {
  const int experts = 1024, top_k = 8, tokens = (1 << 21) + 3;
  RouterConfig config = make_config(RouterKind::topk_softmax, experts, top_k, DType::bf16);
  GuardedBuffer logits(size_t{2} * tokens * experts), ids(size_t{4} * tokens * top_k),
      weights(size_t{4} * tokens * top_k);
  fill_normal(DType::bf16, logits.data(), logits.bytes() / 2, 1.0f, 6);
  moe::cuda_route(
      config,
      {logits.data(), nullptr, static_cast<int32_t*>(ids.data()), static_cast<float*>(weights.data()), nullptr, tokens},
      nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(ids.guards_intact() && weights.guards_intact());
  for (const int token : {0, (1 << 20) - 1, 1 << 20, (1 << 21) - 1, 1 << 21, tokens - 1}) {
    Buffer<uint16_t> row(experts);
    const auto* source = static_cast<const uint16_t*>(logits.data()) + static_cast<size_t>(token) * experts;
    TESSERA_CUDA_CHECK(cudaMemcpy(row.data(), source, experts * 2, cudaMemcpyDeviceToHost));
    int32_t expected_ids[top_k], got_ids[top_k];
    float expected_weights[top_k], got_weights[top_k];
    moe::route(config, {row.data(), nullptr, expected_ids, expected_weights, nullptr, 1});
    const size_t place = static_cast<size_t>(token) * top_k;
    TESSERA_CUDA_CHECK(
        cudaMemcpy(got_ids, static_cast<int32_t*>(ids.data()) + place, sizeof got_ids, cudaMemcpyDeviceToHost));
    TESSERA_CUDA_CHECK(cudaMemcpy(got_weights, static_cast<float*>(weights.data()) + place, sizeof got_weights,
                                  cudaMemcpyDeviceToHost));
    EXPECT_EQ(std::memcmp(got_ids, expected_ids, sizeof got_ids), 0) << token;
    EXPECT_EQ(std::memcmp(got_weights, expected_weights, sizeof got_weights), 0) << token;
  }
}

// The layer takes what the router has just written, without a host between them.
TEST(MoeRouter, RoutesForALayerInOneGraph) {
  const LayerCase c{128, 512, 16, 4, 200, "random"};
  LayerRun run(c);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(c.tokens)), ids(size_t{4} * 200 * 4), logits(size_t{4} * 200 * 16);
  auto* const weights = static_cast<float*>(run.topk_weights().data());
  auto inputs = run.inputs();
  inputs.topk_ids = ids.data();
  const cuda::Stream owned(cudaStreamDefault);
  cudaStream_t stream = owned.get();
  const CapturedGraph graph(stream, [&] {
    moe::cuda_route(make_config(RouterKind::topk_softmax, 16, 4),
                    {logits.data(), nullptr, static_cast<int32_t*>(ids.data()), weights, nullptr, c.tokens}, stream);
    layer.run(inputs, workspace.data(), workspace.bytes(), stream);
  });
  std::vector<int32_t> all_tokens(200);
  std::iota(all_tokens.begin(), all_tokens.end(), 0);
  std::mt19937 rng(12);
  std::normal_distribution<float> normal;
  for (int replay = 0; replay < 5; ++replay) {
    std::vector<float> numbers(size_t{200} * 16);
    for (float& number : numbers) number = normal(rng);
    logits.upload(numbers);
    ids.poison();
    run.out().poison();
    graph.replay(stream);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    const auto ref = reference_layer(run.config(), run.weights(), inputs, all_tokens);
    EXPECT_EQ(run.judge(run.out().download<uint16_t>(size_t{200} * 128), ref), "") << replay;
  }
}

TEST(MoeRouter, ComparisonSeesPlantedErrors) {
  const RouterConfig config = make_config(RouterKind::softmax_topk, 64, 4);
  const RouterRun run(config, 20, hard_logits(20, 64, 3), {});
  const Routed right = run.on_device();
  ASSERT_EQ(difference(right, run.on_host(), 4), "");
  Routed wrong = right;
  std::swap(wrong.ids[8], wrong.ids[9]);
  EXPECT_NE(difference(wrong, right, 4), "");
  wrong = right;
  wrong.weights[79] ^= 1u;
  EXPECT_NE(difference(wrong, right, 4), "");
  wrong = right;
  ++wrong.num_nan_rows;
  EXPECT_NE(difference(wrong, right, 4), "");
}

// Small enough for the sanitizers: every number of values a lane, and the grouped path.
TEST(MoeRouterSmall, EveryInstance) {
  for (const int experts : {20, 64, 128, 256, 300, 1000}) {
    expect_host_bits(make_config(RouterKind::softmax_topk, experts, 4, DType::bf16), 11);
    RouterConfig config = make_config(RouterKind::sigmoid_grouped, experts, 4, DType::f16);
    config.num_groups = 4;
    config.topk_groups = 2;
    expect_host_bits(config, 11, Bias::numbers);
  }
}

}  // namespace
}  // namespace tessera::testing
