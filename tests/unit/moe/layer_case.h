// A small MoE layer with its data, run on the CPU into poisoned memory and judged against the oracle.
//
//   LayerData data({.hidden = 72, .tokens = 65, .dtype = DType::f16});
//   EXPECT_EQ(data.judge(data.run(), data.reference()), "");
//
// The judge itself is tested with planted errors (cpu_layer_test.cc, JudgeFindsWhatKernelsGetWrong).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "cpu/convert.h"
#include "moe/judge/oracle.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"
#include "tessera/moe/cpu_layer.h"
#include "unit/random_values.h"

namespace tessera::testing {

/// Host memory with guard zones, 16-byte aligned and no better, so that nothing relies on more.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t size) : size_(size), memory_(size + 2 * kGuard) { poison(); }

  void poison() { std::memset(memory_.data(), kPoison, memory_.size()); }
  std::byte* data() { return memory_.data() + kGuard; }
  const std::byte* data() const { return memory_.data() + kGuard; }
  size_t size() const { return size_; }
  bool guards_intact() const {
    const auto poisoned = [](std::byte byte) { return byte == std::byte{kPoison}; };
    return std::all_of(memory_.begin(), memory_.begin() + kGuard, poisoned) &&
           std::all_of(memory_.end() - kGuard, memory_.end(), poisoned);
  }

 private:
  static constexpr size_t kGuard = 80;            // 16 modulo 64: the memory itself is aligned to 64
  static constexpr unsigned char kPoison = 0xFF;  // NaN in every type of the layer, and id -1
  size_t size_;
  Buffer<std::byte> memory_;
};

struct LayerCase {
  int32_t hidden = 64;
  int32_t intermediate = 64;
  int32_t experts = 8;
  int32_t top_k = 2;
  int32_t tokens = 65;
  std::string routing = "random";  ///< random, duplicate, bad, none, first, last, middle, balanced
  DType dtype = DType::bf16;
  bool gated = true;
  Activation activation{};
  bool bias = false;
  bool ids_are_64_bit = false;
  int32_t first_expert = 0;
  int32_t mapped = 0;  ///< entries of an expert map with holes; 0: none
  int32_t shared_intermediate = 0;
  bool shared_weight = false;
  moe::GateUpOrder order = moe::GateUpOrder::gate_first;
  bool integers = false;  ///< ternary data whose every intermediate result is exact
  int threads = 1;

  friend std::ostream& operator<<(std::ostream& out, const LayerCase& c) {
    return out << "H " << c.hidden << " I " << c.intermediate << " E " << c.experts << " k " << c.top_k << " T "
               << c.tokens << " " << c.routing << " " << dtype_name(c.dtype) << (c.gated ? " gated" : " plain")
               << " act " << static_cast<int>(c.activation.kind) << (c.bias ? " bias" : "")
               << (c.ids_are_64_bit ? " i64" : "") << " first " << c.first_expert << " mapped " << c.mapped
               << " shared " << c.shared_intermediate << " order " << static_cast<int>(c.order) << " threads "
               << c.threads;
  }
};

/// [T, k] global ids. "bad" has ids far outside, the least and the largest int32 among them.
inline std::vector<int64_t> make_ids(const LayerCase& c, uint32_t seed) {
  std::vector<int64_t> ids(static_cast<size_t>(c.tokens) * static_cast<size_t>(c.top_k));
  std::mt19937 random(seed);
  const auto experts = static_cast<uint32_t>(std::max(c.experts, c.mapped));
  std::vector<int64_t> pool(experts);
  std::iota(pool.begin(), pool.end(), 0);
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto slot = static_cast<uint32_t>(i) % static_cast<uint32_t>(c.top_k);
    if (c.routing == "none") ids[i] = -1;
    if (c.routing == "first") ids[i] = 0;
    if (c.routing == "last") ids[i] = c.experts - 1;
    if (c.routing == "middle") ids[i] = c.experts / 2;
    if (c.routing == "balanced") ids[i] = static_cast<int64_t>(i % experts);
    if (c.routing == "duplicate") ids[i] = static_cast<int64_t>(random() % std::min<uint32_t>(experts, 3));
    if (c.routing == "bad") {
      const int64_t strange[] = {-1, INT32_MIN, INT32_MAX, c.experts, -static_cast<int64_t>(random() % 9)};
      ids[i] = random() % 2 == 0 ? strange[random() % 5] : static_cast<int64_t>(random() % experts);
    }
    if (c.routing == "random") {
      if (slot < experts) std::swap(pool[slot], pool[slot + random() % (experts - slot)]);
      ids[i] = pool[slot % experts];
    }
    if (c.routing != "bad") ids[i] += ids[i] < 0 ? 0 : c.first_expert;
  }
  return ids;
}

