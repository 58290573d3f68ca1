// What every GPU test of the layer needs: guarded device memory, routings by name, a layer built from a small
// description, and the judgement of its output by the numeric policy.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "gpu/guarded_buffer.h"
#include "gpu/moe/reference.h"
#include "moe/cuda/workspace.h"
#include "tessera/core/check.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::testing {

/// [T, k] ids of a routing kind of the reference workloads, plus: "bad" (random with ids outside [0, E)), "duplicate".
inline std::vector<int32_t> make_ids(const std::string& kind, int tokens, int top_k, int experts, uint32_t seed = 1) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens) * top_k);
  std::mt19937 rng(seed);
  std::vector<int32_t> pool(experts);
  std::iota(pool.begin(), pool.end(), 0);
  for (size_t n = 0; n < ids.size(); ++n) {
    const auto slot = static_cast<int32_t>(n % top_k);
    if (kind == "balanced") ids[n] = static_cast<int32_t>(n % experts);
    if (kind == "best") ids[n] = slot % experts;
    if (kind == "one") ids[n] = experts - 1;
    if (kind == "worst")
      ids[n] = n < static_cast<size_t>(std::max(0, experts - top_k)) ? top_k + static_cast<int32_t>(n) : slot % experts;
    if (kind == "duplicate") ids[n] = static_cast<int32_t>(rng() % experts);
    if (kind == "bad") ids[n] = static_cast<int32_t>(rng() % (3 * experts)) - experts;
    if (kind == "zipf")
      ids[n] = std::min(
          experts - 1,
          static_cast<int32_t>(std::exp(std::log(experts + 1.0) * static_cast<double>(rng() % 10000) / 1e4)) - 1);
    if (kind == "random") {
      if (slot == 0) {
        for (int s = 0; s < std::min(top_k, experts); ++s) std::swap(pool[s], pool[s + rng() % (experts - s)]);
      }
      ids[n] = pool[slot % experts];
    }
  }
  return ids;
}

struct LayerCase {
  int32_t hidden = 256;
  int32_t intermediate = 256;
  int32_t experts = 8;
  int32_t top_k = 2;
  int32_t tokens = 64;
  std::string routing = "random";
  DType dtype = DType::bf16;
  bool gated = true;
  Activation activation{};
  bool bias = false;
  bool ids_are_64_bit = false;
  int32_t first_expert = 0;

  friend std::ostream& operator<<(std::ostream& out, const LayerCase& c) {
    return out << "H " << c.hidden << " I " << c.intermediate << " E " << c.experts << " k " << c.top_k << " T "
               << c.tokens << " " << c.routing << " " << dtype_name(c.dtype) << (c.gated ? " gated" : " plain")
               << " act " << static_cast<int>(c.activation.kind) << (c.bias ? " bias" : "")
               << (c.ids_are_64_bit ? " i64" : "");
  }
};

/// Owns the device memory of a LayerCase. Numbers are normal: x with unit variance, weights scaled to keep it.
class LayerRun {
 public:
  explicit LayerRun(const LayerCase& c, uint64_t seed = 1)
      : case_(c),
        x_(size_t{2} * c.tokens * c.hidden),
        gate_up_(size_t{2} * c.experts * (c.gated ? 2 : 1) * c.intermediate * c.hidden),
        down_(size_t{2} * c.experts * c.hidden * c.intermediate),
        gate_up_bias_(size_t{2} * c.experts * 2 * c.intermediate),
        down_bias_(size_t{2} * c.experts * c.hidden),
        ids_(size_t{8} * c.tokens * c.top_k),
        topk_weights_(size_t{4} * c.tokens * c.top_k),
        out_(size_t{2} * c.tokens * c.hidden) {
    fill_normal(c.dtype, x_.data(), x_.bytes() / 2, 1.0f, seed);
    fill_normal(c.dtype, gate_up_.data(), gate_up_.bytes() / 2, 1.0f / std::sqrt(static_cast<float>(c.hidden)),
                seed + 1);
    fill_normal(c.dtype, down_.data(), down_.bytes() / 2, 1.0f / std::sqrt(static_cast<float>(c.intermediate)),
                seed + 2);
    fill_normal(c.dtype, gate_up_bias_.data(), gate_up_bias_.bytes() / 2, 0.5f, seed + 3);
    fill_normal(c.dtype, down_bias_.data(), down_bias_.bytes() / 2, 0.5f, seed + 4);
    set_ids(make_ids(c.routing, c.tokens, c.top_k, c.experts, static_cast<uint32_t>(seed)));
    std::mt19937 rng(static_cast<uint32_t>(seed) + 5);
    std::vector<float> weights(static_cast<size_t>(c.tokens) * c.top_k);
    // With one slot, out is a rounded multiple of a rounded row: only the weight 1 keeps the two roundings independent.
    for (float& w : weights) w = c.top_k == 1 ? 1.0f : static_cast<float>(rng() % 1000 + 1) / 1000.0f;
    topk_weights_.upload(weights);
  }

