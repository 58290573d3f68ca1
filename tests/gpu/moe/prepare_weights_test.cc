// Transposed checkpoints on the GPU: element by element the transpose, and nothing else is written.
#include "tessera/moe/prepare_weights.h"

#include "gpu/moe/gpu_fixture.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

// Every element differs from its neighbours in row, column and matrix.
std::vector<uint16_t> numbered(size_t count) {
  std::vector<uint16_t> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<uint16_t>(i * 40503u + i / 65536u);
  return values;
}

std::vector<uint16_t> transposed(const std::vector<uint16_t>& in, size_t matrices, size_t rows, size_t columns) {
  std::vector<uint16_t> out(in.size());
  for (size_t m = 0; m < matrices; ++m) {
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) out[(m * columns + c) * rows + r] = in[(m * rows + r) * columns + c];
    }
  }
  return out;
}

void expect_transposed(int32_t hidden, int32_t intermediate, int32_t experts, bool gated) {
  moe::LayerConfig config;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_experts = experts;
  config.gated = gated;
  const auto e = static_cast<size_t>(experts), h = static_cast<size_t>(hidden), i = static_cast<size_t>(intermediate),
             wide = i * (gated ? 2 : 1);
  const std::vector<uint16_t> gate_up = numbered(e * h * wide), down = numbered(e * i * h);
  GuardedBuffer from_gate_up(gate_up.size() * 2), from_down(down.size() * 2), to_gate_up(gate_up.size() * 2),
      to_down(down.size() * 2);
  from_gate_up.upload(gate_up);
  from_down.upload(down);
  to_gate_up.poison();
  to_down.poison();
  moe::prepare_weights(config, {from_gate_up.data(), from_down.data()}, {to_gate_up.data(), to_down.data()},
                       moe::Device::cuda, nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_EQ(to_gate_up.download<uint16_t>(gate_up.size()), transposed(gate_up, e, h, wide)) << hidden;
  EXPECT_EQ(to_down.download<uint16_t>(down.size()), transposed(down, e, i, h)) << hidden;
  EXPECT_TRUE(to_gate_up.guards_intact() && to_down.guards_intact() && from_gate_up.guards_intact());
}

TEST(MoeSmall, PreparedWeights) { expect_transposed(72, 136, 3, true); }

TEST(MoePrepareWeights, AreTheTranspose) {
  for (const bool gated : {true, false}) {
    for (const int32_t intermediate : {8, 64, 72, 2880}) expect_transposed(200, intermediate, 5, gated);
    expect_transposed(2880, 64, 2, gated);
    expect_transposed(8, 8, 1024, gated);
  }
}

TEST(MoePrepareWeights, BadInput) {
  moe::LayerConfig config;
  config.hidden_size = config.intermediate_size = 64;
  config.num_experts = 1;
  config.dtype = DType::f32;
  GuardedBuffer memory(size_t{64} * 128 * 4);
  EXPECT_THROW(moe::prepare_weights(config, {memory.data()}, {memory.data()}, moe::Device::cuda), Error);
  config.dtype = DType::bf16;
  EXPECT_THROW(moe::prepare_weights(config, {memory.data()}, {}, moe::Device::cuda), Error);
}

}  // namespace
}  // namespace tessera::testing
