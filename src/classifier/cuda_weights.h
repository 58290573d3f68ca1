// The weights of a model on one device, in operand form. Shared by the lanes of the device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "classifier/cuda_buffers.h"
#include "classifier/cuda_form.h"
#include "cuda/core/operand.h"
#include "tessera/classifier/model.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {

/// rows x stride of an operand kind. `scale` undoes the power of two by which fp16 weights are multiplied, so that
/// neither they nor the low halves of split ones leave fp16's normal range.
struct DeviceMatrix {
  cta::OperandView view;
  float scale = 1.0f;
};

/// Fills row `row` (zeroed before) of a matrix that is packed.
using RowSource = std::function<void(int64_t row, std::span<float> values)>;

struct CudaWeights {
  /// Throws std::bad_alloc when the device has too little memory.
  CudaWeights(const Model& model, const CudaForm& form, InputKind input, ThreadPool& pool);

  size_t device_bytes() const { return buffers_.bytes(); }

  std::vector<DeviceMatrix> convolutions;  ///< direct: per width [F][C / 64][taps][64]
  /// dft: per bin, real rows [D][C], complex ones [2 D'][2 C'], see spectrum; D' and C' are padded.
  std::vector<DeviceMatrix> bins;
  DeviceMatrix taps;                         ///< distinct: [taps * F'][C]
  DeviceMatrix embedding;                    ///< ids but for vocab: [V][C]
  void* table = nullptr;                     ///< vocab: [V * taps][F'] of stored_kind
  const float* twiddle = nullptr;            ///< dft: cosines and sines
  const float* convolution_bias = nullptr;   ///< [D]
  const float* router_weight = nullptr;      ///< [E, D]
  const float* router_bias = nullptr;        ///< [E]
  DeviceMatrix experts;                      ///< [E * X'][D'], one matrix after the other
  const float* expert_bias = nullptr;        ///< [E, X']
  const uint16_t* expert_bias_16 = nullptr;  ///< the same as operands, where experts are skipped
  const float* mixed_bias = nullptr;         ///< [X] of a folded head layer, else null
  std::vector<DeviceMatrix> head;
  std::vector<const float*> head_bias;
  const float* output_weight = nullptr;
  const float* output_bias = nullptr;

 private:
  void pack_convolutions(const Model& model, const CudaForm& form, InputKind input, ThreadPool& pool);
  void pack_bins(const Model& model, const CudaForm& form, ThreadPool& pool);
  void project_vocabulary(const ClassifierConfig& config, const CudaForm& form);
  void pack_experts(const Model& model, const CudaForm& form, ThreadPool& pool);
  void pack_head(const Model& model, const CudaForm& form, ThreadPool& pool);

  CudaBuffers buffers_;  // all arrays above
};

}  // namespace tessera::classifier
