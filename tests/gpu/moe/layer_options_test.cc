// Shared expert, expert map and interleaved gate/up rows, each against a layer that says the same without them: equal
// bits, not just close ones.
#include "gpu/moe/gpu_fixture.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

std::vector<uint16_t> random_elements(size_t count, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = f32_to_bf16(0.1f * normal(rng));
  return values;
}

struct Case {
  int32_t hidden, intermediate, experts, top_k, tokens;
};

// Host-side weights and inputs of a layer, copied to the device for each run.
struct Problem {
  moe::LayerConfig config{};
  std::vector<uint16_t> x, gate_up, down, bias, shared_gate_up, shared_down;
  std::vector<int32_t> ids, map;
  std::vector<float> weights, shared_weight;
  DType weights_dtype = DType::f32;  // as which the routing weights are given

  std::vector<uint16_t> run(const moe::LaunchPolicy& policy = {}) const {
    const int32_t tokens = static_cast<int32_t>(x.size() / static_cast<size_t>(config.hidden_size));
    GuardedBuffer dx(x.size() * 2), dgate_up(gate_up.size() * 2), ddown(down.size() * 2), dbias(bias.size() * 2 + 16),
        dshared_gate_up(shared_gate_up.size() * 2 + 16), dshared_down(shared_down.size() * 2 + 16),
        dids(ids.size() * 4), dmap(map.size() * 4 + 16), dweights(weights.size() * 4),
        dshared_weight(shared_weight.size() * 4 + 16), out(x.size() * 2);
    dx.upload(x);
    dgate_up.upload(gate_up);
    ddown.upload(down);
    dids.upload(ids);
    if (weights_dtype == DType::f32) {
      dweights.upload(weights);
    } else {
      std::vector<uint16_t> narrow;
      for (const float w : weights) narrow.push_back(weights_dtype == DType::bf16 ? f32_to_bf16(w) : f32_to_f16(w));
      dweights.upload(narrow);
    }
    if (!bias.empty()) dbias.upload(bias);
    if (!map.empty()) dmap.upload(map);
    if (!shared_gate_up.empty()) dshared_gate_up.upload(shared_gate_up);
    if (!shared_down.empty()) dshared_down.upload(shared_down);
    if (!shared_weight.empty()) dshared_weight.upload(shared_weight);
    moe::LayerWeights layer_weights{};
    layer_weights.gate_up = dgate_up.data();
    layer_weights.down = ddown.data();
    layer_weights.gate_up_bias = bias.empty() ? nullptr : dbias.data();
    layer_weights.shared_gate_up = shared_gate_up.empty() ? nullptr : dshared_gate_up.data();
    layer_weights.shared_down = shared_down.empty() ? nullptr : dshared_down.data();
    layer_weights.expert_map = map.empty() ? nullptr : static_cast<const int32_t*>(dmap.data());
    moe::LayerInputs inputs{};
    inputs.x = dx.data();
    inputs.topk_ids = dids.data();
    inputs.topk_weights = dweights.data();
    inputs.topk_weights_dtype = weights_dtype;
    inputs.out = out.data();
    inputs.num_tokens = tokens;
    inputs.shared_weight = shared_weight.empty() ? nullptr : static_cast<const float*>(dshared_weight.data());
    const moe::CudaLayer layer(config, layer_weights, policy);
    GuardedBuffer workspace(layer.workspace_bytes(tokens));
    out.poison();
    workspace.poison();
    layer.run(inputs, workspace.data(), workspace.bytes(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_TRUE(out.guards_intact());
    EXPECT_TRUE(workspace.guards_intact());
    return out.download<uint16_t>(x.size());
  }
};

Problem make_problem(const Case& c, unsigned seed) {
  Problem p;
  p.config.hidden_size = c.hidden;
  p.config.intermediate_size = c.intermediate;
  p.config.num_experts = c.experts;
  p.config.top_k = c.top_k;
  const auto h = static_cast<size_t>(c.hidden), i = static_cast<size_t>(c.intermediate),
             e = static_cast<size_t>(c.experts), slots = static_cast<size_t>(c.tokens) * c.top_k;
  p.x = random_elements(static_cast<size_t>(c.tokens) * h, seed);
  p.gate_up = random_elements(e * 2 * i * h, seed + 1);
  p.down = random_elements(e * h * i, seed + 2);
  std::mt19937 rng(seed + 3);
  for (size_t n = 0; n < slots; ++n) {
    p.ids.push_back(static_cast<int32_t>(rng() % e));
    p.weights.push_back(static_cast<float>(rng() % 100 + 1) / 100.0f);
  }
  return p;
}

const Case kCases[] = {{128, 64, 4, 2, 150}, {264, 200, 7, 3, 300}, {64, 136, 3, 1, 1}};

// A shared expert m times as wide as the others is m more experts that every token names, its slices.
TEST(MoeLayerOptions, SharedExpertEqualsSlicesAsExperts) {
  for (const Case& c : kCases) {
    for (const int32_t slices : {1, 3}) {
      for (const bool weighted : {false, true}) {
        Problem shared = make_problem(c, 11);
        const auto h = static_cast<size_t>(c.hidden), i = static_cast<size_t>(c.intermediate);
        const auto m = static_cast<size_t>(slices);
        shared.config.shared_intermediate_size = slices * c.intermediate;
        shared.shared_gate_up = random_elements(2 * m * i * h, 21);
        shared.shared_down = random_elements(h * m * i, 22);
        for (int32_t t = 0; weighted && t < c.tokens; ++t)
          shared.shared_weight.push_back(static_cast<float>(t % 9 + 1) / 8.0f);

        Problem plain = make_problem(c, 11);
        plain.config.num_experts += slices;
        plain.config.top_k += slices;
        plain.ids.clear();
        plain.weights.clear();
        for (size_t t = 0; t < static_cast<size_t>(c.tokens); ++t) {
          for (size_t s = 0; s < static_cast<size_t>(c.top_k); ++s) {
            plain.ids.push_back(shared.ids[t * c.top_k + s]);
            plain.weights.push_back(shared.weights[t * c.top_k + s]);
          }
          for (int32_t s = 0; s < slices; ++s) {
            plain.ids.push_back(c.experts + s);
            plain.weights.push_back(weighted ? shared.shared_weight[t] : 1.0f);
          }
        }
        const auto at = [](const std::vector<uint16_t>& values, size_t offset) {
          return values.begin() + static_cast<ptrdiff_t>(offset);
        };
        for (size_t s = 0; s < m; ++s) {
          for (size_t half = 0; half < 2; ++half) {
            const size_t begin = (half * m + s) * i * h;
            plain.gate_up.insert(plain.gate_up.end(), at(shared.shared_gate_up, begin),
                                 at(shared.shared_gate_up, begin + i * h));
          }
          for (size_t row = 0; row < h; ++row) {
            const size_t begin = row * m * i + s * i;
            plain.down.insert(plain.down.end(), at(shared.shared_down, begin), at(shared.shared_down, begin + i));
          }
        }
        const auto expected = plain.run();
        EXPECT_EQ(shared.run(), expected) << c.hidden << " slices " << slices << " weighted " << weighted;
        EXPECT_EQ(shared.run({batching::TaskOrder::natural, 7, 1, 0}), expected);
        shared.shared_gate_up[0] ^= 0x4000;  // a changed weight must show
        EXPECT_NE(shared.run(), expected);
      }
    }
  }
}

TEST(MoeLayerOptions, SharedExpertMustBeAMultiple) {
  Problem p = make_problem(kCases[0], 5);
  p.config.shared_intermediate_size = 72;
  p.shared_gate_up = random_elements(size_t{2} * 72 * 128, 1);
  p.shared_down = random_elements(size_t{72} * 128, 2);
  try {
    p.run();
    FAIL() << "accepted";
  } catch (const tessera::Error& error) {
    EXPECT_EQ(std::string(error.what()).find("shared_intermediate_size"), 0u) << error.what();
  }
}

// D6: a map with holes, ids beyond it, and entries that name no expert of this shard.
TEST(MoeLayerOptions, D6_ExpertMapEqualsMappedIds) {
  for (const Case& c : kCases) {
    Problem mapped = make_problem(c, 31);
    Problem plain = make_problem(c, 31);
    const int32_t global = 2 * c.experts + 3;
    std::mt19937 rng(5);
    for (int32_t g = 0; g < global; ++g)
      mapped.map.push_back(g % 3 == 0 ? -1 : static_cast<int32_t>(rng() % (c.experts + 2u)));
    mapped.config.num_mapped_experts = global;
    mapped.config.first_expert = 1;  // unused with a map
    for (size_t n = 0; n < mapped.ids.size(); ++n) {
      const int32_t id = static_cast<int32_t>(rng() % (global + 4u)) - 2;
      mapped.ids[n] = id;
      const int32_t local = id >= 0 && id < global ? mapped.map[static_cast<size_t>(id)] : -1;
      plain.ids[n] = local < c.experts ? local : -1;
    }
    EXPECT_EQ(mapped.run(), plain.run()) << c.hidden;
  }
}

TEST(MoeLayerOptions, InterleavedEqualsGateFirst) {
  for (const Case& c : kCases) {
    Problem first = make_problem(c, 41);
    first.config.shared_intermediate_size = 2 * c.intermediate;
    const auto h = static_cast<size_t>(c.hidden), i = static_cast<size_t>(c.intermediate),
               e = static_cast<size_t>(c.experts);
    first.bias = random_elements(e * 2 * i, 43);
    first.shared_gate_up = random_elements(4 * i * h, 44);
    first.shared_down = random_elements(2 * i * h, 45);
    Problem interleaved = first;
    interleaved.config.gate_up_order = moe::GateUpOrder::interleaved;
    const auto interleave = [](const std::vector<uint16_t>& from, std::vector<uint16_t>& to, size_t matrices,
                               size_t rows, size_t width) {
      for (size_t n = 0; n < matrices * 2 * rows; ++n) {
        const size_t matrix = n / (2 * rows), half = n / rows % 2, row = n % rows;
        for (size_t column = 0; column < width; ++column)
          to[(matrix * 2 * rows + 2 * row + half) * width + column] = from[n * width + column];
      }
    };
    interleave(first.gate_up, interleaved.gate_up, e, i, h);
    interleave(first.bias, interleaved.bias, e, i, 1);
    interleave(first.shared_gate_up, interleaved.shared_gate_up, 1, 2 * i, h);
    const auto expected = first.run();
    EXPECT_EQ(interleaved.run(), expected) << c.hidden;
    interleaved.config.gate_up_order = moe::GateUpOrder::gate_first;
    EXPECT_NE(interleaved.run(), expected);
  }
}

TEST(MoeLayerOptions, UpFirstEqualsGateFirst) {
  for (const Case& c : kCases) {
    Problem first = make_problem(c, 51);
    first.config.shared_intermediate_size = 2 * c.intermediate;
    const auto h = static_cast<size_t>(c.hidden), i = static_cast<size_t>(c.intermediate),
               e = static_cast<size_t>(c.experts);
    first.bias = random_elements(e * 2 * i, 53);
    first.shared_gate_up = random_elements(4 * i * h, 54);
    first.shared_down = random_elements(2 * i * h, 55);
    Problem swapped = first;
    swapped.config.gate_up_order = moe::GateUpOrder::up_first;
    const auto swap_halves = [](std::vector<uint16_t>& values, size_t matrices) {
      const auto half = static_cast<std::ptrdiff_t>(values.size() / matrices / 2);
      for (auto begin = values.begin(); begin != values.end(); begin += 2 * half)
        std::rotate(begin, begin + half, begin + 2 * half);
    };
    swap_halves(swapped.gate_up, e);
    swap_halves(swapped.bias, e);
    swap_halves(swapped.shared_gate_up, 1);
    const auto expected = first.run();
    EXPECT_EQ(swapped.run(), expected) << c.hidden;
    EXPECT_EQ(swapped.run({batching::TaskOrder::natural, 3, 1, 0}), expected) << c.hidden;
    swapped.config.gate_up_order = moe::GateUpOrder::gate_first;
    EXPECT_NE(swapped.run(), expected);
  }
}

// Routing weights of 16 bits are exact floats.
TEST(MoeLayerOptions, NarrowRoutingWeightsEqualTheirFloats) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const Case& c : kCases) {
      Problem narrow = make_problem(c, 61);
      narrow.weights_dtype = dtype;
      Problem wide = narrow;
      wide.weights_dtype = DType::f32;
      for (float& w : wide.weights) w = dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(w)) : f16_to_f32(f32_to_f16(w));
      const auto expected = wide.run();
      EXPECT_EQ(narrow.run(), expected) << c.hidden;
      narrow.weights_dtype = dtype == DType::bf16 ? DType::f16 : DType::bf16;
      EXPECT_NE(narrow.run(), expected) << "values differ in the other type";
    }
  }
}

}  // namespace
}  // namespace tessera::testing
