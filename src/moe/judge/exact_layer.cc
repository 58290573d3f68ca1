#include "moe/judge/exact_layer.h"

#include <algorithm>
#include <cmath>

#include "moe/layer_layout.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

constexpr int64_t kColumnsAnItem = 64;  // of a product that threads share

float widened(uint16_t bits, DType dtype) { return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

// As fmaxf on the device: +0 is larger than -0, and NaN loses.
float positive_part(float x) { return x > 0.0f ? x : 0.0f; }

}  // namespace

bool is_exact_on_host(ActivationKind kind) {
  return kind == ActivationKind::identity || kind == ActivationKind::relu || kind == ActivationKind::relu_squared;
}

void exact_activation(const Activation& activation, const float* gate, const float* up, float* h, size_t count) {
  if (!is_exact_on_host(activation.kind))
    throw Error("activation", str_cat("kind ", static_cast<int>(activation.kind)),
                "identity, ReLU or squared ReLU: the others need a device");
  for (size_t i = 0; i < count; ++i) {
    float value = gate[i];
    if (activation.kind != ActivationKind::identity) value = positive_part(value);
    if (activation.kind == ActivationKind::relu_squared) value *= positive_part(gate[i]);
    h[i] = up == nullptr ? value : value * up[i];
  }
}

uint16_t rounded_bits(float value, DType dtype) {
  if (std::isnan(value)) return 0x7FFF;
  return dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
}

// Rows of a weight and their biases.
struct ExactLayer::Matrix {
  OperandRows rows;
  const uint16_t* bias = nullptr;
  int64_t bias_stride = 1;
};

ExactLayer::ExactLayer(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                       ThreadPool* threads)
    : config_(config),
      weights_(weights),
      inputs_(inputs),
      threads_(threads),
      rules_(tensor_core_rules(tensor_core_type(config.dtype))),
      num_slots_(num_slots(config)) {
  place_rows();
}

void ExactLayer::place_rows() {
  rows_of_expert_.resize(static_cast<size_t>(config_.num_experts + num_slots_ - config_.top_k));
  for (int64_t row = 0; row < inputs_.num_tokens * num_slots_; ++row) {
    const int64_t token = row / num_slots_, slot = row % num_slots_;
    int64_t expert = config_.num_experts + slot - config_.top_k;
    if (slot < config_.top_k) {
      const int64_t place = token * config_.top_k + slot;
      const int64_t id = inputs_.ids_are_64_bit ? static_cast<const int64_t*>(inputs_.topk_ids)[place]
                                                : static_cast<const int32_t*>(inputs_.topk_ids)[place];
      const bool mapped = config_.num_mapped_experts != 0;
      const bool known = id >= 0 && id < config_.num_mapped_experts;
      expert = !mapped ? id - config_.first_expert : known ? weights_.expert_map[id] : -1;
      if (expert < 0 || expert >= config_.num_experts) expert = -1;
    }
    expert_of_row_.push_back(static_cast<int32_t>(expert));
    if (expert >= 0) rows_of_expert_[static_cast<size_t>(expert)].push_back(static_cast<int32_t>(row));
  }
}

ExactLayer::Matrix ExactLayer::gate_up_matrix(int32_t expert, bool up) const {
  const int64_t width = config_.intermediate_size, hidden = config_.hidden_size;
  const bool shared = expert >= config_.num_experts;
  const int64_t all = shared ? config_.shared_intermediate_size : width;  // rows of gate, and of up
  const int64_t first = shared ? (expert - config_.num_experts) * width : 0;
  int64_t row = shared ? 0 : expert * all * (config_.gated ? 2 : 1), step = 1;
  if (config_.gated && config_.gate_up_order == GateUpOrder::interleaved) {
    row += 2 * first + (up ? 1 : 0);
    step = 2;
  } else if (config_.gated) {
    row += first + (up ? up_begin(config_.gate_up_order, all) : gate_begin(config_.gate_up_order, all));
  } else {
    row += first;
  }
  const auto* data = static_cast<const uint16_t*>(shared ? weights_.shared_gate_up : weights_.gate_up);
  Matrix matrix{{data + row * hidden, width, step * hidden, nullptr}};
  if (!shared && weights_.gate_up_bias != nullptr) {
    matrix.bias = static_cast<const uint16_t*>(weights_.gate_up_bias) + row;
    matrix.bias_stride = step;
  }
  return matrix;
}

ExactLayer::Matrix ExactLayer::down_matrix(int32_t expert) const {
  const int64_t width = config_.intermediate_size, hidden = config_.hidden_size;
  if (expert >= config_.num_experts) {
    const auto* data = static_cast<const uint16_t*>(weights_.shared_down);
    return {{data + (expert - config_.num_experts) * width, hidden, config_.shared_intermediate_size, nullptr}};
  }
  Matrix matrix{{static_cast<const uint16_t*>(weights_.down) + expert * hidden * width, hidden, width, nullptr}};
  if (weights_.down_bias != nullptr) matrix.bias = static_cast<const uint16_t*>(weights_.down_bias) + expert * hidden;
  return matrix;
}

