#include "moe/judge/exact_layer.h"

#include <algorithm>
#include <cmath>

#include "moe/formats.h"
#include "moe/layer_layout.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

constexpr int64_t kColumnsAnItem = 64;  // of a product that threads share

float widened(uint16_t bits, DType dtype) { return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

// One row, by the definition: a scale each `group` columns, or the one that is given. The first column is number
// `front` of its group.
void quantize(const float* values, int64_t columns, int64_t front, int64_t group, const float* given, uint8_t* codes,
              float* scales) {
  for (int64_t begin = 0, end = 0; begin < columns; begin = end) {
    end = std::min((begin + front) / group * group + group - front, columns);
    uint32_t amax = 0;
    for (int64_t i = begin; i < end; ++i) amax = std::max(amax, magnitude_bits(values[i]));
    const float scale = given != nullptr ? *given : e4m3_scale(amax);
    for (int64_t i = begin; i < end; ++i) codes[i] = e4m3_code(values[i], e4m3_inverse_scale(scale));
    for (int64_t i = (begin + front) / kScaleGroup; i < scale_groups(end + front); ++i) scales[i] = scale;
  }
}

TensorCoreType product_type(const LayerConfig& config) {
  return format_row(config.weight_format).quantizes_rows() ? TensorCoreType::e4m3 : tensor_core_type(config.dtype);
}

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

float promoted(float acc, float a_scale, float b_scale, float final) { return std::fma(acc, a_scale * b_scale, final); }

// Rows of a weight, their biases and scales.
struct ExactLayer::Matrix {
  OperandRows rows;
  const uint16_t* bias = nullptr;
  int64_t bias_stride = 1;
  const float* scales = nullptr;  // [.., scale_stride]: of the block row of row 0, from the block of element 0 on
  int64_t scale_stride = 0;
  int64_t row_offset = 0, column_offset = 0;  // of row 0 and element 0 in their first block
  const float* channel_scales = nullptr;      // of each row, channel_stride apart; then there are no blocks
  int64_t channel_stride = 1;
};

// What is multiplied with it: rows [.., depth] of 16-bit elements, or of codes with scales.
struct ExactLayer::Operand {
  const void* data;
  int64_t depth;
  const float* scales = nullptr;  // [.., groups of front + depth]
  int64_t front = 0;              // of element 0 in its group
};

ExactLayer::ExactLayer(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                       ThreadPool* threads)
    : config_(config),
      weights_(weights),
      inputs_(inputs),
      threads_(threads),
      format_(format_row(config.weight_format)),
      quantizes_(format_.quantizes_rows()),
      rules_(tensor_core_rules(product_type(config))),
      num_slots_(num_slots(config)) {
  const bool whole_blocks = num_slots_ <= config.top_k + 1 || config.intermediate_size % kScaleGroup == 0;
  TESSERA_CHECK(!quantizes_ || whole_blocks, config.shared_intermediate_size, config.intermediate_size);
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

// Of the block row 0 of matrix number `matrix`.
const float* ExactLayer::scales_of(const void* scales, int64_t matrix, const ScaleExtent& extent) const {
  if (scales == nullptr) return nullptr;
  return static_cast<const float*>(scales) + matrix * scale_groups(extent.rows) * scale_groups(extent.columns);
}

ExactLayer::Matrix ExactLayer::gate_up_matrix(int32_t expert, bool up) const {
  const int64_t width = config_.intermediate_size, hidden = config_.hidden_size;
  const bool shared = expert >= config_.num_experts;
  const int64_t all = shared ? config_.shared_intermediate_size : width;  // rows of gate, and of up
  const int64_t first = shared ? (expert - config_.num_experts) * width : 0;
  const int64_t number = shared ? 0 : expert;
  int64_t row = number * all * (config_.gated ? 2 : 1), step = 1;
  if (config_.gated && config_.gate_up_order == GateUpOrder::interleaved) {
    row += 2 * first + (up ? 1 : 0);
    step = 2;
  } else if (config_.gated) {
    row += first + (up ? up_begin(config_.gate_up_order, all) : gate_begin(config_.gate_up_order, all));
  } else {
    row += first;
  }
  Matrix matrix;
  matrix.rows = elements(shared ? weights_.shared_gate_up : weights_.gate_up, row, hidden, width, step * hidden);
  if (!shared && weights_.gate_up_bias != nullptr) {
    matrix.bias = static_cast<const uint16_t*>(weights_.gate_up_bias) + row;
    matrix.bias_stride = step;
  }
  if (format_.scales_rows()) {
    const void* scales = shared ? weights_.shared_gate_up_scale : weights_.gate_up_scale;
    matrix.channel_scales = static_cast<const float*>(scales) + row;
    matrix.channel_stride = step;
    return matrix;
  }
  const int64_t of_scales = config_.gated ? 2 * number + (up ? 1 : 0) : number;
  const ScaleExtent extent = shared ? shared_gate_up_scale_extent(config_) : gate_up_scale_extent(config_);
  matrix.scales = scales_of(shared ? weights_.shared_gate_up_scale : weights_.gate_up_scale, of_scales, extent);
  if (!shared) matrix.row_offset = up ? config_.scale_offsets.up : config_.scale_offsets.gate;
  matrix.scale_stride = scale_groups(hidden);
  if (matrix.scales != nullptr) matrix.scales += first / kScaleGroup * matrix.scale_stride;
  return matrix;
}

ExactLayer::Matrix ExactLayer::down_matrix(int32_t expert) const {
  const int64_t width = config_.intermediate_size, hidden = config_.hidden_size;
  const bool shared = expert >= config_.num_experts;
  const int64_t all = shared ? config_.shared_intermediate_size : width;  // elements of a row
  const int64_t first = shared ? (expert - config_.num_experts) * width : 0;
  const int64_t number = shared ? 0 : expert;
  Matrix matrix;
  matrix.rows = elements(shared ? weights_.shared_down : weights_.down, number * hidden, all, hidden, all, first);
  if (!shared && weights_.down_bias != nullptr)
    matrix.bias = static_cast<const uint16_t*>(weights_.down_bias) + number * hidden;
  if (format_.scales_rows()) {
    const void* scales = shared ? weights_.shared_down_scale : weights_.down_scale;
    matrix.channel_scales = static_cast<const float*>(scales) + number * hidden;
    return matrix;
  }
  const ScaleExtent extent = shared ? shared_down_scale_extent(config_) : down_scale_extent(config_);
  matrix.scales = scales_of(shared ? weights_.shared_down_scale : weights_.down_scale, number, extent);
  matrix.scale_stride = scale_groups(extent.columns);
  if (!shared) matrix.column_offset = config_.scale_offsets.down;
  if (matrix.scales != nullptr) matrix.scales += first / kScaleGroup;
  return matrix;
}

// `count` rows from row `row` of [.., columns] on, `stride` elements apart, from element `column` on.
OperandRows ExactLayer::elements(const void* data, int64_t row, int64_t columns, int64_t count, int64_t stride,
                                 int64_t column) const {
  const size_t bytes = quantizes_ ? 1 : sizeof(uint16_t);
  const auto place = static_cast<size_t>(row * columns + column) * bytes;
  return {static_cast<const std::byte*>(data) + place, count, stride, nullptr};
}

// Columns [begin, begin + count) of the product, from `result` on, which has all columns in a row.
void ExactLayer::multiply_columns(const Matrix& matrix, const std::vector<int32_t>& a_rows, const Operand& a,
                                  int64_t begin, int64_t count, float* result) const {
  const OperandRows left{a.data, static_cast<int64_t>(a_rows.size()), a.depth, a_rows.data()};
  OperandRows right = matrix.rows;
  right.data = static_cast<const uint16_t*>(right.data) + begin * right.stride;
  right.num_rows = count;
  products(rules_, left, right, a.depth, result, matrix.rows.num_rows);
}

// The same of codes: what has one scale of A and one of B, each block of K, is a sum of its own, promoted.
void ExactLayer::promote_columns(const Matrix& matrix, const std::vector<int32_t>& a_rows, const Operand& a,
                                 int64_t begin, int64_t count, float* result) const {
  const auto height = static_cast<int64_t>(a_rows.size());
  const int64_t stride = matrix.rows.num_rows;
  std::vector<float> acc(static_cast<size_t>(height * count));
  TESSERA_CHECK(matrix.column_offset == a.front, matrix.column_offset, a.front);
  for (int64_t k = 0, depth = 0; k < a.depth; k += depth) {
    const int64_t block = (a.front + k) / kScaleGroup;
    depth = std::min((block + 1) * kScaleGroup - a.front, a.depth) - k;
    const OperandRows left{static_cast<const uint8_t*>(a.data) + k, height, a.depth, a_rows.data()};
    OperandRows right = matrix.rows;
    right.data = static_cast<const uint8_t*>(right.data) + begin * right.stride + k;
    right.num_rows = count;
    products(rules_, left, right, depth, acc.data(), count);
    for (int64_t i = 0; i < height; ++i) {
      const float a_scale = a.scales[int64_t{a_rows[static_cast<size_t>(i)]} * scale_groups(a.front + a.depth) + block];
      for (int64_t j = 0; j < count; ++j) {
        const int64_t row_block = (matrix.row_offset + begin + j) / kScaleGroup;
        const float b_scale = matrix.scales == nullptr ? 1.0f : matrix.scales[row_block * matrix.scale_stride + block];
        float& sum = result[i * stride + j];
        sum = promoted(acc[static_cast<size_t>(i * count + j)], a_scale, b_scale, sum);
      }
    }
  }
}

// result [a_rows, rows of the matrix] = A times the matrix, plus bias.
void ExactLayer::multiply(const Matrix& matrix, const std::vector<int32_t>& a_rows, const Operand& a,
                          std::vector<float>& result) const {
  const int64_t columns = matrix.rows.num_rows;
  const auto height = static_cast<int64_t>(a_rows.size());
  result.assign(static_cast<size_t>(height * columns), 0.0f);
  const auto part = [&](int64_t item) {
    const int64_t begin = item * kColumnsAnItem, count = std::min(kColumnsAnItem, columns - begin);
    (this->*(quantizes_ ? &ExactLayer::promote_columns : &ExactLayer::multiply_columns))(matrix, a_rows, a, begin,
                                                                                         count, result.data() + begin);
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = begin; j < begin + count; ++j) {
        float& value = result[static_cast<size_t>(i * columns + j)];
        if (matrix.channel_scales != nullptr) value *= matrix.channel_scales[j * matrix.channel_stride];
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

std::vector<float> ExactLayer::activations(const ActivationFunction& activation) const {
  const auto width = static_cast<size_t>(config_.intermediate_size);
  std::vector<float> result(expert_of_row_.size() * width);
  std::vector<float> gate, up, h;
  const bool of_expert = config_.num_gate_up_input_scales > 1 && inputs_.x_scale == nullptr;
  QuantizedRows codes = quantizes_ && !of_expert ? quantized_tokens() : QuantizedRows{};
  for (size_t expert = 0; expert < rows_of_expert_.size(); ++expert) {
    const std::vector<int32_t>& rows = rows_of_expert_[expert];
    if (rows.empty()) continue;
    std::vector<int32_t> tokens(rows.size());
    std::transform(rows.begin(), rows.end(), tokens.begin(),
                   [&](int32_t row) { return static_cast<int32_t>(row / num_slots_); });
    const auto number = static_cast<int32_t>(expert);
    if (of_expert) codes = quantized_tokens(number);
    const Operand x{quantizes_ ? codes.codes.data() : inputs_.x, config_.hidden_size, codes.scales.data()};
    multiply(gate_up_matrix(number, false), tokens, x, gate);
    if (config_.gated) multiply(gate_up_matrix(number, true), tokens, x, up);
    h.resize(gate.size());
    round_as_engines(gate);
    if (config_.gated) round_as_engines(up);
    activation(config_.activation, gate.data(), config_.gated ? up.data() : nullptr, h.data(), h.size());
    round_as_engines(h);
    for (size_t i = 0; i < h.size(); ++i) result[static_cast<size_t>(rows[i / width]) * width + i % width] = h[i];
  }
  return result;
}

void ExactLayer::round_as_engines(std::vector<float>& values) const {
  if (!config_.round_like_engines) return;
  for (float& value : values) value = widened(rounded_bits(value, config_.dtype), config_.dtype);
}

std::vector<uint16_t> ExactLayer::intermediate(const ActivationFunction& activation) const {
  TESSERA_CHECK(!quantizes_, weight_format_name(config_.weight_format));
  const std::vector<float> h = activations(activation);
  std::vector<uint16_t> result(h.size());
  std::transform(h.begin(), h.end(), result.begin(), [&](float value) { return rounded_bits(value, config_.dtype); });
  return result;
}

QuantizedRows ExactLayer::quantized(const std::vector<float>& activations) const {
  const int64_t width = config_.intermediate_size;
  TESSERA_CHECK(activations.size() == expert_of_row_.size() * static_cast<size_t>(width), activations.size(), width);
  const int64_t front = config_.scale_offsets.down, groups = scale_groups(front + width);
  QuantizedRows result{std::vector<uint8_t>(activations.size()),
                       std::vector<float>(expert_of_row_.size() * static_cast<size_t>(groups))};
  for (int64_t row = 0; row < num_rows(); ++row) {
    if (expert_of_row(row) < 0) continue;
    const float* given = input_scale(weights_.down_input_scale, config_.num_down_input_scales, expert_of_row(row));
    quantize(activations.data() + row * width, width, front, format_.row_group, given,
             result.codes.data() + row * width, result.scales.data() + row * groups);
  }
  return result;
}

QuantizedRows ExactLayer::quantized_tokens(int32_t expert) const {
  const int64_t hidden = config_.hidden_size, tokens = inputs_.num_tokens;
  QuantizedRows result{std::vector<uint8_t>(static_cast<size_t>(tokens * hidden)),
                       std::vector<float>(static_cast<size_t>(tokens * scale_groups(hidden)))};
  if (inputs_.x_scale != nullptr) {
    std::copy_n(static_cast<const uint8_t*>(inputs_.x), result.codes.size(), result.codes.begin());
    const int64_t given = num_token_groups(format_, hidden), groups = scale_groups(hidden);
    for (int64_t i = 0; i < tokens * groups; ++i) {
      const int64_t group = i % groups * kScaleGroup / format_.token_group;
      result.scales[static_cast<size_t>(i)] = inputs_.x_scale[i / groups * given + group];
    }
    return result;
  }
  const float* given = input_scale(weights_.gate_up_input_scale, config_.num_gate_up_input_scales, expert);
  std::vector<float> values(static_cast<size_t>(hidden));
  for (int64_t token = 0; token < tokens; ++token) {
    const uint16_t* row = static_cast<const uint16_t*>(inputs_.x) + token * hidden;
    std::transform(row, row + hidden, values.begin(), [&](uint16_t bits) { return widened(bits, config_.dtype); });
    quantize(values.data(), hidden, 0, format_.token_group, given, result.codes.data() + token * hidden,
             result.scales.data() + token * scale_groups(hidden));
  }
  return result;
}

std::vector<uint16_t> ExactLayer::rows(const std::vector<uint16_t>& intermediate) const {
  TESSERA_CHECK(intermediate.size() == expert_of_row_.size() * static_cast<size_t>(config_.intermediate_size),
                intermediate.size(), expert_of_row_.size());
  TESSERA_CHECK(!quantizes_, weight_format_name(config_.weight_format));
  return rows_from({intermediate.data(), config_.intermediate_size});
}

std::vector<uint16_t> ExactLayer::rows(const QuantizedRows& intermediate) const {
  TESSERA_CHECK(intermediate.codes.size() == expert_of_row_.size() * static_cast<size_t>(config_.intermediate_size),
                intermediate.codes.size(), expert_of_row_.size());
  TESSERA_CHECK(quantizes_, weight_format_name(config_.weight_format));
  return rows_from(
      {intermediate.codes.data(), config_.intermediate_size, intermediate.scales.data(), config_.scale_offsets.down});
}

std::vector<uint16_t> ExactLayer::rows_from(const Operand& intermediate) const {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  std::vector<uint16_t> result(expert_of_row_.size() * hidden);
  std::vector<float> y;
  for (size_t expert = 0; expert < rows_of_expert_.size(); ++expert) {
    const std::vector<int32_t>& rows = rows_of_expert_[expert];
    if (rows.empty()) continue;
    multiply(down_matrix(static_cast<int32_t>(expert)), rows, intermediate, y);
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
  if (quantizes_) return combined(rows(quantized(activations(activation))));
  return combined(rows(intermediate(activation)));
}

}  // namespace tessera::moe
