// A checkpoint on disk, through LoadedLayer, to an output that the fp64 oracle judges.
#include "tessera/checkpoint/load_layer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "io/safetensors.h"
#include "moe/judge.h"
#include "moe/layer_data.h"
#include "tessera/core/check.h"
#include "unit/error_message.h"

namespace tessera::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::error_of;

class LoadLayer : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::path(::testing::TempDir()) / str_cat("checkpoint_", ::testing::UnitTest::GetInstance()->random_seed(), "_",
                                                 ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// The layer of `data` as layer 0 of a Qwen3-MoE model.
  void write(const testing::LayerData& data) const {
    const testing::LayerCase& c = data.layer_case();
    std::ofstream(folder_ / "config.json")
        << "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":1,\"hidden_size\":" << c.hidden
        << ",\"moe_intermediate_size\":" << c.intermediate << ",\"num_experts\":" << c.experts
        << ",\"num_experts_per_tok\":" << c.top_k << ",\"hidden_act\":\"silu\",\"norm_topk_prob\":true}";
    const std::vector<float> gate_up = values(data.gate_up(), c.dtype), down = values(data.down(), c.dtype);
    std::vector<io::TensorToWrite> tensors;
    const auto matrix = static_cast<size_t>(c.hidden) * static_cast<size_t>(c.intermediate);
    for (int expert = 0; expert < c.experts; ++expert) {
      const std::string prefix = str_cat("model.layers.0.mlp.experts.", expert, ".");
      const auto first = static_cast<size_t>(expert) * matrix;
      tensors.push_back({prefix + "gate_proj.weight",
                         c.dtype,
                         {c.intermediate, c.hidden},
                         std::span(gate_up).subspan(2 * first, matrix)});
      tensors.push_back({prefix + "up_proj.weight",
                         c.dtype,
                         {c.intermediate, c.hidden},
                         std::span(gate_up).subspan(2 * first + matrix, matrix)});
      tensors.push_back(
          {prefix + "down_proj.weight", c.dtype, {c.hidden, c.intermediate}, std::span(down).subspan(first, matrix)});
    }
    io::write_safetensors(folder_ / "model.safetensors", tensors);
  }

  static std::vector<float> values(const testing::GuardedBytes& bytes, DType dtype) {
    return testing::values_of({bytes.data(), bytes.data() + bytes.size()}, dtype);
  }

  fs::path folder_;
};

TEST_F(LoadLayer, IsTheLayerThatWasStored) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
    const testing::LayerData data({.hidden = 72, .intermediate = 40, .experts = 5, .tokens = 33, .dtype = dtype});
    write(data);
    const LoadedLayer loaded(Checkpoint(folder_), {.placement = {.num_threads = 1}});
    EXPECT_EQ(loaded.report().stored, str_cat(dtype_name(dtype), ", tensors of each expert"));
    testing::GuardedBytes out(data.out_bytes()), workspace(loaded.layer().workspace_bytes(33));
    out.poison();
    loaded.layer().run(data.inputs(out.data()), workspace.data(), workspace.size());
    EXPECT_TRUE(out.guards_intact());
    EXPECT_EQ(
        testing::judge(data.layer_case(), {out.data(), out.data() + out.size()}, data.reference(), testing::kCpuSums),
        "");
  }
}

TEST_F(LoadLayer, ShardsHaveTheirExpertsAndIds) {
  write(testing::LayerData({.hidden = 64, .intermediate = 40, .experts = 5, .tokens = 1}));
  const Checkpoint model(folder_);
  int32_t next = 0;
  for (int32_t shard = 0; shard < 3; ++shard) {
    const LayerPlan plan(model, {.shard = shard, .num_shards = 3});
    EXPECT_EQ(plan.config().first_expert, next);
    next += plan.config().num_experts;
    EXPECT_EQ(plan.bytes()[0], static_cast<size_t>(plan.config().num_experts) * 2 * 40 * 64 * 2);
  }
  EXPECT_EQ(next, 5);
}

TEST_F(LoadLayer, AFileThatShrinksMeanwhileIsAnErrorThatNamesTheTensor) {
  write(testing::LayerData({.hidden = 64, .intermediate = 40, .experts = 2, .tokens = 1}));
  const Checkpoint model(folder_);
  fs::resize_file(folder_ / "model.safetensors", fs::file_size(folder_ / "model.safetensors") - 100);
  const std::string message = error_of([&] { LoadedLayer(model, {}); });
  EXPECT_NE(message.find("model.safetensors: tensor 'model.layers.0.mlp.experts.1.down_proj.weight'"), message.npos)
      << message;
}

TEST_F(LoadLayer, RefusesMemoryThatItCannotFill) {
  write(testing::LayerData({.hidden = 64, .intermediate = 40, .experts = 2, .tokens = 1}));
  const LayerPlan plan(Checkpoint(folder_), {});
  std::array<void*, kNumLayerArrays> arrays{};
  EXPECT_EQ(error_of([&] { plan.read(arrays); }), "array 0: got a null pointer, expected memory of 20480 bytes");
  alignas(64) std::byte memory[64];
  arrays[0] = memory + 8;
  EXPECT_EQ(error_of([&] { plan.read(arrays); }), "array 0: got misaligned memory, expected 16-byte alignment");
}

}  // namespace
}  // namespace tessera::checkpoint