// result [a_rows, rows of the matrix] = A times the matrix, plus bias.
void ExactLayer::multiply(const Matrix& matrix, const std::vector<int32_t>& a_rows, const void* a, int64_t depth,
                          std::vector<float>& result) const {
  const int64_t columns = matrix.rows.num_rows;
  result.assign(a_rows.size() * static_cast<size_t>(columns), 0.0f);
  const OperandRows left{a, static_cast<int64_t>(a_rows.size()), depth, a_rows.data()};
  const auto part = [&](int64_t item) {
    const int64_t begin = item * kColumnsAnItem, count = std::min(kColumnsAnItem, columns - begin);
    OperandRows right = matrix.rows;
    right.data = static_cast<const uint16_t*>(right.data) + begin * right.stride;
    right.num_rows = count;
    products(rules_, left, right, depth, result.data() + begin, columns);
    for (int64_t i = 0; i < left.num_rows; ++i) {
      for (int64_t j = begin; j < begin + count; ++j) {
        float& value = result[static_cast<size_t>(i * columns + j)];
        if (matrix.bias != nullptr) value += widened(matrix.bias[j * matrix.bias_stride], config_.dtype);
      }
    }
  };
  const int64_t items = (columns + kColumnsAnItem - 1) / kColumnsAnItem;
  if (threads_ != nullptr) {
    threads_->run(items, [&](int64_t item, int) { part(item); });
  } else {
    for (int64_t item = 0; item < items; ++item) part(item);
  }
}

std::vector<uint16_t> ExactLayer::intermediate(const ActivationFunction& activation) const {
  const auto width = static_cast<size_t>(config_.intermediate_size);
  std::vector<uint16_t> result(expert_of_row_.size() * width);
  std::vector<float> gate, up, h;
  for (size_t expert = 0; expert < rows_of_expert_.size(); ++expert) {
    const std::vector<int32_t>& rows = rows_of_expert_[expert];
    if (rows.empty()) continue;
    std::vector<int32_t> tokens(rows.size());
    std::transform(rows.begin(), rows.end(), tokens.begin(),
                   [&](int32_t row) { return static_cast<int32_t>(row / num_slots_); });
    const auto number = static_cast<int32_t>(expert);
    multiply(gate_up_matrix(number, false), tokens, inputs_.x, config_.hidden_size, gate);
    if (config_.gated) multiply(gate_up_matrix(number, true), tokens, inputs_.x, config_.hidden_size, up);
    h.resize(gate.size());
    activation(config_.activation, gate.data(), config_.gated ? up.data() : nullptr, h.data(), h.size());
    for (size_t i = 0; i < h.size(); ++i)
      result[static_cast<size_t>(rows[i / width]) * width + i % width] = rounded_bits(h[i], config_.dtype);
  }
  return result;
}

std::vector<uint16_t> ExactLayer::rows(const std::vector<uint16_t>& intermediate) const {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  TESSERA_CHECK(intermediate.size() == expert_of_row_.size() * static_cast<size_t>(config_.intermediate_size),
                intermediate.size(), expert_of_row_.size());
  std::vector<uint16_t> result(expert_of_row_.size() * hidden);
  std::vector<float> y;
  for (size_t expert = 0; expert < rows_of_expert_.size(); ++expert) {
    const std::vector<int32_t>& rows = rows_of_expert_[expert];
    if (rows.empty()) continue;
    multiply(down_matrix(static_cast<int32_t>(expert)), rows, intermediate.data(), config_.intermediate_size, y);
    for (size_t i = 0; i < y.size(); ++i)
      result[static_cast<size_t>(rows[i / hidden]) * hidden + i % hidden] = rounded_bits(y[i], config_.dtype);
  }
  return result;
}

std::vector<uint16_t> ExactLayer::combined(const std::vector<uint16_t>& rows) const {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  std::vector<uint16_t> result(static_cast<size_t>(inputs_.num_tokens) * hidden);
  std::vector<float> sum(hidden);
  for (int64_t token = 0; token < inputs_.num_tokens; ++token) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t slot = 0; slot < num_slots_; ++slot) {
      const auto row = static_cast<size_t>(token * num_slots_ + slot);
      if (expert_of_row_[row] < 0) continue;
      const float shared = inputs_.shared_weight == nullptr ? 1.0f : inputs_.shared_weight[token];
      const float weight = slot < config_.top_k ? topk_weight(inputs_, token * config_.top_k + slot) : shared;
      for (size_t c = 0; c < hidden; ++c)
        sum[c] = std::fma(weight, widened(rows[row * hidden + c], config_.dtype), sum[c]);
    }
    for (size_t c = 0; c < hidden; ++c)
      result[static_cast<size_t>(token) * hidden + c] = rounded_bits(sum[c], config_.dtype);
  }
  return result;
}

std::vector<uint16_t> ExactLayer::out(const ActivationFunction& activation) const {
  return combined(rows(intermediate(activation)));
}

}  // namespace tessera::moe
