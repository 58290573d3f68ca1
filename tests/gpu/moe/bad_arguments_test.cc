// Arguments that cannot be right are refused before any launch, by name; what is allowed at the edge works.
#include <functional>

#include "gpu/moe/gpu_fixture.h"

namespace tessera::testing {
namespace {

/// `call` must throw an error that starts with `word`, and nothing may have been enqueued that CUDA complains about.
void expect_error(const std::string& word, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << word << ": no error";
  } catch (const std::exception& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, word.size()), word) << error.what();
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << word;
}

template <class T>
T* shifted(T* pointer, int bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + static_cast<uintptr_t>(bytes));
}

const LayerCase kCase{64, 64, 4, 2, 8, "random", DType::bf16, true, {}, true};

// E3 and F8: nothing misaligned reaches a tensor map or a vector load.
TEST(MoeBadArguments, E3_MisalignedPointers) {
  LayerRun run(kCase);
  for (const int bytes : {2, 4, 8}) {
    auto weights = run.weights();
    weights.gate_up = shifted(weights.gate_up, bytes);
    expect_error("gate_up weight: ", [&] { moe::CudaLayer(run.config(), weights); });
    weights = run.weights();
    weights.down = shifted(weights.down, bytes);
    expect_error("down weight: ", [&] { moe::CudaLayer(run.config(), weights); });
    weights = run.weights();
    weights.gate_up_bias = shifted(weights.gate_up_bias, bytes);
    expect_error("gate_up bias: ", [&] { moe::CudaLayer(run.config(), weights); });
    weights = run.weights();
    weights.down_bias = shifted(weights.down_bias, bytes);
    expect_error("down bias: ", [&] { moe::CudaLayer(run.config(), weights); });

    const moe::CudaLayer layer(run.config(), run.weights());
    GuardedBuffer workspace(layer.workspace_bytes(kCase.tokens) + 16);
    auto run_with = [&](const moe::LayerInputs& inputs, void* place) {
      return [&layer, &workspace, inputs, place] { layer.run(inputs, place, workspace.bytes() - 16, nullptr); };
    };
    auto inputs = run.inputs();
    inputs.x = shifted(inputs.x, bytes);
    expect_error("x: ", run_with(inputs, workspace.data()));
    inputs = run.inputs();
    inputs.out = shifted(inputs.out, bytes);
    expect_error("out: ", run_with(inputs, workspace.data()));
    expect_error("workspace: ", run_with(run.inputs(), shifted(workspace.data(), bytes)));
  }
}

TEST(MoeBadArguments, NullPointers) {
  LayerRun run(kCase);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(kCase.tokens));
  const auto run_with = [&](const moe::LayerInputs& inputs) {
    layer.run(inputs, workspace.data(), workspace.bytes(), nullptr);
  };
  auto inputs = run.inputs();
  inputs.x = nullptr;
  expect_error("x: ", [&] { run_with(inputs); });
  inputs = run.inputs();
  inputs.out = nullptr;
  expect_error("out: ", [&] { run_with(inputs); });
  inputs = run.inputs();
  inputs.topk_ids = nullptr;
  expect_error("topk_ids: ", [&] { run_with(inputs); });
  inputs = run.inputs();
  inputs.topk_weights = nullptr;
  expect_error("topk_weights: ", [&] { run_with(inputs); });
  expect_error("workspace: ", [&] { layer.run(run.inputs(), nullptr, workspace.bytes(), nullptr); });
  expect_error("gate_up weight: ", [&] { moe::CudaLayer(run.config(), {nullptr, run.down()}); });
  expect_error("down weight: ", [&] { moe::CudaLayer(run.config(), {run.gate_up(), nullptr}); });
  inputs = run.inputs();
  inputs.num_tokens = -1;
  expect_error("num_tokens: ", [&] { run_with(inputs); });
}

// What a run writes lies over nothing of the layer's own, also where no Layer stands before the CudaLayer.
TEST(MoeBadArguments, OverlapsWithWeights) {
  LayerRun run(kCase);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(kCase.tokens));
  for (const void* weight : {run.weights().gate_up, run.weights().down, run.weights().gate_up_bias}) {
    auto inputs = run.inputs();
    inputs.out = const_cast<void*>(weight);
    expect_error("out: got memory that overlaps the ",
                 [&] { layer.run(inputs, workspace.data(), workspace.bytes(), nullptr); });
  }
  for (void* weight : {run.gate_up(), run.down()}) {  // both larger than the workspace
    expect_error("workspace: got memory that overlaps the ",
                 [&] { layer.run(run.inputs(), weight, workspace.bytes(), nullptr); });
  }
}

// The size is exact: one byte less is refused, and at exactly that size nothing is written beyond.
TEST(MoeBadArguments, WorkspaceOneByteTooSmall) {
  for (const int tokens : {1, 8, 129, 700}) {
    LayerCase c = kCase;
    c.tokens = tokens;
    LayerRun run(c);
    const moe::CudaLayer layer(run.config(), run.weights());
    GuardedBuffer workspace(layer.workspace_bytes(tokens));
    expect_error("workspace: ", [&] { layer.run(run.inputs(), workspace.data(), workspace.bytes() - 1, nullptr); });
    EXPECT_EQ(run.judge(run.run(), run.reference()), "") << c;  // run() uses the exact size between guards
  }
}

