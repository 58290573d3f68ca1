// ExactCases on the GPU: all arrays in one piece of device memory, with NaN around each of them, and the model's
// answer.
//
//   ExactRunner runner;
//   DeviceAnswer got = runner.run(c);             // intermediate, rows, out, in the order of (token, slot)
//   EXPECT_EQ(problem_of(c, got, activation), "");
#pragma once

#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "gpu/guarded_buffer.h"
#include "moe/cuda/workspace.h"
#include "moe/judge/exact_layer.h"
#include "moe/layer_layout.h"
#include "tessera/moe/cuda_layer.h"
#include "unit/moe/exact_case.h"

namespace tessera::testing {

struct DeviceAnswer {
  std::vector<uint16_t> intermediate;  // [T * (k + S), I]; rows without an expert are zero
  std::vector<uint16_t> rows;          // [T * (k + S), H], likewise
  std::vector<uint16_t> out;           // [T, H]
  std::string problem;                 // what was written beside the results; empty: nothing
};

class ExactRunner {
 public:
  static constexpr size_t kArenaBytes = size_t{96} << 20;

  ExactRunner() : arena_(kArenaBytes) {}

  DeviceAnswer run(const ExactCase& c) {
    image_.clear();
    moe::LayerWeights weights;
    weights.gate_up = placed(c.gate_up);
    weights.down = placed(c.down);
    weights.gate_up_bias = placed(c.gate_up_bias);
    weights.down_bias = placed(c.down_bias);
    weights.shared_gate_up = placed(c.shared_gate_up);
    weights.shared_down = placed(c.shared_down);
    weights.expert_map = static_cast<const int32_t*>(placed(c.map));
    moe::LayerInputs inputs = c.inputs();
    inputs.x = placed(c.x);
    inputs.topk_ids = c.wide_ids.empty() ? placed(c.ids) : placed(c.wide_ids);
    inputs.topk_weights = c.topk_weights_dtype == DType::f32 ? placed(c.topk_weights) : placed(c.narrow_weights);
    inputs.shared_weight = static_cast<const float*>(placed(c.shared_weight));
    const size_t inputs_end = image_.size();
    const size_t num_out = static_cast<size_t>(c.num_tokens) * static_cast<size_t>(c.config.hidden_size);
    const size_t out_begin = reserved(num_out * 2);
    inputs.out = device(out_begin);
    const moe::CudaLayer layer(
        c.config, weights, {static_cast<batching::TaskOrder>(c.task_order), c.num_ctas, c.cluster_size, c.back_every});
    const size_t workspace_bytes = layer.workspace_bytes(c.num_tokens);
    const size_t workspace_begin = reserved(workspace_bytes);
    TESSERA_CHECK(image_.size() <= kArenaBytes, image_.size());
    arena_.upload(image_);
    layer.run(inputs, device(workspace_begin), workspace_bytes, nullptr);
    TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    const std::vector<uint8_t> after = arena_.download<uint8_t>(image_.size());
    DeviceAnswer answer = unpacked(c, after, workspace_begin);
    answer.out.resize(num_out);
    std::memcpy(answer.out.data(), after.data() + out_begin, num_out * 2);
    answer.problem = margin_problem(after, inputs_end, out_begin, num_out * 2, workspace_begin, workspace_bytes);
    return answer;
  }

 private:
  static constexpr size_t kAlignment = 256;
  static constexpr uint8_t kPoison = 0xFF;  // NaN in both types

  void* device(size_t begin) const { return static_cast<uint8_t*>(arena_.data()) + begin; }

  // A place for `bytes` with poison before and behind it; poisoned itself.
  size_t reserved(size_t bytes) {
    const size_t begin = (image_.size() / kAlignment + 2) * kAlignment;
    image_.resize(begin + bytes + kAlignment, kPoison);
    return begin;
  }
  template <class T>
  const void* placed(const std::vector<T>& values) {
    if (values.empty()) return nullptr;
    const size_t begin = reserved(values.size() * sizeof(T));
    std::memcpy(image_.data() + begin, values.data(), values.size() * sizeof(T));
    return device(begin);
  }

  // The rows of the workspace in the order of (token, slot).
  DeviceAnswer unpacked(const ExactCase& c, const std::vector<uint8_t>& after, size_t workspace_begin) const {
    auto* base =
        const_cast<uint8_t*>(after.data()) + workspace_begin;  // lay_out_workspace wants to write; here it is read
    const moe::CudaWorkspace arrays = moe::lay_out_workspace(c.config, c.num_tokens, base);
    const auto slots = static_cast<size_t>(moe::num_slots(c.config));
    const size_t num_rows = static_cast<size_t>(c.num_tokens) * slots;
    DeviceAnswer answer;
    const auto take = [&](std::vector<uint16_t>& to, const void* from, int32_t width) {
      const auto row_size = static_cast<size_t>(width);
      to.assign(num_rows * row_size, 0);
      for (size_t i = 0; i < num_rows; ++i) {
        const int32_t row = arrays.plan.token_row[i];
        if (row < 0 || static_cast<size_t>(row) >= num_rows) continue;
        std::memcpy(to.data() + i * row_size, static_cast<const uint16_t*>(from) + static_cast<size_t>(row) * row_size,
                    row_size * 2);
      }
    };
    take(answer.intermediate, arrays.intermediate, c.config.intermediate_size);
    take(answer.rows, arrays.rows, c.config.hidden_size);
    return answer;
  }

  std::string margin_problem(const std::vector<uint8_t>& after, size_t inputs_end, size_t out_begin, size_t out_bytes,
                             size_t workspace_begin, size_t workspace_bytes) const {
    const auto differs = [&](size_t begin, size_t end) {
      return std::memcmp(after.data() + begin, image_.data() + begin, end - begin) != 0;
    };
    if (differs(0, inputs_end)) return "inputs or what lies between them were written";
    if (differs(inputs_end, out_begin)) return "something was written before out";
    if (differs(out_begin + out_bytes, workspace_begin)) return "something was written behind out";
    if (differs(workspace_begin + workspace_bytes, after.size())) return "something was written behind the workspace";
    return "";
  }

  GuardedBuffer arena_;
  std::vector<uint8_t> image_;
};

/// Where the device's answer is not the model's, stage by stage: each stage from the device's own input to it. Empty:
/// equal bits everywhere.
inline std::string problem_of(const ExactCase& c, const DeviceAnswer& got, const moe::ExactLayer& layer,
                              const std::vector<uint16_t>& intermediate) {
  if (!got.problem.empty()) return got.problem;
  std::string problem = difference_of("intermediate", got.intermediate, intermediate, c.config.intermediate_size);
  if (problem.empty()) problem = difference_of("rows", got.rows, layer.rows(got.intermediate), c.config.hidden_size);
  if (problem.empty()) problem = difference_of("out", got.out, layer.combined(got.rows), c.config.hidden_size);
  return problem;
}

}  // namespace tessera::testing