class LayerData {
 public:
  explicit LayerData(const LayerCase& c, uint64_t seed = 1)
      : case_(c),
        x_(tensor(c.tokens, c.hidden, 1.0f, 1, seed)),
        gate_up_(tensor(c.experts * first_rows(c.intermediate), c.hidden, scale(c.hidden), 1, seed + 1)),
        down_(tensor(c.experts * c.hidden, c.intermediate, scale(c.intermediate), 1, seed + 2)),
        gate_up_bias_(tensor(c.experts, first_rows(c.intermediate), 0.5f, 1, seed + 3)),
        down_bias_(tensor(c.experts, c.hidden, 0.5f, 2, seed + 4)),
        shared_gate_up_(tensor(first_rows(c.shared_intermediate), c.hidden, scale(c.hidden), 1, seed + 5)),
        shared_down_(tensor(c.hidden, c.shared_intermediate, scale(c.intermediate), 1, seed + 6)) {
    set_ids(make_ids(c, static_cast<uint32_t>(seed)));
    std::mt19937_64 random(seed + 7);
    const auto weight = [&] {
      return c.integers ? std::ldexp(1.0f, -static_cast<int>(random() % 4))
                        : static_cast<float>(random() % 1000 + 1) / 1000.0f;
    };
    for (size_t i = 0; i < ids_.size(); ++i) topk_weights_.push_back(weight());
    for (int32_t t = 0; t < c.tokens; ++t) shared_weights_.push_back(weight());
    // Every third global id is nobody's, the others go to the experts from the last to the first, and around again.
    int32_t expert = c.experts;
    for (int32_t id = 0; id < c.mapped; ++id) {
      if (id % 3 != 1) expert = expert == 0 ? c.experts - 1 : expert - 1;
      expert_map_.push_back(id % 3 == 1 ? -1 - id : expert % c.experts);
    }
  }

  void set_ids(const std::vector<int64_t>& ids) {
    ids_ = ids;
    narrow_ids_.clear();
    for (const int64_t id : ids) narrow_ids_.push_back(static_cast<int32_t>(id));
  }
  const std::vector<int64_t>& ids() const { return ids_; }
  std::vector<float>& topk_weights() { return topk_weights_; }

  moe::LayerConfig config() const {
    moe::LayerConfig config;
    config.hidden_size = case_.hidden;
    config.intermediate_size = case_.intermediate;
    config.num_experts = case_.experts;
    config.top_k = case_.top_k;
    config.dtype = case_.dtype;
    config.gated = case_.gated;
    config.activation = case_.activation;
    config.first_expert = case_.first_expert;
    config.num_mapped_experts = case_.mapped;
    config.shared_intermediate_size = case_.shared_intermediate;
    config.gate_up_order = case_.order;
    return config;
  }
  moe::LayerWeights weights() const {
    moe::LayerWeights weights{gate_up_.data(), down_.data()};
    if (case_.bias) weights.gate_up_bias = gate_up_bias_.data();
    if (case_.bias) weights.down_bias = down_bias_.data();
    if (case_.shared_intermediate != 0) weights.shared_gate_up = shared_gate_up_.data();
    if (case_.shared_intermediate != 0) weights.shared_down = shared_down_.data();
    if (case_.mapped != 0) weights.expert_map = expert_map_.data();
    return weights;
  }
  moe::LayerInputs inputs(void* out = nullptr) const {
    const void* ids = case_.ids_are_64_bit ? static_cast<const void*>(ids_.data()) : narrow_ids_.data();
    moe::LayerInputs inputs{x_.data(), ids, case_.ids_are_64_bit, topk_weights_.data(), out, case_.tokens};
    if (case_.shared_weight) inputs.shared_weight = shared_weights_.data();
    return inputs;
  }

