#include "moe/layer_data.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "moe/formats.h"
#include "moe/routing.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"

namespace tessera::testing {
namespace {

float scale_of(int32_t depth) { return 1.0f / std::sqrt(static_cast<float>(std::max(depth, 1))); }

constexpr float kCodeSize = 112.0f;  // of normal e4m3 weights: four of it are the type's largest number

uint16_t narrowed(float value, DType dtype) { return dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value); }

// The sum of four uniform numbers of 16 bits: variance 1, one draw a number.
float normal(uint64_t bits) {
  int64_t sum = -131070;
  for (int i = 0; i < 4; ++i) sum += static_cast<int64_t>(bits >> (16 * i) & 0xFFFFu);
  return static_cast<float>(sum) * (1.7320508f / 65536.0f);
}

float ternary(uint64_t bits, int range) {
  if (bits % 8 != 0) return 0.0f;
  return static_cast<float>(static_cast<int64_t>((bits >> 8) % static_cast<uint64_t>(2 * range + 1)) - range);
}

}  // namespace

GuardedBytes::GuardedBytes(size_t size) : size_(size), memory_(size + 2 * kGuard) { poison(); }

void GuardedBytes::poison() { std::memset(memory_.data(), kPoison, memory_.size()); }

bool GuardedBytes::guards_intact() const {
  const auto poisoned = [](std::byte byte) { return byte == std::byte{kPoison}; };
  return std::all_of(memory_.begin(), memory_.begin() + kGuard, poisoned) &&
         std::all_of(memory_.end() - kGuard, memory_.end(), poisoned);
}

LayerData::LayerData(const LayerCase& c, uint64_t seed)
    : case_(c),
      x_(tensor(c.tokens, c.hidden, 1.0f, 1, seed)),
      gate_up_(weight(int64_t{c.experts} * first_rows(c.intermediate), c.hidden, scale_of(c.hidden), seed + 1)),
      down_(weight(int64_t{c.experts} * c.hidden, c.intermediate, scale_of(c.intermediate), seed + 2)),
      gate_up_bias_(tensor(c.experts, first_rows(c.intermediate), 0.5f, 1, seed + 3)),
      down_bias_(tensor(c.experts, c.hidden, 0.5f, 2, seed + 4)),
      shared_gate_up_(weight(first_rows(c.shared_intermediate), c.hidden, scale_of(c.hidden), seed + 5)),
      shared_down_(weight(c.hidden, c.shared_intermediate, scale_of(c.intermediate), seed + 6)),
      gate_up_scale_(scales(c.experts, c.gated ? 2 : 1, c.intermediate, c.hidden, scale_of(c.hidden))),
      down_scale_(scales(c.experts, 1, c.hidden, c.intermediate, scale_of(c.intermediate))),
      shared_gate_up_scale_(scales(1, c.gated ? 2 : 1, c.shared_intermediate, c.hidden, scale_of(c.hidden))),
      shared_down_scale_(scales(1, 1, c.hidden, c.shared_intermediate, scale_of(c.intermediate))),
      x_scales_(input_scales(c.x_scales, 4.0f)),
      h_scales_(input_scales(c.h_scales, 6.0f)),
      expert_map_(expert_map_of(c)) {
  const std::vector<int32_t> ids = ids_of(c, seed);
  set_ids({ids.begin(), ids.end()});
  draw_routing_weights(seed + 7);
  if (c.integers && c.format != moe::WeightFormat::dense) make_quantised_integers();
}

void LayerData::draw_routing_weights(uint64_t seed) {
  std::mt19937_64 random(seed);
  // With one slot, out is a rounded multiple of a rounded row: a power of two keeps the two roundings one, as the limit
  // of a row's error supposes.
  const bool powers = case_.integers || case_.top_k == 1;
  const auto weight = [&] {
    return powers ? std::ldexp(1.0f, -static_cast<int>(random() % 4)) : static_cast<float>(random() % 1000 + 1) / 1000;
  };
  for (size_t i = 0; i < ids_.size(); ++i) topk_weights_.push_back(weight());
  for (int32_t t = 0; t < case_.tokens; ++t) shared_weights_.push_back(weight());
  if (case_.topk_weights_dtype == DType::f32) return;
  for (const float value : topk_weights_) narrow_weights_.push_back(narrowed(value, case_.topk_weights_dtype));
}

