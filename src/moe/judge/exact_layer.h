// The bits of an MoE layer on a Hopper GPU, on the host: products as the tensor cores make them, everything else in the
// same single roundings as the kernels.
//
//   ExactLayer layer(config, weights, inputs);              // host memory
//   std::vector<uint16_t> h = layer.intermediate(exact_activation);
//   std::vector<uint16_t> y = layer.rows(h);
//   std::vector<uint16_t> out = layer.combined(y);          // equal to the GPU's, bit for bit
//
// Weights of format fp8_block or fp8_channel: tokens and the intermediate are quantised, products of e4m3 promoted each
// 128 of K, of the latter by the scales of rows alone, after which the channel's multiplies the sum:
//
//   QuantizedRows h = layer.quantized(layer.activations(exact_activation));
//   std::vector<uint16_t> out = layer.combined(layer.rows(h));
//
// A row belongs to a slot of a token: [T * (k + S)] rows, the S slices of a shared expert last, as the GPU takes them.
// What a slot gives depends on it alone, so any tokens may be judged without the others. Identity, ReLU and squared
// ReLU are exact here; the other activations stand on approximate instructions, and a caller with a device hands in a
// function that asks it.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "moe/formats.h"
#include "moe/judge/tensor_core.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// h[i] = act(gate[i]) * up[i], or act(gate[i]) with `up` null; fp32, `count` values each.
using ActivationFunction =
    std::function<void(const Activation&, const float* gate, const float* up, float* h, size_t count)>;

/// Whether exact_activation() has this kind.
bool is_exact_on_host(ActivationKind kind);

/// Identity, ReLU, squared ReLU as the kernels compute them; Error for other kinds.
void exact_activation(const Activation& activation, const float* gate, const float* up, float* h, size_t count);

/// fp32 to the type's bits as the kernels round: to nearest even, every NaN 0x7FFF.
uint16_t rounded_bits(float value, DType dtype);

/// Rows as e4m3 with a scale each kScaleGroup columns of a row (core/e4m3.h), also where all of a row have the same.
struct QuantizedRows {
  std::vector<uint8_t> codes;  ///< [rows, columns]
  std::vector<float> scales;   ///< [rows, ceil((front + columns) / kScaleGroup)], front: ScaleOffsets::down or 0
};

/// final + acc * scales for one element and each block of K in order: what is done to the tensor core's sums of e4m3.
float promoted(float acc, float a_scale, float b_scale, float final);

class ExactLayer {
 public:
  /// bf16 or f16. Keeps pointers; `threads` may be null. What layers are refused for elsewhere is not checked again,
  /// but that slices of a shared expert are whole blocks of scales.
  ExactLayer(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
             ThreadPool* threads = nullptr);

  int64_t num_rows() const { return static_cast<int64_t>(expert_of_row_.size()); }
  /// The expert of a row, shared slices counted after the others; -1: the slot names none of this shard.
  int32_t expert_of_row(int64_t row) const { return expert_of_row_[static_cast<size_t>(row)]; }

  /// [rows, I]; rows without an expert are zero. Of dense weights.
  std::vector<uint16_t> intermediate(const ActivationFunction& activation) const;
  /// [rows, H] from an intermediate.
  std::vector<uint16_t> rows(const std::vector<uint16_t>& intermediate) const;

  /// [rows, I]: the intermediate before it is rounded or quantised, of any format.
  std::vector<float> activations(const ActivationFunction& activation) const;
  /// [rows, I] quantised; rows without an expert are zero, their scales too.
  QuantizedRows quantized(const std::vector<float>& activations) const;
  /// [T, H]: the tokens as a format that quantises rows multiplies them with the weights of an expert.
  QuantizedRows quantized_tokens(int32_t expert = 0) const;
  /// [rows, H] from a quantised intermediate.
  std::vector<uint16_t> rows(const QuantizedRows& intermediate) const;

  /// [T, H] from the rows.
  std::vector<uint16_t> combined(const std::vector<uint16_t>& rows) const;
  /// All of it.
  std::vector<uint16_t> out(const ActivationFunction& activation = exact_activation) const;

 private:
  struct Matrix;
  struct Operand;
  void multiply(const Matrix& matrix, const std::vector<int32_t>& a_rows, const Operand& a,
                std::vector<float>& result) const;
  void multiply_columns(const Matrix& matrix, const std::vector<int32_t>& a_rows, const Operand& a, int64_t begin,
                        int64_t count, float* result) const;
  void promote_columns(const Matrix& matrix, const std::vector<int32_t>& a_rows, const Operand& a, int64_t begin,
                       int64_t count, float* result) const;
  std::vector<uint16_t> rows_from(const Operand& intermediate) const;
  OperandRows elements(const void* data, int64_t row, int64_t columns, int64_t count, int64_t stride,
                       int64_t column = 0) const;
  const float* scales_of(const void* scales, int64_t matrix, const ScaleExtent& extent) const;
  Matrix gate_up_matrix(int32_t expert, bool up) const;
  Matrix down_matrix(int32_t expert) const;
  void round_as_engines(std::vector<float>& values) const;
  void place_rows();

  LayerConfig config_;
  LayerWeights weights_;
  LayerInputs inputs_;
  ThreadPool* threads_;
  const FormatRow& format_;
  bool quantizes_;  // tokens and the intermediate
  TensorCoreRules rules_;
  int64_t num_slots_;  // of a token: k + S
  std::vector<int32_t> expert_of_row_;
  std::vector<std::vector<int32_t>> rows_of_expert_;  // [E + S]
};

}  // namespace tessera::moe
