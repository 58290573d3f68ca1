// A case on the GPU: its numbers in guarded device memory, its output, and the judgement of it.
//
//   const std::vector<uint16_t> bits = run_case(find_case("tokens_127_bf16"), policy);
//   expect_right(c, policy);
//
// Numbers are the host's, as every back end has them, or, for layers of real sizes, made on the device.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "gpu/guarded_buffer.h"
#include "gpu/moe/reference.h"
#include "moe/case.h"
#include "moe/cuda/workspace.h"
#include "moe/judge.h"
#include "moe/layer_data.h"
#include "moe/routing.h"
#include "tessera/core/check.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::testing {

class LayerRun {
 public:
  /// Numbers made on the device: normal, x with unit variance, weights scaled to keep it. Of dense weights.
  explicit LayerRun(const LayerCase& c, uint64_t seed = 1);
  /// The host's numbers.
  explicit LayerRun(const LayerData& data);

  void set_ids(const std::vector<int32_t>& ids);

  moe::LayerConfig config() const { return config_of(case_); }
  moe::LayerWeights weights() const;
  moe::LayerInputs inputs() const;
  std::vector<int32_t> host_ids() const { return host_ids_; }
  void* x() { return x_.data(); }
  void* gate_up() { return gate_up_.data(); }
  void* down() { return down_.data(); }
  GuardedBuffer& topk_weights() { return topk_weights_; }
  GuardedBuffer& out() { return out_; }

  /// Runs the layer into poisoned memory; the bits of out. Fails the test if something beside it is written.
  std::vector<uint16_t> run(const moe::LaunchPolicy& policy = {});

  double value(uint16_t bits) const { return case_.dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits); }

  moe::OracleResult reference() const;

  /// What is wrong with the output; empty if nothing is.
  std::string judge(const std::vector<uint16_t>& got, const moe::OracleResult& reference) const;

 private:
  struct Unfilled {};
  LayerRun(const LayerCase& c, Unfilled);
  size_t weight_bytes(int64_t rows, int64_t columns) const;
  size_t scale_bytes(int64_t matrices, int64_t rows, int64_t columns) const;
  void fill(uint64_t seed);
  moe::OracleResult host_reference(const std::vector<int32_t>& tokens) const;
  void upload(const LayerData& data);
  int64_t first_rows(int32_t width) const { return (case_.gated ? 2 : 1) * int64_t{width}; }

  LayerCase case_;
  GuardedBuffer x_, gate_up_, down_, gate_up_bias_, down_bias_, shared_gate_up_, shared_down_, gate_up_scale_,
      down_scale_, shared_gate_up_scale_, shared_down_scale_, x_scales_, h_scales_, map_, ids_, topk_weights_,
      shared_weight_, out_;
  std::vector<int32_t> host_ids_;
};

/// The bits of out that a case of the battery gives with a policy, such as one that names a kernel.
std::vector<uint16_t> run_case(const LayerCase& c, const moe::LaunchPolicy& policy = {});

/// Runs the layer and judges its output by the numeric policy.
void expect_right(LayerRun& run, const LayerCase& c, const moe::LaunchPolicy& policy = {});
void expect_right(const LayerCase& c, const moe::LaunchPolicy& policy = {});

/// The cases that one policy gives other bits than another, or fails to run, each in a line with the reason; empty if
/// all are equal. `cases` are those of the battery that a GPU takes, or fewer.
std::vector<std::string> differing_cases(const std::vector<LayerCase>& cases, const moe::LaunchPolicy& one,
                                         const moe::LaunchPolicy& other);

}  // namespace tessera::testing