void LayerData::set_ids(const std::vector<int64_t>& ids) {
  ids_ = ids;
  narrow_ids_.clear();
  for (const int64_t id : ids) narrow_ids_.push_back(static_cast<int32_t>(id));
}

moe::LayerWeights LayerData::weights() const {
  return weights_of(case_,
                    {gate_up_.data(), down_.data(), gate_up_bias_.data(), down_bias_.data(), shared_gate_up_.data(),
                     shared_down_.data(), expert_map_.data(), gate_up_scale_.data(), down_scale_.data(),
                     shared_gate_up_scale_.data(), shared_down_scale_.data(), x_scales_.data(), h_scales_.data()});
}

moe::LayerInputs LayerData::inputs(void* out) const {
  moe::LayerInputs inputs;
  inputs.x = x_.data();
  inputs.topk_ids = case_.ids_are_64_bit ? static_cast<const void*>(ids_.data()) : narrow_ids_.data();
  inputs.ids_are_64_bit = case_.ids_are_64_bit;
  inputs.topk_weights_dtype = case_.topk_weights_dtype;
  inputs.topk_weights =
      case_.topk_weights_dtype == DType::f32 ? static_cast<const void*>(topk_weights_.data()) : narrow_weights_.data();
  inputs.out = out;
  inputs.num_tokens = case_.tokens;
  if (case_.shared_weight) inputs.shared_weight = shared_weights_.data();
  return inputs;
}

moe::OracleResult LayerData::reference(double accumulator_unit) const {
  return moe::oracle(config(), weights(), inputs(), accumulator_unit);
}

// Normal numbers of that scale, or integers up to `range`, of which one in eight is not 0.
GuardedBytes LayerData::tensor(int64_t rows, int64_t columns, float scale, int range, uint64_t seed) const {
  const auto size = static_cast<size_t>(rows * columns);
  std::vector<float> values(size);
  std::mt19937_64 random(seed);
  for (float& value : values) value = case_.integers ? ternary(random(), range) : normal(random()) * scale;
  GuardedBytes bytes(size * dtype_size(case_.dtype));
  if (size == 0) return bytes;
  if (case_.dtype == DType::f32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  auto* elements = reinterpret_cast<uint16_t*>(bytes.data());
  for (size_t i = 0; i < size; ++i) elements[i] = narrowed(values[i], case_.dtype);
  return bytes;
}

// Elements of the format: of e4m3, normal codes of a quarter of the range, whose scales bring them to that size.
GuardedBytes LayerData::weight(int64_t rows, int64_t columns, float scale, uint64_t seed) const {
  if (case_.format == moe::WeightFormat::dense) return tensor(rows, columns, scale, 1, seed);
  GuardedBytes bytes(static_cast<size_t>(rows * columns));
  auto* codes = reinterpret_cast<uint8_t*>(bytes.data());
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < bytes.size(); ++i)
    codes[i] = f32_to_e4m3(case_.integers ? ternary(random(), 1) : normal(random()) * kCodeSize);
  return bytes;
}

