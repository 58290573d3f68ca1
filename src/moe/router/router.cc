#include "tessera/moe/router.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "cpu/convert.h"
#include "cpu/router_ops.h"
#include "tessera/core/exact_math.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {
namespace {

constexpr float kNan = std::bit_cast<float>(0x7FC00000u);
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Higher first, numbers before NaN.
bool precedes(float a, float b) { return a > b || (b != b && a == a); }

// The best of what is added, in order of falling score; equal scores stay in the order in which they were added.
struct BestList {
  int32_t limit = 0;
  int32_t size = 0;
  float score[kMaxExperts];
  int32_t id[kMaxExperts];

  explicit BestList(int32_t most) : limit(most) {}

  void add(float new_score, int32_t new_id) {
    if (size == limit && !precedes(new_score, score[size - 1])) return;
    int32_t place = size < limit ? size++ : size - 1;
    for (; place > 0 && precedes(new_score, score[place - 1]); --place) {
      score[place] = score[place - 1];
      id[place] = id[place - 1];
    }
    score[place] = new_score;
    id[place] = new_id;
  }
};

// The sum of the two highest scores, NaN counting as -inf; of a single one, itself.
float group_score(const float* scores, int32_t size) {
  float first = kMinusInfinity;
  float second = kMinusInfinity;
  for (int32_t i = 0; i < size; ++i) {
    if (scores[i] > first) {
      second = first;
      first = scores[i];
    } else if (scores[i] > second) {
      second = scores[i];
    }
  }
  return size == 1 ? first : exact_add(first, second);
}

class RowRouter {
 public:
  explicit RowRouter(const RouterConfig& config, const float* bias) : config_(config), bias_(bias) {}

  // Returns whether every logit is NaN.
  bool route(const void* logits, int32_t* ids, float* weights) {
    const int32_t num_experts = config_.num_experts;
    cpu::to_f32(logits, config_.logits_dtype, num_experts, logits_);
    choose(ids);
    if (config_.kind == RouterKind::sigmoid_grouped || config_.kind == RouterKind::sigmoid_renormalize) {
      weigh_by_sigmoid(ids, weights);
    } else {
      weigh_by_softmax(ids, weights);
    }
    for (int32_t slot = 0; slot < config_.top_k; ++slot) {
      weights[slot] = std::isnan(logits_[ids[slot]]) ? kNan : exact_mul(weights[slot], config_.scale);
    }
    return std::all_of(logits_, logits_ + num_experts, [](float logit) { return std::isnan(logit); });
  }

 private:
  void choose(int32_t* ids) {
    const int32_t num_experts = config_.num_experts;
    const float* scores = logits_;
    if (config_.kind == RouterKind::sigmoid_grouped) {
      cpu::sigmoid(logits_, num_experts, values_);
      for (int32_t i = 0; i < num_experts && bias_ != nullptr; ++i) values_[i] = exact_add(values_[i], bias_[i]);
      scores = values_;
    }
    const int32_t group_size = num_experts / config_.num_groups;
    std::fill_n(group_chosen_, config_.num_groups, config_.topk_groups == config_.num_groups);
    if (config_.topk_groups < config_.num_groups) {
      BestList groups(config_.topk_groups);
      for (int32_t g = 0; g < config_.num_groups; ++g)
        groups.add(group_score(scores + int64_t{g} * group_size, group_size), g);
      for (int32_t rank = 0; rank < groups.size; ++rank) group_chosen_[groups.id[rank]] = true;
    }
    BestList experts(config_.top_k);
    for (int32_t i = 0; i < num_experts; ++i) {
      if (group_chosen_[i / group_size]) experts.add(scores[i], i);
    }
    std::copy_n(experts.id, config_.top_k, ids);
  }

  void weigh_by_softmax(const int32_t* ids, float* weights) {
    // fmax passes over NaN; a row of NaN alone keeps -inf, and its weights are NaN whatever the sum.
    float largest = kMinusInfinity;
    for (int32_t i = 0; i < config_.num_experts; ++i) largest = std::fmax(largest, logits_[i]);
    cpu::exp_below(logits_, largest, config_.num_experts, values_);
    for (int32_t slot = 0; slot < config_.top_k; ++slot) weights[slot] = values_[ids[slot]];
    const float sum = config_.kind == RouterKind::softmax_topk ? cpu::warp_sum(values_, config_.num_experts)
                                                               : cpu::warp_sum(weights, config_.top_k);
    for (int32_t slot = 0; slot < config_.top_k; ++slot) weights[slot] = exact_div(weights[slot], sum);
  }

  void weigh_by_sigmoid(const int32_t* ids, float* weights) const {
    for (int32_t slot = 0; slot < config_.top_k; ++slot) {
      const float logit = logits_[ids[slot]];
      weights[slot] = std::isnan(logit) ? 0.0f : exact_sigmoid(logit);
    }
    const float sum = cpu::warp_sum(weights, config_.top_k);
    for (int32_t slot = 0; slot < config_.top_k && sum > 0.0f; ++slot) weights[slot] = exact_div(weights[slot], sum);
  }

  const RouterConfig& config_;
  const float* bias_;
  float logits_[kMaxExperts];
  float values_[kMaxExperts];  // biased scores, then powers
  bool group_chosen_[kMaxExperts];
};

}  // namespace

void route(const RouterConfig& config, const RouterInputs& inputs) {
  validate(config);
  validate(config, inputs);
  RowRouter router(config, inputs.bias);
  const size_t row_bytes = static_cast<size_t>(config.num_experts) * dtype_size(config.logits_dtype);
  int32_t num_nan_rows = 0;
  for (int32_t token = 0; token < inputs.num_tokens; ++token) {
    const int64_t first_slot = int64_t{token} * config.top_k;
    const auto* row = static_cast<const std::byte*>(inputs.logits) + static_cast<size_t>(token) * row_bytes;
    num_nan_rows += router.route(row, inputs.topk_ids + first_slot, inputs.topk_weights + first_slot);
  }
  if (inputs.num_nan_rows != nullptr) *inputs.num_nan_rows += num_nan_rows;
}

}  // namespace tessera::moe
