// Transposed checkpoints: what prepare_weights writes is the transpose, and the layer on it is the layer.
#include "tessera/moe/prepare_weights.h"

#include <gtest/gtest.h>

#include <cstring>

#include "moe/run_cpu.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

template <class T>
std::vector<T> transposed(const T* in, size_t matrices, size_t rows, size_t columns) {
  std::vector<T> out(matrices * rows * columns);
  for (size_t m = 0; m < matrices; ++m) {
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) out[(m * columns + c) * rows + r] = in[(m * rows + r) * columns + c];
    }
  }
  return out;
}

template <class T>
void expect_round_trip(const LayerCase& c) {
  const LayerData data(c);
  const moe::LayerConfig config = data.config();
  const auto e = static_cast<size_t>(c.experts), h = static_cast<size_t>(c.hidden),
             i = static_cast<size_t>(c.intermediate), wide = i * (c.gated ? 2 : 1);
  const auto* gate_up = static_cast<const T*>(data.weights().gate_up);
  const auto* down = static_cast<const T*>(data.weights().down);
  const std::vector<T> gate_up_columns = transposed(gate_up, e, wide, h);
  const std::vector<T> down_columns = transposed(down, e, h, i);
  Buffer<T> given_gate_up(gate_up_columns.size()), given_down(down_columns.size());
  std::copy(gate_up_columns.begin(), gate_up_columns.end(), given_gate_up.data());
  std::copy(down_columns.begin(), down_columns.end(), given_down.data());
  GuardedBytes prepared_gate_up(gate_up_columns.size() * sizeof(T)), prepared_down(down_columns.size() * sizeof(T));
  moe::prepare_weights(config, {given_gate_up.data(), given_down.data()},
                       {prepared_gate_up.data(), prepared_down.data()});
  EXPECT_TRUE(prepared_gate_up.guards_intact() && prepared_down.guards_intact()) << c;
  EXPECT_EQ(std::memcmp(prepared_gate_up.data(), gate_up, prepared_gate_up.size()), 0) << c;
  EXPECT_EQ(std::memcmp(prepared_down.data(), down, prepared_down.size()), 0) << c;
}

TEST(PrepareWeights, AreTheTranspose) {
  for (const bool gated : {true, false}) {
    for (const int width : {8, 64, 72, 136}) {
      expect_round_trip<uint16_t>({.hidden = 200, .intermediate = width, .experts = 3, .gated = gated});
      expect_round_trip<float>(
          {.hidden = 72, .intermediate = width, .experts = 2, .dtype = DType::f32, .gated = gated});
    }
  }
}

TEST(PrepareWeights, OneOfTheTwoAlone) {
  const LayerData data({.hidden = 64, .intermediate = 72, .experts = 2});
  GuardedBytes down(size_t{2} * 64 * 72 * 2);
  moe::prepare_weights(data.config(), {.down = data.weights().down}, {.down = down.data()});
  const auto expected = transposed(static_cast<const uint16_t*>(data.weights().down), 2, 72, 64);
  EXPECT_EQ(std::memcmp(down.data(), expected.data(), down.size()), 0);
}

TEST(PrepareWeights, BadInput) {
  const LayerData data({.hidden = 64, .intermediate = 72, .experts = 2});
  GuardedBytes out(size_t{2} * 64 * 144 * 2);
  const auto message = [&](const moe::TransposedWeights& from, const moe::PreparedWeights& to, moe::LayerConfig config,
                           CUstream_st* stream = nullptr) {
    try {
      moe::prepare_weights(config, from, to, moe::Device::cpu, stream);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const void* weight = data.weights().gate_up;
  EXPECT_EQ(message({weight}, {}, data.config()), "prepared gate_up: got a null pointer, expected host memory");
  EXPECT_EQ(message({}, {out.data()}, data.config()), "gate_up weight: got a null pointer, expected host memory");
  EXPECT_EQ(message({weight}, {out.data() + 2}, data.config()),
            "prepared gate_up: got a misaligned pointer, expected 16-byte alignment");
  EXPECT_EQ(message({weight}, {out.data()}, data.config(), reinterpret_cast<CUstream_st*>(out.data())),
            "stream: got a stream, expected none: the weights are on the CPU");
  moe::LayerConfig odd = data.config();
  odd.intermediate_size = 71;
  EXPECT_EQ(message({weight}, {out.data()}, odd), "intermediate_size: got 71, expected a positive multiple of 8");
}

}  // namespace
}  // namespace tessera::testing