  void set_ids(const std::vector<int32_t>& ids) {
    host_ids_ = ids;
    if (case_.ids_are_64_bit) {
      ids_.upload(std::vector<int64_t>(ids.begin(), ids.end()));
    } else {
      ids_.upload(ids);
    }
  }

  moe::LayerConfig config() const {
    return {case_.hidden, case_.intermediate, case_.experts,    case_.top_k,
            case_.dtype,  case_.gated,        case_.activation, case_.first_expert};
  }
  moe::LayerWeights weights() const {
    return {gate_up_.data(), down_.data(), case_.bias ? gate_up_bias_.data() : nullptr,
            case_.bias ? down_bias_.data() : nullptr};
  }
  moe::LayerInputs inputs() const {
    return {x_.data(),   ids_.data(), case_.ids_are_64_bit, static_cast<const float*>(topk_weights_.data()),
            out_.data(), case_.tokens};
  }
  std::vector<int32_t> host_ids() const { return host_ids_; }
  void* x() { return x_.data(); }
  void* gate_up() { return gate_up_.data(); }
  void* down() { return down_.data(); }
  GuardedBuffer& topk_weights() { return topk_weights_; }
  GuardedBuffer& out() { return out_; }

  /// Runs the layer into poisoned memory; the bits of out.
  std::vector<uint16_t> run(const moe::LaunchPolicy& policy = {}) {
    const moe::CudaLayer layer(config(), weights(), policy);
    GuardedBuffer workspace(layer.workspace_bytes(case_.tokens));
    out_.poison();
    layer.run(inputs(), workspace.data(), workspace.bytes(), nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_TRUE(workspace.guards_intact()) << case_;
    EXPECT_TRUE(out_.guards_intact()) << case_;
    return out_.download<uint16_t>(static_cast<size_t>(case_.tokens) * case_.hidden);
  }

  double value(uint16_t bits) const { return case_.dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

  ReferenceResult reference() const {
    std::vector<int32_t> tokens(case_.tokens);
    std::iota(tokens.begin(), tokens.end(), 0);
    return reference_layer(config(), weights(), inputs(), tokens);
  }

  /// The numeric policy (b) and (c) and "a zero row is exactly +0"; empty string when it holds.
  std::string judge(const std::vector<uint16_t>& got, const ReferenceResult& ref) const {
    // The limits are those of rows thousands of columns wide; the error of a row spreads as its width to the power
    // -1/2.
    const double row_limit = (case_.dtype == DType::bf16 ? 3e-3 : 4e-4) * (1.0 + 8.0 / std::sqrt(case_.hidden));
    for (int32_t t = 0; t < case_.tokens; ++t) {
      double error2 = 0.0, norm2 = 0.0;
      for (int32_t c = 0; c < case_.hidden; ++c) {
        const size_t i = static_cast<size_t>(t) * case_.hidden + c;
        const double error = value(got[i]) - ref.out[i];
        if (!(std::fabs(error) <= ref.bound[i])) {
          return str_cat("token ", t, " column ", c, ": got ", value(got[i]), ", expected ", ref.out[i], " +- ",
                         ref.bound[i]);
        }
        if (ref.out[i] == 0.0 && ref.bound[i] == 0.0 && got[i] != 0) return str_cat("token ", t, " is not +0");
        error2 += error * error;
        norm2 += ref.out[i] * ref.out[i];
      }
      if (error2 > row_limit * row_limit * norm2)
        return str_cat("token ", t, ": relative error ", std::sqrt(error2 / norm2));
    }
    return "";
  }

 private:
  LayerCase case_;
  GuardedBuffer x_, gate_up_, down_, gate_up_bias_, down_bias_, ids_, topk_weights_, out_;
  std::vector<int32_t> host_ids_;
};

/// Runs the layer and judges its output by the numeric policy.
inline void expect_right(LayerRun& run, const LayerCase& c, const moe::LaunchPolicy& policy = {}) {
  const auto got = run.run(policy);
  EXPECT_EQ(run.judge(got, run.reference()), "") << c;
}
inline void expect_right(const LayerCase& c, const moe::LaunchPolicy& policy = {}) {
  LayerRun run(c);
  expect_right(run, c, policy);
}

}  // namespace tessera::testing
