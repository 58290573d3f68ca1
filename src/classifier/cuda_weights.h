// The weights of a model on one device, in operand form. Shared by the lanes of the device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "classifier/cuda_form.h"
#include "cuda/core/memory.h"
#include "cuda/core/operand.h"
#include "tessera/classifier/model.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {

/// rows x stride of an operand kind. `scale` undoes the power of two by which fp16 weights are multiplied, so that
/// neither they nor the low halves of split ones leave fp16's normal range.
struct DeviceMatrix {
  cuda::DeviceBytes memory;
  cta::OperandView view;
  float scale = 1.0f;
};

/// Fills row `row` (zeroed before) of a matrix that is packed.
using RowSource = std::function<void(int64_t row, std::span<float> values)>;

/// `keep_scale` leaves the weights as they are.
DeviceMatrix pack_matrix(cta::Operand kind, int64_t rows, int64_t stride, bool keep_scale, const RowSource& source,
                         ThreadPool& pool);

struct CudaWeights {
  /// Throws std::bad_alloc when the device has too little memory.
  CudaWeights(const Model& model, const CudaForm& form, InputKind input, ThreadPool& pool);

  size_t device_bytes() const;

  std::vector<DeviceMatrix> convolutions;  ///< direct: per width [F][C / 64][taps][64]
  /// dft: per bin, real rows [D][C], complex ones [2 D'][2 C'], see spectrum; D' and C' are padded.
  std::vector<DeviceMatrix> bins;
  DeviceMatrix taps;                             ///< vocab, distinct: [taps * F'][C]
  DeviceMatrix embedding;                        ///< ids but for vocab: [V][C]
  cuda::DeviceBytes table;                       ///< vocab: [V * taps][F'] of stored_kind
  cuda::DeviceBytes twiddle;                     ///< dft: cosines and sines
  cuda::DeviceBytes convolution_bias;            ///< [D]
  cuda::DeviceBytes router_weight, router_bias;  ///< [E, D], [E]
  DeviceMatrix experts;                          ///< [E * X'][D'], one matrix after the other
  cuda::DeviceBytes expert_bias;                 ///< [E, X'] fp32
  cuda::DeviceBytes expert_bias_16;              ///< the same as operands, where experts are skipped
  cuda::DeviceBytes mixed_bias;                  ///< [X] of a folded head layer, else empty
  std::vector<DeviceMatrix> head;
  std::vector<cuda::DeviceBytes> head_bias;
  cuda::DeviceBytes output_weight, output_bias;

 private:
  void pack_convolutions(const Model& model, const CudaForm& form, InputKind input, ThreadPool& pool);
  void pack_bins(const Model& model, const CudaForm& form, ThreadPool& pool);
  void project_vocabulary(const ClassifierConfig& config, const CudaForm& form);
  void pack_experts(const Model& model, const CudaForm& form, ThreadPool& pool);
  void pack_head(const Model& model, const CudaForm& form, ThreadPool& pool);
};

}  // namespace tessera::classifier
