#include "moe/judge/oracle.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "moe/formats.h"
#include "moe/judge/oracle_math.h"

namespace tessera::moe {
namespace {

using oracle_math::Combined;
using oracle_math::Dot;
using oracle_math::element;
using oracle_math::Expert;
using oracle_math::given_scale;
using oracle_math::group_scale;
using oracle_math::GroupScale;
using oracle_math::kLanes;
using oracle_math::Value;

struct Host {
  const FormatRow& format;
  DType dtype;

  // A call through the table would be most of the work of dense weights.
  double weight(const void* matrix, int64_t index) const {
    return format.format == WeightFormat::dense ? element(matrix, dtype, index) : format.decode(matrix, dtype, index);
  }

  template <class Values, class Weights>
  Dot sum(int64_t depth, const Values& values, const Weights& weights) const {
    std::array<Dot, kLanes> parts{};
    const int64_t whole = depth / kLanes * kLanes;
    for (int64_t begin = 0; begin < whole; begin += kLanes) {
      for (int64_t part = 0; part < kLanes; ++part)
        parts[static_cast<size_t>(part)].add(values(begin + part), weights(begin + part));
    }
    for (int64_t i = whole; i < depth; ++i) parts[static_cast<size_t>(i - whole)].add(values(i), weights(i));
    for (size_t distance = kLanes / 2; distance > 0; distance /= 2) {
      for (size_t part = 0; part < distance; ++part) parts[part].add(parts[part + distance]);
    }
    return parts[0];
  }
};

class Oracle {
 public:
  Oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs, double accumulator_unit)
      : config_(config),
        weights_(weights),
        inputs_(inputs),
        host_{format_row(config.weight_format), config.dtype},
        elements_{host_, config, accumulator_unit, host_.format.scale_block_rows, host_.format.scale_block_columns} {}

  // One token's out and bound, [H] each.
  void token(int32_t token, double* out, double* bound) {
    const auto hidden = static_cast<size_t>(config_.hidden_size);
    sums_.assign(hidden, {});
    load_token(token);
    for (int64_t slot = int64_t{token} * config_.top_k; slot < (int64_t{token} + 1) * config_.top_k; ++slot) {
      const int64_t number = oracle_math::expert_of_slot(config_, weights_, inputs_, slot);
      if (number >= 0)
        add(oracle_math::routed_expert(config_, weights_, number),
            element(inputs_.topk_weights, inputs_.topk_weights_dtype, slot));
    }
    if (config_.shared_intermediate_size != 0) {
      add(oracle_math::shared_expert(config_, weights_),
          inputs_.shared_weight == nullptr ? 1.0 : inputs_.shared_weight[token]);
    }
    for (size_t c = 0; c < hidden; ++c) {
      out[c] = sums_[c].sum.value;
      bound[c] = sums_[c].bound(config_.dtype);
    }
  }

 private:
  // x_: the token as it is multiplied; where experts have scales of their own for it, before it is quantised.
  void load_token(int32_t token) {
    const auto hidden = static_cast<size_t>(config_.hidden_size);
    const size_t first = static_cast<size_t>(token) * hidden;
    x_.resize(hidden);
    if (inputs_.x_scale != nullptr) {
      const float* scales = inputs_.x_scale + token * num_token_groups(host_.format, config_.hidden_size);
      for (size_t i = 0; i < hidden; ++i) {
        const double code = host_.format.decode(inputs_.x, config_.dtype, static_cast<int64_t>(first + i));
        x_[i] = code * scales[i / static_cast<size_t>(host_.format.token_group)];  // exact
      }
      return;
    }
    for (size_t i = 0; i < hidden; ++i) x_[i] = element(inputs_.x, config_.dtype, static_cast<int64_t>(first + i));
    if (config_.num_gate_up_input_scales != 0) return;
    each_group(host_.format.token_group, 0, hidden, [&](size_t begin, size_t count) {
      const GroupScale group = group_scale(static_cast<int64_t>(count), [&](int64_t i) {
        return Value{x_[begin + static_cast<size_t>(i)], 0.0};
      });
      for (size_t i = begin; i < begin + count; ++i) x_[i] = oracle_math::quantized(x_[i], group);
    });
  }

  void add(const Expert& expert, double weight) {
    const std::vector<double>& row =
        expert.x_scale == nullptr || inputs_.x_scale != nullptr ? x_ : quantized_by(given_scale(*expert.x_scale));
    const auto x = [&](int64_t i) { return row[static_cast<size_t>(i)]; };
    h_.clear();
    for (int64_t column = 0; column < expert.width; ++column) {
      h_.push_back(host_.format.quantizes_rows() ? elements_.engine_rounded(elements_.activation(expert, x, column))
                                                 : elements_.intermediate(expert, x, column));
    }
    each_group(
        host_.format.row_group, static_cast<size_t>(expert.offsets.down), h_.size(), [&](size_t begin, size_t count) {
          const GroupScale group = expert.h_scale != nullptr ? given_scale(*expert.h_scale)
                                                             : group_scale(static_cast<int64_t>(count), [&](int64_t i) {
                                                                 return h_[begin + static_cast<size_t>(i)];
                                                               });
          for (size_t i = begin; i < begin + count; ++i) h_[i] = oracle_math::quantized(h_[i], group);
        });
    const auto h = [&](int64_t i) { return h_[static_cast<size_t>(i)]; };
    for (size_t c = 0; c < sums_.size(); ++c) sums_[c].add(weight, elements_.row(expert, h, static_cast<int64_t>(c)));
  }

  const std::vector<double>& quantized_by(const GroupScale& group) {
    expert_x_.resize(x_.size());
    for (size_t i = 0; i < x_.size(); ++i) expert_x_[i] = oracle_math::quantized(x_[i], group);
    return expert_x_;
  }

  // The groups of a row that share a scale, its first column `front` inside the first; none where the format leaves
  // rows as they are.
  template <class Visit>
  void each_group(int32_t group_columns, size_t front, size_t columns, const Visit& visit) const {
    const auto group = static_cast<size_t>(group_columns);
    for (size_t begin = 0, end = 0; group != 0 && begin < columns; begin = end) {
      end = std::min((begin + front) / group * group + group - front, columns);
      visit(begin, end - begin);
    }
  }

  const LayerConfig& config_;
  const LayerWeights& weights_;
  const LayerInputs& inputs_;
  Host host_;
  oracle_math::Elements<Host> elements_;
  std::vector<double> x_, expert_x_;
  std::vector<Value> h_;
  std::vector<Combined> sums_;
};

}  // namespace

double narrow_row_factor(int32_t intermediate_size) { return 1.0 + 24.0 / std::sqrt(intermediate_size); }

double unit_roundoff(DType dtype) { return oracle_math::unit_roundoff(dtype); }

double rounded_to(double value, DType dtype) { return oracle_math::rounded_to(value, dtype); }

OracleResult oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                    std::span<const int32_t> tokens, double accumulator_unit) {
  const size_t hidden = static_cast<size_t>(config.hidden_size);
  OracleResult result{std::vector<double>(tokens.size() * hidden), std::vector<double>(tokens.size() * hidden)};
  Oracle reference(config, weights, inputs, accumulator_unit);
  for (size_t i = 0; i < tokens.size(); ++i)
    reference.token(tokens[i], result.out.data() + i * hidden, result.bound.data() + i * hidden);
  return result;
}

OracleResult oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                    double accumulator_unit) {
  std::vector<int32_t> tokens(static_cast<size_t>(inputs.num_tokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  return oracle(config, weights, inputs, tokens, accumulator_unit);
}

}  // namespace tessera::moe
