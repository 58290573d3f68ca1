// The numbers of a case in host memory with guard zones: weights, tokens, routing.
//
//   LayerData data(c);
//   const moe::CpuLayer layer(data.config(), data.weights(), 1);
//   EXPECT_EQ(judge(c, data.run(layer), data.reference()), "");
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moe/case.h"
#include "moe/judge/oracle.h"
#include "tessera/core/buffer.h"

namespace tessera::moe {
class CpuLayer;
}

namespace tessera::testing {

/// Host memory with guard zones, 16-byte aligned and no better, so that nothing relies on more.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t size);

  void poison();
  std::byte* data() { return memory_.data() + kGuard; }
  const std::byte* data() const { return memory_.data() + kGuard; }
  size_t size() const { return size_; }
  bool guards_intact() const;

 private:
  static constexpr size_t kGuard = 80;            // 16 modulo 64: the memory itself is aligned to 64
  static constexpr unsigned char kPoison = 0xFF;  // NaN in every type of the layer, and id -1
  size_t size_;
  Buffer<std::byte> memory_;
};

/// Elements of a type as floats.
std::vector<float> values_of(const std::vector<std::byte>& elements, DType dtype);

class LayerData {
 public:
  /// The same numbers for the same arguments on every machine. x has unit variance, weights are scaled to keep it.
  explicit LayerData(const LayerCase& c, uint64_t seed = 1);

  const LayerCase& layer_case() const { return case_; }
  moe::LayerConfig config() const { return config_of(case_); }
  moe::LayerWeights weights() const;
  moe::LayerInputs inputs(void* out = nullptr) const;

  const GuardedBytes& x() const { return x_; }
  const GuardedBytes& gate_up() const { return gate_up_; }
  const GuardedBytes& down() const { return down_; }
  const GuardedBytes& gate_up_bias() const { return gate_up_bias_; }
  const GuardedBytes& down_bias() const { return down_bias_; }
  const GuardedBytes& shared_gate_up() const { return shared_gate_up_; }
  const GuardedBytes& shared_down() const { return shared_down_; }
  /// Empty where the format has no scales.
  const GuardedBytes& gate_up_scale() const { return gate_up_scale_; }
  const GuardedBytes& down_scale() const { return down_scale_; }
  const GuardedBytes& shared_gate_up_scale() const { return shared_gate_up_scale_; }
  const GuardedBytes& shared_down_scale() const { return shared_down_scale_; }
  /// Static scales, of x and of the intermediate; empty without any.
  const std::vector<float>& x_scales() const { return x_scales_; }
  const std::vector<float>& h_scales() const { return h_scales_; }
  const std::vector<int32_t>& expert_map() const { return expert_map_; }
  const std::vector<float>& shared_weights() const { return shared_weights_; }
  const std::vector<int64_t>& ids() const { return ids_; }
  void set_ids(const std::vector<int64_t>& ids);
  /// As the layer is given them where topk_weights_dtype is f32; else narrow_weights() are.
  std::vector<float>& topk_weights() { return topk_weights_; }
  const std::vector<float>& topk_weights() const { return topk_weights_; }
  const std::vector<uint16_t>& narrow_weights() const { return narrow_weights_; }

  size_t out_bytes() const { return x_.size(); }

  /// The bytes of out, [T, H] of the layer's type. Error where something beside out or the workspace is written.
  std::vector<std::byte> run(const moe::CpuLayer& layer) const;
  std::vector<std::byte> run(int num_threads = 1) const;

  /// The elements of an out.
  std::vector<float> values(const std::vector<std::byte>& out) const { return values_of(out, case_.dtype); }

  moe::OracleResult reference(double accumulator_unit = moe::kCpuAccumulatorUnit) const;

 private:
  int32_t first_rows(int32_t intermediate) const { return case_.gated ? 2 * intermediate : intermediate; }
  GuardedBytes tensor(int64_t rows, int64_t columns, float scale, int range, uint64_t seed) const;
  GuardedBytes weight(int64_t rows, int64_t columns, float scale, uint64_t seed) const;
  GuardedBytes scales(int64_t experts, int64_t parts, int64_t rows, int64_t columns, float scale) const;
  std::vector<float> input_scales(int32_t scales, float most) const;
  void make_quantised_integers();
  void draw_routing_weights(uint64_t seed);

  LayerCase case_;
  GuardedBytes x_, gate_up_, down_, gate_up_bias_, down_bias_, shared_gate_up_, shared_down_;
  GuardedBytes gate_up_scale_, down_scale_, shared_gate_up_scale_, shared_down_scale_;
  std::vector<int64_t> ids_;
  std::vector<int32_t> narrow_ids_;
  std::vector<float> topk_weights_;
  std::vector<uint16_t> narrow_weights_;
  std::vector<float> shared_weights_;
  std::vector<float> x_scales_, h_scales_;
  std::vector<int32_t> expert_map_;
};

}  // namespace tessera::testing