  /// The bytes of out, [T, H] of the layer's type. Fails the test when something beside out or the workspace is
  /// written.
  std::vector<std::byte> run(const moe::CpuLayer& layer) const {
    GuardedBytes workspace(layer.workspace_bytes(case_.tokens));
    GuardedBytes out(x_.size());
    layer.run(inputs(out.data()), workspace.data(), workspace.size());
    EXPECT_TRUE(out.guards_intact()) << case_;
    EXPECT_TRUE(workspace.guards_intact()) << case_;
    return {out.data(), out.data() + out.size()};
  }
  std::vector<std::byte> run() const { return run(moe::CpuLayer(config(), weights(), case_.threads)); }

  moe::OracleResult reference() const { return moe::oracle(config(), weights(), inputs()); }

  std::vector<float> values(const std::vector<std::byte>& out) const {
    std::vector<float> values(out.size() / dtype_size(case_.dtype));
    cpu::to_f32(out.data(), case_.dtype, static_cast<int64_t>(values.size()), values.data());
    return values;
  }

  /// Per element and per row, and exactly +0 where nothing contributes; what is wrong first, or "".
  std::string judge(const std::vector<std::byte>& out, const moe::OracleResult& reference) const {
    const std::vector<float> got = values(out);
    const auto hidden = static_cast<size_t>(case_.hidden);
    const double row_limit = case_.dtype == DType::bf16 ? 3e-3 : case_.dtype == DType::f16 ? 4e-4 : 1e-5;
    for (size_t begin = 0; begin < got.size(); begin += hidden) {
      double error = 0;
      double size = 0;
      for (size_t i = begin; i < begin + hidden; ++i) {
        const double off = got[i] - reference.out[i];
        if (!(std::abs(off) <= reference.bound[i]))
          return str_cat("token ", begin / hidden, " column ", i - begin, ": got ", got[i], ", expected ",
                         reference.out[i], " +- ", reference.bound[i]);
        if (reference.bound[i] == 0.0 && (got[i] != 0.0f || std::signbit(got[i])))
          return str_cat("token ", begin / hidden, " column ", i - begin, " is not +0");
        error += off * off;
        size += reference.out[i] * reference.out[i];
      }
      if (!(std::sqrt(error) <= row_limit * std::sqrt(size)))
        return str_cat("token ", begin / hidden, ": relative error ", std::sqrt(error / size));
    }
    return got.size() == reference.out.size() ? "" : "sizes differ";
  }

  /// Equal to the reference, rounded once: for integers.
  std::string judge_exact(const std::vector<std::byte>& out, const moe::OracleResult& reference) const {
    const std::vector<float> got = values(out);
    for (size_t i = 0; i < reference.out.size(); ++i) {
      const double expected = moe::rounded_to(reference.out[i], case_.dtype);
      if (double{got[i]} != expected) return str_cat("element ", i, ": got ", got[i], ", expected ", expected);
    }
    return got.size() == reference.out.size() ? "" : "sizes differ";
  }

 private:
  int32_t first_rows(int32_t intermediate) const { return case_.gated ? 2 * intermediate : intermediate; }
  static float scale(int32_t depth) { return 1.0f / std::sqrt(static_cast<float>(std::max(depth, 1))); }

  // Normal numbers of that scale, or integers up to `range`, of which one in eight is not 0.
  GuardedBytes tensor(int64_t rows, int64_t columns, float scale, int range, uint64_t seed) const {
    const auto size = static_cast<size_t>(rows * columns);
    std::vector<float> values =
        case_.integers ? test::random_integers(size, range, seed) : test::random_normal(size, scale, seed);
    std::mt19937_64 random(seed + 100);
    for (float& value : values) {
      if (case_.integers && random() % 8 != 0) value = 0.0f;
    }
    GuardedBytes bytes(size * dtype_size(case_.dtype));
    cpu::from_f32(values.data(), static_cast<int64_t>(size), case_.dtype, bytes.data());
    return bytes;
  }

  LayerCase case_;
  GuardedBytes x_, gate_up_, down_, gate_up_bias_, down_bias_, shared_gate_up_, shared_down_;
  std::vector<int64_t> ids_;
  std::vector<int32_t> narrow_ids_;
  std::vector<float> topk_weights_;
  std::vector<float> shared_weights_;
  std::vector<int32_t> expert_map_;
};

/// Builds, runs and judges one case.
inline void expect_right(const LayerCase& c, uint64_t seed = 1) {
  const LayerData data(c, seed);
  const auto out = data.run();
  EXPECT_EQ(data.judge(out, data.reference()), "") << c;
  if (c.integers) {
    EXPECT_EQ(data.judge_exact(out, data.reference()), "") << c;
  }
}

}  // namespace tessera::testing