// No two blocks beside each other have scales that a judge could take for each other: they differ by factors of two,
// and, but for integers, are no powers of two themselves.
GuardedBytes LayerData::scales(int64_t experts, int64_t parts, int64_t rows, int64_t columns, float scale) const {
  const moe::FormatRow& format = moe::format_row(case_.format);
  GuardedBytes bytes(static_cast<size_t>(experts * parts) * moe::scale_bytes(format, rows, columns));
  if (bytes.size() == 0) return bytes;
  constexpr float kDead[] = {1e-8f, 1e-23f, 1e-38f, 0.0f};
  const int64_t across = scale_groups(columns, format.scale_block_columns);
  const int64_t down = scale_groups(rows, format.scale_block_rows);
  auto* values = reinterpret_cast<float*>(bytes.data());
  for (int64_t i = 0; i < static_cast<int64_t>(bytes.size() / sizeof(float)); ++i) {
    const int64_t expert = i / (parts * down * across), part = i / (down * across) % parts;
    const int64_t step = i / across % down + 3 * (i % across) + 2 * part + 5 * expert;
    if (case_.integers) {
      values[i] = std::ldexp(1.0f, static_cast<int>(step % 3) - 1);
    } else if (case_.dead_experts && expert != 0) {
      values[i] = kDead[(expert - 1) % 4];
    } else {
      values[i] =
          std::ldexp(scale / kCodeSize * (1.0f + 0.01f * static_cast<float>(step % 7)), 1 - static_cast<int>(step % 4));
    }
  }
  return bytes;
}

// Under which magnitudes up to about `most` fit; those of two experts differ by a fifth, and are no powers of two.
std::vector<float> LayerData::input_scales(int32_t scales, float most) const {
  std::vector<float> values;
  for (int32_t i = 0; i < num_input_scales(case_, scales); ++i)
    values.push_back(most / kE4m3Largest * (1.0f + 0.2f * static_cast<float>(i % 4)));
  return values;
}

// Rows that stay what they are when they are quantised: a power of two is the scale of a group whose largest number is
// 448 times it. The first of each group is such a number, and no weight looks at it. Of the intermediate the bias alone
// makes it: 448 of gate (or of x), 1 of up.
void LayerData::make_quantised_integers() {
  TESSERA_CHECK(case_.bias && case_.shared_intermediate == 0 && case_.dtype != DType::f32, case_.name);
  const auto bits = [&](float value) { return narrowed(value, case_.dtype); };
  const int64_t hidden = case_.hidden, width = case_.intermediate, all = first_rows(case_.intermediate);
  auto* x = reinterpret_cast<uint16_t*>(x_.data());
  auto* bias = reinterpret_cast<uint16_t*>(gate_up_bias_.data());
  auto* gate_up = reinterpret_cast<uint8_t*>(gate_up_.data());
  auto* down = reinterpret_cast<uint8_t*>(down_.data());
  for (int64_t i = 0; i < case_.tokens * hidden; ++i) {
    if (i % hidden % kScaleGroup == 0) x[i] = bits(1.75f);
  }
  for (int64_t i = 0; i < case_.experts * all * hidden; ++i) {
    if (i % hidden % kScaleGroup == 0) gate_up[i] = 0;
  }
  for (int64_t i = 0; i < case_.experts * hidden * width; ++i) {
    if (i % width % kScaleGroup == 0) down[i] = 0;
  }
  for (int64_t expert = 0; expert < case_.experts; ++expert) {
    for (int64_t i = 0; i < width; i += kScaleGroup) {
      const auto make = [&](int64_t row, float value) {
        std::fill_n(gate_up + (expert * all + row) * hidden, hidden, uint8_t{0});
        bias[expert * all + row] = bits(value);
      };
      make(case_.gated ? gate_row(case_.order, i, width) : i, kE4m3Largest);
      if (case_.gated) make(up_row(case_.order, i, width), 1.0f);
    }
  }
}

std::vector<float> values_of(const std::vector<std::byte>& elements, DType dtype) {
  std::vector<float> values(elements.size() / dtype_size(dtype));
  if (values.empty()) return values;
  if (dtype == DType::f32) {
    std::memcpy(values.data(), elements.data(), elements.size());
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, &elements[i * sizeof(bits)], sizeof(bits));
    values[i] = dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  }
  return values;
}

}  // namespace tessera::testing
