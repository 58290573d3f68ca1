// Bad input to the CPU layer, message by message, and the Layer that stands over both back ends.
#include "tessera/moe/layer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "moe/run_cpu.h"
#include "tessera/core/error.h"
#include "unit/error_message.h"

namespace tessera::testing {
namespace {

using moe::Device;
using moe::Layer;
using moe::LayerConfig;
using moe::LayerInputs;
using moe::LayerWeights;

class BadInput : public ::testing::Test {
 protected:
  template <class Change>
  std::string config_message(const Change& change) const {
    LayerConfig config = data_.config();
    LayerWeights weights = data_.weights();
    change(config, weights);
    return error_of([&] { const moe::CpuLayer layer(config, weights, 1); });
  }

  template <class Change>
  std::string input_message(const Change& change) {
    LayerInputs inputs = data_.inputs(out_.data());
    void* workspace = workspace_.data();
    change(inputs, workspace);
    out_.poison();
    const std::string message = error_of([&] { layer_.run(inputs, workspace, workspace_.size()); });
    const bool untouched =
        std::all_of(out_.data(), out_.data() + out_.size(), [](std::byte b) { return b == std::byte{0xFF}; });
    EXPECT_EQ(untouched, message != "no error") << message;
    return message;
  }

  static LayerCase layer_case() {
    return {.bias = true, .mapped = 8, .shared_intermediate = 16, .shared_weight = true};
  }

