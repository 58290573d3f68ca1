// What the battery (battery_test.cc) is too small for: sweeps at larger sizes against the fp64 reference, and the
// layer's promises, same bits for any grid, order and batch.
#include "cuda/core/stream.h"
#include "gpu/captured_graph.h"
#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

TEST(MoeLayer, SeveralStages) { expect_right({1024, 512, 2, 1, 300, "random"}); }

TEST(MoeLayer, BothTypesAllRoutings) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const char* routing : {"balanced", "best", "worst", "last", "zipf", "random", "foreign", "any"}) {
      // "last" with several slots would sum the same row again and again, and its rounding errors with it. 1024 columns
      // between the products: the intermediate that rounds the other way than the reference's must not weigh on a row's
      // norm.
      expect_right({512, 1024, 16, routing == std::string("last") ? 1 : 4, 500, routing, dtype});
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
    c.routing = "last";
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
  LayerCase c{8192, 8192, 20, 1, 40, "last"};
  LayerRun run(c);
  EXPECT_EQ(run.judge(run.run(), run.reference()), "");
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

TEST(MoeLayer, GraphReplaysWithChangedRouting) {
  LayerRun run({256, 256, 16, 2, 256, "random"});
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(256));
  const cuda::Stream owned(cudaStreamDefault);
  cudaStream_t stream = owned.get();
  const CapturedGraph graph(stream, [&] { layer.run(run.inputs(), workspace.data(), workspace.bytes(), stream); });
  for (const char* routing : {"random", "last", "worst", "foreign", "balanced"}) {
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
