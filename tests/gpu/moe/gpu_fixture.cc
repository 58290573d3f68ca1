#include "gpu/moe/gpu_fixture.h"

#include <cstring>
#include <exception>
#include <sstream>

#include "moe/formats.h"
#include "unit/moe/exact_case.h"

namespace tessera::testing {
namespace {

constexpr size_t kElement = 2;  // bytes, of both types

size_t count_of(int64_t a, int64_t b, int64_t c = 1) { return static_cast<size_t>(a * b * c); }

void upload_bytes(GuardedBuffer& to, const GuardedBytes& from) {
  TESSERA_CHECK(from.size() <= to.bytes(), from.size(), to.bytes());
  if (from.size() != 0) TESSERA_CUDA_CHECK(cudaMemcpy(to.data(), from.data(), from.size(), cudaMemcpyHostToDevice));
}

float scale_of(int32_t depth) { return 1.0f / std::sqrt(static_cast<float>(depth)); }

}  // namespace

LayerRun::LayerRun(const LayerCase& c, uint64_t seed) : LayerRun(c, Unfilled{}) { fill(seed); }

LayerRun::LayerRun(const LayerData& data) : LayerRun(data.layer_case(), Unfilled{}) { upload(data); }

LayerRun::LayerRun(const LayerCase& c, Unfilled)
    : case_(c),
      x_(kElement * count_of(c.tokens, c.hidden)),
      gate_up_(weight_bytes(c.experts * first_rows(c.intermediate), c.hidden)),
      down_(weight_bytes(int64_t{c.experts} * c.hidden, c.intermediate)),
      gate_up_bias_(kElement * count_of(c.experts, first_rows(c.intermediate))),
      down_bias_(kElement * count_of(c.experts, c.hidden)),
      shared_gate_up_(weight_bytes(first_rows(c.shared_intermediate), c.hidden)),
      shared_down_(weight_bytes(c.hidden, c.shared_intermediate)),
      gate_up_scale_(scale_bytes(c.experts * first_rows(1), c.intermediate, c.hidden)),
      down_scale_(scale_bytes(c.experts, c.hidden, c.intermediate)),
      shared_gate_up_scale_(scale_bytes(first_rows(1), c.shared_intermediate, c.hidden)),
      shared_down_scale_(scale_bytes(1, c.hidden, c.shared_intermediate)),
      x_scales_(sizeof(float) * static_cast<size_t>(num_input_scales(c, c.x_scales))),
      h_scales_(sizeof(float) * static_cast<size_t>(num_input_scales(c, c.h_scales))),
      map_(sizeof(int32_t) * static_cast<size_t>(c.mapped)),
      ids_(sizeof(int64_t) * count_of(c.tokens, c.top_k)),
      topk_weights_(sizeof(float) * count_of(c.tokens, c.top_k)),
      shared_weight_(sizeof(float) * static_cast<size_t>(c.tokens)),
      out_(kElement * count_of(c.tokens, c.hidden)) {
  map_.upload(expert_map_of(c));
}

size_t LayerRun::weight_bytes(int64_t rows, int64_t columns) const {
  return moe::weight_bytes(moe::format_row(case_.format), case_.dtype, rows, columns);
}

size_t LayerRun::scale_bytes(int64_t matrices, int64_t rows, int64_t columns) const {
  return static_cast<size_t>(matrices) * moe::scale_bytes(moe::format_row(case_.format), rows, columns);
}

void LayerRun::fill(uint64_t seed) {
  TESSERA_CHECK(case_.format == moe::WeightFormat::dense, static_cast<int>(case_.format));
  const auto normal = [&](GuardedBuffer& to, float scale, uint64_t number) {
    fill_normal(case_.dtype, to.data(), to.bytes() / kElement, scale, seed + number);
  };
  normal(x_, 1.0f, 0);
  normal(gate_up_, scale_of(case_.hidden), 1);
  normal(down_, scale_of(case_.intermediate), 2);
  normal(gate_up_bias_, 0.5f, 3);
  normal(down_bias_, 0.5f, 4);
  normal(shared_gate_up_, scale_of(case_.hidden), 5);
  normal(shared_down_, scale_of(case_.intermediate), 6);
  set_ids(ids_of(case_, seed));
  std::mt19937 random(static_cast<uint32_t>(seed) + 5);
  const auto draw = [&](size_t count) {
    std::vector<float> weights(count);
    // With one slot, out is a rounded multiple of a rounded row: only the weight 1 keeps the two roundings independent.
    for (float& w : weights) w = case_.top_k == 1 ? 1.0f : static_cast<float>(random() % 1000 + 1) / 1000.0f;
    return weights;
  };
  TESSERA_CHECK(case_.topk_weights_dtype == DType::f32, static_cast<int>(case_.topk_weights_dtype));
  topk_weights_.upload(draw(count_of(case_.tokens, case_.top_k)));
  shared_weight_.upload(draw(static_cast<size_t>(case_.tokens)));
}

void LayerRun::upload(const LayerData& data) {
  upload_bytes(x_, data.x());
  upload_bytes(gate_up_, data.gate_up());
  upload_bytes(down_, data.down());
  upload_bytes(gate_up_bias_, data.gate_up_bias());
  upload_bytes(down_bias_, data.down_bias());
  upload_bytes(shared_gate_up_, data.shared_gate_up());
  upload_bytes(shared_down_, data.shared_down());
  upload_bytes(gate_up_scale_, data.gate_up_scale());
  upload_bytes(down_scale_, data.down_scale());
  upload_bytes(shared_gate_up_scale_, data.shared_gate_up_scale());
  upload_bytes(shared_down_scale_, data.shared_down_scale());
  x_scales_.upload(data.x_scales());
  h_scales_.upload(data.h_scales());
  set_ids({data.ids().begin(), data.ids().end()});
  if (case_.topk_weights_dtype == DType::f32) {
    topk_weights_.upload(data.topk_weights());
  } else {
    topk_weights_.upload(data.narrow_weights());
  }
  shared_weight_.upload(data.shared_weights());
}

void LayerRun::set_ids(const std::vector<int32_t>& ids) {
  host_ids_ = ids;
  if (case_.ids_are_64_bit) {
    ids_.upload(std::vector<int64_t>(ids.begin(), ids.end()));
  } else {
    ids_.upload(ids);
  }
}

moe::LayerWeights LayerRun::weights() const {
  return weights_of(
      case_, {gate_up_.data(), down_.data(), gate_up_bias_.data(), down_bias_.data(), shared_gate_up_.data(),
              shared_down_.data(), static_cast<const int32_t*>(map_.data()), gate_up_scale_.data(), down_scale_.data(),
              shared_gate_up_scale_.data(), shared_down_scale_.data(), static_cast<const float*>(x_scales_.data()),
              static_cast<const float*>(h_scales_.data())});
}

moe::LayerInputs LayerRun::inputs() const {
  moe::LayerInputs inputs;
  inputs.x = x_.data();
  inputs.topk_ids = ids_.data();
  inputs.ids_are_64_bit = case_.ids_are_64_bit;
  inputs.topk_weights = topk_weights_.data();
  inputs.topk_weights_dtype = case_.topk_weights_dtype;
  inputs.out = out_.data();
  inputs.num_tokens = case_.tokens;
  if (case_.shared_weight) inputs.shared_weight = static_cast<const float*>(shared_weight_.data());
  return inputs;
}

std::vector<uint16_t> LayerRun::run(const moe::LaunchPolicy& policy) {
  const moe::CudaLayer layer(config(), weights(), policy);
  GuardedBuffer workspace(layer.workspace_bytes(case_.tokens));
  out_.poison();
  layer.run(inputs(), workspace.data(), workspace.bytes(), nullptr);
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  EXPECT_TRUE(workspace.guards_intact()) << case_;
  EXPECT_TRUE(out_.guards_intact()) << case_;
  return out_.download<uint16_t>(count_of(case_.tokens, case_.hidden));
}

moe::OracleResult LayerRun::reference() const {
  std::vector<int32_t> tokens(static_cast<size_t>(case_.tokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  if (case_.format != moe::WeightFormat::dense) return host_reference(tokens);  // the device's twin knows no other
  return reference_layer(config(), weights(), inputs(), tokens, kWgmmaSums.accumulator_unit);
}

moe::OracleResult LayerRun::host_reference(const std::vector<int32_t>& tokens) const {
  std::vector<std::vector<std::byte>> copies;
  const auto on_host = [&](const GuardedBuffer& buffer) {
    return static_cast<const void*>(copies.emplace_back(buffer.download<std::byte>(buffer.bytes())).data());
  };
  const moe::LayerWeights host_weights = weights_of(
      case_, {on_host(gate_up_), on_host(down_), on_host(gate_up_bias_), on_host(down_bias_), on_host(shared_gate_up_),
              on_host(shared_down_), static_cast<const int32_t*>(on_host(map_)), on_host(gate_up_scale_),
              on_host(down_scale_), on_host(shared_gate_up_scale_), on_host(shared_down_scale_),
              static_cast<const float*>(on_host(x_scales_)), static_cast<const float*>(on_host(h_scales_))});
  moe::LayerInputs host_inputs = inputs();
  host_inputs.x = on_host(x_);
  host_inputs.topk_ids = on_host(ids_);
  host_inputs.topk_weights = on_host(topk_weights_);
  if (case_.shared_weight) host_inputs.shared_weight = static_cast<const float*>(on_host(shared_weight_));
  return moe::oracle(config(), host_weights, host_inputs, tokens, unit_of(case_, kWgmmaSums));
}

std::string LayerRun::judge(const std::vector<uint16_t>& got, const moe::OracleResult& reference) const {
  std::vector<std::byte> bytes(got.size() * kElement);
  if (!got.empty()) std::memcpy(bytes.data(), got.data(), bytes.size());
  return testing::judge(case_, bytes, reference, kWgmmaSums);
}

std::vector<uint16_t> run_case(const LayerCase& c, const moe::LaunchPolicy& policy) {
  return LayerRun(LayerData(c)).run(policy);
}

void expect_right(LayerRun& run, const LayerCase& c, const moe::LaunchPolicy& policy) {
  const auto got = run.run(policy);
  EXPECT_EQ(run.judge(got, run.reference()), "") << c;
}

void expect_right(const LayerCase& c, const moe::LaunchPolicy& policy) {
  LayerRun run(c);
  expect_right(run, c, policy);
}

std::vector<std::string> differing_cases(const std::vector<LayerCase>& cases, const moe::LaunchPolicy& one,
                                         const moe::LaunchPolicy& other) {
  std::vector<std::string> lines;
  for (const LayerCase& c : cases) {
    std::ostringstream line;
    try {
      LayerRun run((LayerData(c)));
      const auto expected = run.run(one), got = run.run(other);
      const std::string difference = difference_of("out", got, expected, c.hidden);
      if (difference.empty()) continue;
      line << c << ": " << difference;
    } catch (const std::exception& error) {
      line << c << ": " << error.what();
    }
    lines.push_back(line.str());
  }
  return lines;
}

}  // namespace tessera::testing
