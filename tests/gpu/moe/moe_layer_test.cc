// The layer against the fp64 reference by the numeric policy, and its promises: same bits for any grid, order and
// batch.
#include "cuda/core/stream.h"
#include "gpu/captured_graph.h"
#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

TEST(MoeLayer, Smallest) { expect_right({64, 64, 1, 1, 1, "one"}); }

TEST(MoeLayer, OneTile) { expect_right({256, 128, 1, 1, 128, "one"}); }

TEST(MoeLayer, SeveralStages) { expect_right({1024, 512, 2, 1, 300, "random"}); }

TEST(MoeLayer, BothTypesAllRoutings) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const char* routing : {"balanced", "best", "worst", "one", "zipf", "random", "bad", "duplicate"}) {
      // "one" with several slots would sum the same row again and again, and its rounding errors with it. 1024 columns
      // between the products: the intermediate that rounds the other way than the reference's must not weigh on a row's
      // norm.
      expect_right({512, 1024, 16, routing == std::string("one") ? 1 : 4, 500, routing, dtype});
    }
  }
}

TEST(MoeLayer, TailsOfColumnsAndK) {
  for (const int hidden : {8, 16, 56, 72, 136, 200, 264, 520}) {
    for (const int intermediate : {8, 24, 64, 120, 136, 264}) expect_right({hidden, intermediate, 3, 2, 70, "random"});
  }
}

TEST(MoeLayer, EveryNumberOfTokens) {
  LayerCase c{128, 64, 4, 2, 300, "random"};
  for (c.tokens = 0; c.tokens <= 300; ++c.tokens) expect_right(c);
  for (const int tokens : {127, 128, 129, 255, 256, 257, 511, 512, 513}) {
    c.tokens = tokens;
    c.routing = "one";
    c.top_k = 1;
    expect_right(c);
  }
}

TEST(MoeLayer, EveryNumberOfExpertsAndSlots) {
  for (const int experts : {1, 2, 3, 5, 7, 8, 12, 60, 63, 64, 65, 128, 160, 192, 255, 256, 257, 384, 512, 1024}) {
    expect_right({64, 512, experts, std::min(experts, 2), 200, "random"});
  }
  for (int top_k = 1; top_k <= 32; ++top_k) expect_right({64, 512, 32, top_k, 60, "random"});
}

TEST(MoeLayer, WeightsBeyondTwoToTheThirtyOne) {
  // gate_up holds 2.7e9 elements; every token goes to the last expert, whose offsets need 33 bits.
  LayerCase c{8192, 8192, 20, 1, 40, "one"};
  LayerRun run(c);
  EXPECT_EQ(run.judge(run.run(), run.reference()), "");
}

TEST(MoeLayer, Activations) {
  for (const bool gated : {true, false}) {
    for (int kind = 0; kind <= static_cast<int>(ActivationKind::clamped_swiglu); ++kind) {
      const auto activation = static_cast<ActivationKind>(kind);
      if (gated ? activation == ActivationKind::relu_squared : activation == ActivationKind::clamped_swiglu) continue;
      for (const bool bias : {false, true}) {
        expect_right({256, 200, 5, 2, 150, "random", DType::bf16, gated, {activation, 1.702f, 1.0f, 7.0f}, bias});
      }
    }
  }
}

TEST(MoeLayer, ExpertShardSkipsForeignIds) {
  LayerCase c{256, 256, 8, 4, 200, "random"};
  c.first_expert = 5;
  c.ids_are_64_bit = true;
  expect_right(c);
}

TEST(MoeLayer, TokenWithoutExpertsIsPlusZero) {
  LayerCase c{256, 256, 8, 2, 50, "random"};
  LayerRun run(c);
  run.set_ids(std::vector<int32_t>(100, -1));
  for (const uint16_t bits : run.run()) ASSERT_EQ(bits, 0);
}

TEST(MoeLayer, NoTokensLaunchesNothing) {
  const moe::CudaLayer layer({64, 64, 2, 1, DType::bf16, true, {}, 0},
                             {reinterpret_cast<void*>(64), reinterpret_cast<void*>(64)});
  layer.run({}, nullptr, 0, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(MoeLayer, SameBitsForAnyGridClusterAndOrder) {
  for (const char* routing : {"random", "worst", "zipf"}) {
    LayerRun run({576, 320, 24, 4, 900, routing});
    const auto expected = run.run();
    EXPECT_EQ(run.judge(expected, run.reference()), "");
    for (const int ctas : {1, 2, 7, 66, 78, 114, 132, 500}) {
      for (const int cluster : {1, 2}) {
        for (const auto order : {batching::TaskOrder::natural, batching::TaskOrder::interleaved}) {
          EXPECT_EQ(run.run({order, ctas, cluster, ctas % 3}), expected) << routing << " " << ctas << " " << cluster;
        }
      }
    }
  }
}

TEST(MoeLayer, BatchInvariant) {
  // The rows of a large batch, computed in a batch of 3, have the same bits.
  LayerCase large{512, 256, 8, 2, 700, "random"};
  LayerRun whole(large);
  const auto expected = whole.run();
  LayerCase small = large;
  small.tokens = 3;
  LayerRun part(small);
  auto ids = whole.host_ids();
  ids.resize(6);
  part.set_ids(ids);
  part.topk_weights().upload(whole.topk_weights().download<float>(6));
  const auto got = part.run();
  EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin()));
}

