#include "moe_check.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "moe/formats.h"
#include "moe/judge/oracle.h"
#include "moe_data.h"
#include "tessera/core/buffer.h"
#include "tessera/core/dtype.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cli {
namespace {

constexpr int32_t kMostTokens = 6;

/// From the first token to the last, each once.
std::vector<int32_t> sampled_tokens(int32_t num_tokens) {
  const int32_t count = std::min(num_tokens, kMostTokens);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(count == 1 ? 0 : static_cast<int32_t>(i * (num_tokens - 1) / (count - 1)));
  return tokens;
}

/// One token as a layer of its own on the host: its experts' weights alone, numbered from 0.
class TokenCopy {
 public:
  TokenCopy(const moe::LayerConfig& config, const FinishedRun& run, int32_t token, const CopyToHost& copy)
      : config_(config), element_bytes_(dtype_size(config.dtype)), tensors_(weight_tensors(config)) {
    const auto top_k = static_cast<size_t>(config.top_k);
    const size_t first_slot = static_cast<size_t>(token) * top_k;
    const size_t hidden = static_cast<size_t>(config.hidden_size), first = static_cast<size_t>(token) * hidden;
    ids_.resize(top_k);
    topk_weights_.resize(top_k);
    copy(ids_.data(), static_cast<const int32_t*>(run.inputs.topk_ids) + first_slot, top_k * sizeof(int32_t));
    copy(topk_weights_.data(), static_cast<const float*>(run.inputs.topk_weights) + first_slot, top_k * sizeof(float));
    x_ = copied(run.inputs.x, first, hidden, copy);
    out_ = copied(run.inputs.out, first, hidden, copy);
    copy_experts(run.weights, copy);
  }

  /// The largest error as a part of the bound, or the row's as a part of its limit; infinite where something is not
  /// finite.
  double error_of_bound(double accumulator_unit) const {
    moe::LayerWeights weights;
    for (size_t i = 0; i < tensors_.size(); ++i) weights.*tensors_[i].field = weights_[i].data();
    moe::LayerInputs inputs;
    inputs.x = x_.data();
    inputs.topk_ids = ids_.data();
    inputs.topk_weights = topk_weights_.data();
    inputs.num_tokens = 1;
    const moe::OracleResult expected = moe::oracle(config_, weights, inputs, accumulator_unit);
    double largest = 0.0, error_squares = 0.0, squares = 0.0;
    for (size_t i = 0; i < expected.out.size(); ++i) {
      const double got = output(i);
      if (!std::isfinite(got)) return std::numeric_limits<double>::infinity();
      const double error = std::abs(got - expected.out[i]);
      if (error > 0.0) largest = std::max(largest, error / expected.bound[i]);
      error_squares += error * error;
      squares += expected.out[i] * expected.out[i];
    }
    if (squares == 0.0 || !moe::format_row(config_.weight_format).quantizes_rows()) return largest;
    const double limit = moe::kQuantizedRowLimit * moe::narrow_row_factor(config_.intermediate_size);
    return std::max(largest, std::sqrt(error_squares / squares) / limit);
  }

 private:
  Buffer<std::byte> copied(const void* tensor, size_t first, size_t count, const CopyToHost& copy) const {
    Buffer<std::byte> part(count * element_bytes_);
    copy(part.data(), static_cast<const std::byte*>(tensor) + first * element_bytes_, part.size());
    return part;
  }

  // Ids become numbers of the copied experts, -1 those of other shards.
  void copy_experts(const moe::LayerWeights& weights, const CopyToHost& copy) {
    std::vector<int32_t> experts;
    for (int32_t& id : ids_) {
      const int64_t local = int64_t{id} - config_.first_expert;
      if (local < 0 || local >= config_.num_experts) {
        id = -1;
        continue;
      }
      const auto found = std::find(experts.begin(), experts.end(), static_cast<int32_t>(local));
      id = static_cast<int32_t>(found - experts.begin());
      if (found == experts.end()) experts.push_back(static_cast<int32_t>(local));
    }
    config_.first_expert = 0;
    config_.num_experts = static_cast<int32_t>(std::max<size_t>(experts.size(), 1));
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const size_t bytes = tensors_[t].expert_bytes;
      const auto* const from = static_cast<const std::byte*>(weights.*tensors_[t].field);
      weights_[t] = Buffer<std::byte>(experts.size() * bytes);
      for (size_t i = 0; bytes != 0 && i < experts.size(); ++i)
        copy(weights_[t].data() + i * bytes, from + static_cast<size_t>(experts[i]) * bytes, bytes);
    }
  }

  double output(size_t i) const {
    if (config_.dtype == DType::f32) return reinterpret_cast<const float*>(out_.data())[i];
    const uint16_t bits = reinterpret_cast<const uint16_t*>(out_.data())[i];
    return config_.dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  }

  moe::LayerConfig config_;
  size_t element_bytes_;
  std::array<WeightTensor, 4> tensors_;
  std::vector<int32_t> ids_;
  std::vector<float> topk_weights_;
  Buffer<std::byte> x_, out_;
  std::array<Buffer<std::byte>, 4> weights_;  // of tensors_
};

}  // namespace

CheckResult check_runs(const moe::LayerConfig& config, std::span<const FinishedRun> runs, double accumulator_unit,
                       const CopyToHost& copy) {
  const std::vector<int32_t> tokens = sampled_tokens(runs.front().inputs.num_tokens);
  std::vector<double> errors(tokens.size());
  ThreadPool pool(std::min(available_processors(), kMostTokens));
  pool.run(static_cast<int64_t>(tokens.size()), [&](int64_t item, int) {
    const auto i = static_cast<size_t>(item);
    errors[i] = TokenCopy(config, runs[i % runs.size()], tokens[i], copy).error_of_bound(accumulator_unit);
  });
  CheckResult result;
  result.num_tokens = static_cast<int>(tokens.size());
  for (const double error : errors) result.largest_error_of_bound = std::max(result.largest_error_of_bound, error);
  return result;
}

}  // namespace tessera::cli