  LayerData data_{layer_case()};
  moe::CpuLayer layer_{data_.config(), data_.weights(), 1};
  GuardedBytes workspace_{layer_.workspace_bytes(65)};
  GuardedBytes out_{size_t{65} * 64 * 2};
};

TEST_F(BadInput, ConfigurationsAreRefusedByName) {
  const auto config = [&](auto change) { return config_message([&](LayerConfig& c, LayerWeights&) { change(c); }); };
  EXPECT_EQ(config([](LayerConfig&) {}), "no error");
  EXPECT_EQ(config([](LayerConfig& c) { c.num_experts = 0; }), "num_experts: got 0, expected 1..1024");
  EXPECT_EQ(config([](LayerConfig& c) { c.num_experts = 1025; }), "num_experts: got 1025, expected 1..1024");
  EXPECT_EQ(config([](LayerConfig& c) { c.top_k = 0; }), "top_k: got 0, expected 1..32");
  EXPECT_EQ(config([](LayerConfig& c) { c.top_k = 33; }), "top_k: got 33, expected 1..32");
  EXPECT_EQ(config([](LayerConfig& c) { c.num_mapped_experts = -1; }),
            "num_mapped_experts: got -1, expected 0..2147483647");
  EXPECT_EQ(config([](LayerConfig& c) { c.shared_intermediate_size = 12; }),
            "shared_intermediate_size: got 12, expected a positive multiple of 8");
  EXPECT_EQ(config([](LayerConfig& c) { c.activation.kind = ActivationKind::relu_squared; }),
            "activation: got relu_squared, expected a gated activation, or gated = false");
  EXPECT_EQ(config([](LayerConfig& c) { c.activation.kind = static_cast<ActivationKind>(7); }),
            "activation: got 7, expected 0..6");
  const auto clamped = [&](bool gated, float alpha, float beta, float limit) {
    return config([=](LayerConfig& c) {
      c.gated = gated;
      c.activation = {ActivationKind::clamped_swiglu, alpha, beta, limit};
    });
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(clamped(true, 1.0f, 0.0f, 7.0f), "no error");
  EXPECT_EQ(clamped(false, 1.0f, 0.0f, 7.0f), "activation: got clamped_swiglu, expected gated = true");
  EXPECT_EQ(clamped(true, nan, 0.0f, 7.0f), "activation alpha: got nan, expected a finite number");
  EXPECT_EQ(clamped(true, 1.0f, nan, 7.0f), "activation beta: got nan, expected a finite number");
  EXPECT_EQ(clamped(true, 1.0f, 0.0f, 0.0f), "activation limit: got 0, expected a positive number");
  EXPECT_EQ(clamped(true, 1.0f, 0.0f, nan), "activation limit: got nan, expected a positive number");
}

TEST_F(BadInput, NumbersOfAnActivationThatHasNoneAreRefusedByName) {
  for (int kind = 0; kind < static_cast<int>(ActivationKind::clamped_swiglu); ++kind) {
    const auto with = [&](float Activation::*number, float value) {
      return config_message([&](LayerConfig& c, LayerWeights&) {
        c.activation = {static_cast<ActivationKind>(kind)};
        c.gated = c.activation.kind != ActivationKind::relu_squared;
        if (number != nullptr) c.activation.*number = value;
      });
    };
    EXPECT_EQ(with(nullptr, 0.0f), "no error") << kind;
    EXPECT_EQ(with(&Activation::alpha, 1.702f), "activation alpha: got 1.702, expected 1: only clamped_swiglu has one");
    EXPECT_EQ(with(&Activation::beta, 1.0f), "activation beta: got 1, expected 0: only clamped_swiglu has one");
    EXPECT_EQ(with(&Activation::limit, 7.0f), "activation limit: got 7, expected 0: only clamped_swiglu has one");
    EXPECT_EQ(with(&Activation::limit, std::numeric_limits<float>::quiet_NaN()),
              "activation limit: got nan, expected 0: only clamped_swiglu has one");
  }
}

TEST_F(BadInput, WeightsAreRefusedByName) {
  const auto weights = [&](auto change) { return config_message([&](LayerConfig&, LayerWeights& w) { change(w); }); };
  const auto missing = [](const std::string& name) { return name + ": got a null pointer, expected host memory"; };
  EXPECT_EQ(weights([](LayerWeights& w) { w.gate_up = nullptr; }), missing("gate_up weight"));
  EXPECT_EQ(weights([](LayerWeights& w) { w.down = nullptr; }), missing("down weight"));
  EXPECT_EQ(weights([](LayerWeights& w) { w.shared_gate_up = nullptr; }), missing("shared gate_up weight"));
  EXPECT_EQ(weights([](LayerWeights& w) { w.shared_down = nullptr; }), missing("shared down weight"));
  EXPECT_EQ(weights([](LayerWeights& w) { w.expert_map = nullptr; }), missing("expert_map"));
  EXPECT_EQ(weights([](LayerWeights& w) { w.gate_up_bias = nullptr; }), "no error");
  EXPECT_EQ(weights([](LayerWeights& w) { w.down_bias = static_cast<const std::byte*>(w.down_bias) + 8; }),
            "down bias: got a misaligned pointer, expected 16-byte alignment");
  EXPECT_EQ(weights([](LayerWeights& w) { w.gate_up_bias = static_cast<const std::byte*>(w.gate_up_bias) + 2; }),
            "gate_up bias: got a misaligned pointer, expected 16-byte alignment");
  EXPECT_EQ(weights([](LayerWeights& w) { w.shared_down = static_cast<const std::byte*>(w.shared_down) + 4; }),
            "shared down weight: got a misaligned pointer, expected 16-byte alignment");
}

TEST_F(BadInput, ArgumentsOfRunAreRefusedByName) {
  const auto inputs = [&](auto change) { return input_message([&](LayerInputs& in, void*&) { change(in); }); };
  const auto missing = [](const std::string& name) { return name + ": got a null pointer, expected host memory"; };
  EXPECT_EQ(inputs([](LayerInputs&) {}), "no error");
  EXPECT_EQ(inputs([](LayerInputs& in) { in.shared_weight = nullptr; }), "no error");
  EXPECT_EQ(inputs([](LayerInputs& in) { in.x = nullptr; }), missing("x"));
  EXPECT_EQ(inputs([](LayerInputs& in) { in.out = nullptr; }), missing("out"));
  EXPECT_EQ(inputs([](LayerInputs& in) { in.topk_ids = nullptr; }), missing("topk_ids"));
  EXPECT_EQ(inputs([](LayerInputs& in) { in.topk_weights = nullptr; }), missing("topk_weights"));
  EXPECT_EQ(inputs([](LayerInputs& in) { in.topk_ids = static_cast<const std::byte*>(in.topk_ids) + 2; }),
            "topk_ids: got a misaligned pointer, expected 4-byte alignment");
  EXPECT_EQ(inputs([](LayerInputs& in) { in.num_tokens = -1; }), "num_tokens: got -1, expected 0..536870911");
  EXPECT_EQ(inputs([](LayerInputs& in) { in.num_tokens = 536870912; }),
            "num_tokens: got 536870912, expected 0..536870911");
  EXPECT_EQ(input_message([](LayerInputs&, void*& workspace) { workspace = nullptr; }), missing("workspace"));
  EXPECT_EQ(error_of([&] { layer_.workspace_bytes(-1); }), "max_tokens: got -1, expected 0..536870911");
  EXPECT_EQ(error_of([&] { moe::CpuLayer(data_.config(), data_.weights(), -1); }),
            "num_threads: got -1, expected 0..1024");
}

// What a run writes lies over nothing that it reads or writes: its arrays, the layer's own, each other.
TEST_F(BadInput, OverlapsAreRefusedByName) {
  const LayerWeights weights = data_.weights();
  const auto overlap = [](const std::string& name, const std::string& other) {
    return name + ": got memory that overlaps " + other + ", expected memory of its own";
  };
  const auto out_at = [&](const void* place) {
    return input_message([&](LayerInputs& in, void*&) {
      in.num_tokens = 1;  // out is shorter than each of the arrays, and reaches no other
      in.out = const_cast<void*>(place);
    });
  };
  EXPECT_EQ(out_at(data_.inputs().x), overlap("out", "x"));
  EXPECT_EQ(out_at(weights.gate_up), overlap("out", "the gate_up weight"));
  EXPECT_EQ(out_at(weights.down), overlap("out", "the down weight"));
  EXPECT_EQ(out_at(weights.gate_up_bias), overlap("out", "the gate_up bias"));
  EXPECT_EQ(out_at(weights.down_bias), overlap("out", "the down bias"));
  EXPECT_EQ(out_at(weights.shared_gate_up), overlap("out", "the shared gate_up weight"));
  EXPECT_EQ(out_at(weights.shared_down), overlap("out", "the shared down weight"));
  EXPECT_EQ(out_at(workspace_.data()), overlap("workspace", "out"));
}

// Each back end is what Layer calls.
TEST(LayerBackEnd, CpuLayerIsOne) {
  const LayerData data({.tokens = 9});
  const moe::CpuLayer cpu(data.config(), data.weights(), 1);
  const moe::LayerBackEnd& back_end = cpu;
  Buffer<std::byte> workspace(back_end.workspace_bytes(9));
  GuardedBytes out(9 * 64 * 2);
  back_end.run(data.inputs(out.data()), workspace.data(), workspace.size(), nullptr);
  EXPECT_EQ(std::vector<std::byte>(out.data(), out.data() + out.size()), data.run(cpu));
  int nothing = 0;
  EXPECT_EQ(error_of([&] { back_end.run({}, nullptr, 0, reinterpret_cast<CUstream_st*>(&nothing)); }),
            "stream: got a stream, expected none: the layer runs on the CPU");
}

TEST(Layer, OnTheCpuIsTheCpuLayer) {
  const LayerCase c{.tokens = 40, .dtype = DType::f16};
  const LayerData data(c);
  const Layer layer(data.config(), data.weights(), {.device = Device::cpu, .num_threads = 2});
  EXPECT_TRUE(moe::device_available(Device::cpu));
  EXPECT_EQ(layer.device(), Device::cpu);
  EXPECT_EQ(layer.config().hidden_size, 64);
  const moe::CpuLayer cpu(data.config(), data.weights(), 2);
  EXPECT_EQ(layer.workspace_bytes(40), cpu.workspace_bytes(40));
  Buffer<std::byte> workspace(layer.workspace_bytes(40));
  GuardedBytes out(40 * 64 * 2);
  layer.run(data.inputs(out.data()), workspace.data(), workspace.size());
  EXPECT_EQ(std::vector<std::byte>(out.data(), out.data() + out.size()), data.run(cpu));
}

TEST(Layer, RefusesAStreamOnTheCpu) {
  const LayerData data({.tokens = 1});
  const Layer layer(data.config(), data.weights(), {.num_threads = 1});
  int nothing = 0;
  EXPECT_EQ(error_of([&] { layer.run({}, nullptr, 0, reinterpret_cast<CUstream_st*>(&nothing)); }),
            "stream: got a stream, expected none: the layer runs on the CPU");
}

TEST(Layer, ThreadsOnAGpuAreRefusedByName) {
  const LayerData data({});
  EXPECT_EQ(error_of([&] {
              const Layer layer(data.config(), data.weights(), {Device::cuda, 2});
            }),
            "num_threads: got 2, expected 0 with device cuda: only the CPU computes with threads");
}

TEST(Layer, WithoutAGpuSaysWhatIsMissing) {
  if (moe::device_available(Device::cuda)) GTEST_SKIP() << "there is a Hopper GPU; tests/gpu run the layer on it";
  const LayerData data({});
  const std::string message =
      error_of([&] { const Layer layer(data.config(), data.weights(), {.device = Device::cuda}); });
  EXPECT_TRUE(message.starts_with("device cuda: got ")) << message;
  EXPECT_TRUE(message.ends_with(", expected a Hopper GPU and a build with CUDA, or device cpu")) << message;
}

}  // namespace
}  // namespace tessera::testing