TEST(MoeLayer, ThousandLaunchesSameBits) {
  LayerRun run({512, 256, 32, 4, 600, "zipf"});
  const auto expected = run.run();
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(600));
  for (int n = 0; n < 1000; ++n) {
    layer.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr);
    if (n % 50 == 49) {
      ASSERT_EQ(run.out().download<uint16_t>(expected.size()), expected) << n;
      run.out().poison();
    }
  }
}

TEST(MoeLayer, IntegersAreExact) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    LayerCase c{512, 128, 4, 2, 333, "random", dtype, true, {ActivationKind::relu}};
    LayerRun run(c);
    fill_integers(dtype, run.x(), size_t{333} * 512, 1, 98, 11);
    fill_integers(dtype, run.gate_up(), size_t{4} * 256 * 512, 1, 50, 12);
    fill_integers(dtype, run.down(), size_t{4} * 512 * 128, 2, 0, 13);
    run.topk_weights().upload(std::vector<float>(666, 0.5f));
    const auto got = run.run();
    const auto ref = run.reference();
    for (size_t i = 0; i < got.size(); ++i) {
      const auto expected = static_cast<float>(ref.out[i]);
      const uint16_t bits = dtype == DType::bf16 ? f32_to_bf16(expected) : f32_to_f16(expected);
      ASSERT_TRUE(got[i] == bits || (expected == 0.0f && (got[i] & 0x7FFF) == 0))
          << i << " " << run.value(got[i]) << " " << expected;
    }
  }
}

TEST(MoeLayer, JudgeSeesPlantedErrors) {
  LayerCase c{512, 256, 8, 2, 200, "random"};
  LayerRun run(c);
  const auto ref = run.reference();
  const auto right = run.run();
  ASSERT_EQ(run.judge(right, ref), "");
  EXPECT_NE(run.judge(std::vector<uint16_t>(right.size(), 0), ref), "");
  auto swapped = right;
  std::swap_ranges(swapped.begin(), swapped.begin() + 512, swapped.begin() + 512);
  EXPECT_NE(run.judge(swapped, ref), "");
  auto patched = right;
  for (int r = 0; r < 128; ++r) {
    for (int col = 0; col < 32; ++col) patched[(r + 8) * 512 + col + 64] = patched[r * 512 + col];
  }
  EXPECT_NE(run.judge(patched, ref), "");
  auto ids = run.host_ids();
  for (int32_t& id : ids) {
    if (id == 3) id = -1;
  }
  run.set_ids(ids);
  EXPECT_NE(run.judge(run.run(), ref), "");  // a dropped expert
}

TEST(MoeLayer, GraphReplaysWithChangedRouting) {
  LayerRun run({256, 256, 16, 2, 256, "random"});
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(256));
  const cuda::Stream owned(cudaStreamDefault);
  cudaStream_t stream = owned.get();
  const CapturedGraph graph(stream, [&] { layer.run(run.inputs(), workspace.data(), workspace.bytes(), stream); });
  for (const char* routing : {"random", "one", "worst", "bad", "balanced"}) {
    run.set_ids(make_ids(routing, 256, 2, 16, 3));
    run.out().poison();
    graph.replay(stream);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    EXPECT_EQ(run.judge(run.out().download<uint16_t>(size_t{256} * 256), run.reference()), "") << routing;
  }
}

TEST(MoeLayer, BadArgumentsNameThemselves) {
  LayerRun run({64, 64, 4, 2, 8, "random"});
  auto expect_error = [](auto&& call, const char* word) {
    try {
      call();
      FAIL() << word;
    } catch (const std::exception& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  auto config = run.config();
  config.hidden_size = 60;
  expect_error([&] { moe::CudaLayer(config, run.weights()); }, "hidden_size");
  config = run.config();
  config.top_k = 33;
  expect_error([&] { moe::CudaLayer(config, run.weights()); }, "top_k");
  config = run.config();
  config.num_experts = 1025;
  expect_error([&] { moe::CudaLayer(config, run.weights()); }, "num_experts");
  config = run.config();
  config.dtype = DType::f32;
  expect_error([&] { moe::CudaLayer(config, run.weights()); }, "dtype");
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(8));
  expect_error([&] { layer.run(run.inputs(), workspace.data(), workspace.bytes() - 1, nullptr); }, "workspace");
  auto inputs = run.inputs();
  inputs.x = static_cast<const char*>(inputs.x) + 2;
  expect_error([&] { layer.run(inputs, workspace.data(), workspace.bytes(), nullptr); }, "x");
  inputs = run.inputs();
  inputs.topk_weights = nullptr;
  expect_error([&] { layer.run(inputs, workspace.data(), workspace.bytes(), nullptr); }, "topk_weights");
}

}  // namespace
}  // namespace tessera::testing