// Memory that a run writes is none that it reads, the layer's own weights among it. Addresses alone are compared, so
// that nothing has run when it is refused.
TEST(MoeBadArguments, MemoryThatOverlaps) {
  LayerRun run(kCase);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(kCase.tokens));
  const moe::LayerInputs given = run.inputs();
  const moe::LayerWeights weights = run.weights();
  const auto refused = [&](const char* words, const void* out, const void* place) {
    moe::LayerInputs inputs = given;
    inputs.out = const_cast<void*>(out);
    expect_error(words, [&] { layer.run(inputs, const_cast<void*>(place), workspace.bytes(), nullptr); });
  };
  refused("out: got memory that overlaps x", given.x, workspace.data());
  refused("out: got memory that overlaps the gate_up weight", weights.gate_up, workspace.data());
  refused("out: got memory that overlaps the gate_up weight", shifted(run.gate_up(), 512), workspace.data());
  refused("out: got memory that overlaps the down weight", weights.down, workspace.data());
  refused("workspace: got memory that overlaps ", given.out, given.out);
  // Smaller than what is laid over them: of two neighbours either may be named.
  for (const void* const read :
       {given.topk_ids, static_cast<const void*>(given.topk_weights), weights.gate_up_bias, weights.down_bias}) {
    refused("out: got memory that overlaps ", read, workspace.data());
  }
  for (const void* const read : {given.x, given.topk_ids, static_cast<const void*>(given.topk_weights), weights.gate_up,
                                 weights.down, weights.gate_up_bias, weights.down_bias}) {
    refused("workspace: got memory that overlaps ", given.out, read);
  }
  EXPECT_EQ(run.judge(run.run(), run.reference()), "");
}

TEST(MoeBadArguments, SizesAndTypes) {
  LayerRun run(kCase);
  const auto with = [&](auto&& change) {
    return [&run, change] {
      moe::LayerConfig config = run.config();
      change(config);
      moe::CudaLayer(config, run.weights());
    };
  };
  using Config = moe::LayerConfig;
  for (const int value : {0, -8, 4, 63}) {
    expect_error("hidden_size: ", with([&](Config& c) { c.hidden_size = value; }));
    expect_error("intermediate_size: ", with([&](Config& c) { c.intermediate_size = value; }));
  }
  for (const int value : {0, -1, 33}) expect_error("top_k: ", with([&](Config& c) { c.top_k = value; }));
  for (const int value : {0, -1, 1025}) expect_error("num_experts: ", with([&](Config& c) { c.num_experts = value; }));
  expect_error("first_expert: ", with([](Config& c) { c.first_expert = -1; }));
  expect_error("first_expert: ", with([](Config& c) { c.first_expert = INT32_MAX; }));
  expect_error("dtype: ", with([](Config& c) { c.dtype = DType::f32; }));
  expect_error("activation: ", with([](Config& c) { c.activation.kind = ActivationKind::relu_squared; }));
  expect_error("activation: ", with([](Config& c) {
                 c.gated = false;
                 c.activation.kind = ActivationKind::clamped_swiglu;
               }));
  expect_error("shared_intermediate_size: ", [&] {
    Config config = run.config();
    config.shared_intermediate_size = 72;  // no multiple of the other experts' width
    moe::LayerWeights weights = run.weights();
    weights.shared_gate_up = run.gate_up();
    weights.shared_down = run.down();
    moe::CudaLayer(config, weights);
  });
  expect_error("cluster_size: ", [&] {
    moe::CudaLayer(run.config(), run.weights(), {batching::TaskOrder::natural, 0, 3});
  });
}

// A shard of an expert-parallel model has fewer experts than a token has slots.
TEST(MoeBadArguments, MoreSlotsThanExpertsOfTheShardIsAllowed) {
  LayerCase c{128, 1024, 3, 8, 90, "random"};
  c.first_expert = 4;
  LayerRun run(c);
  run.set_ids(make_ids("random", c.tokens, c.top_k, 12, 5));  // of 12 experts, 4, 5 and 6 are here
  EXPECT_EQ(run.judge(run.run(), run.reference()), "") << c;
}

// Memory of one device, run on another. With one device there is nothing to mix up, and the report says so.
TEST(MoeBadArguments, WrongDevice) {
  int devices = 0;
  TESSERA_CUDA_CHECK(cudaGetDeviceCount(&devices));
  if (devices < 2) {
    RecordProperty("devices", "one device visible: nothing can be mixed up");
    return;
  }
  LayerRun run(kCase);
  const moe::CudaLayer layer(run.config(), run.weights());
  GuardedBuffer workspace(layer.workspace_bytes(kCase.tokens));
  TESSERA_CUDA_CHECK(cudaSetDevice(1));
  expect_error("device: ", [&] { layer.run(run.inputs(), workspace.data(), workspace.bytes(), nullptr); });
  TESSERA_CUDA_CHECK(cudaSetDevice(0));
  EXPECT_EQ(run.judge(run.run(), run.reference()), "");
}

}  // namespace
}  // namespace tessera::testing
