// What the GPU back end computes: form, operand kinds and sizes, resolved from the configuration, the kind of input and
// the device, never from a batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/core/operand.h"
#include "tessera/classifier/config.h"
#include "tessera/classifier/cuda_classifier.h"

namespace tessera::classifier {

struct CudaForm {
  Form form = Form::direct;    ///< never automatic
  bool folded_head = false;    ///< the first head layer is multiplied into the experts
  float expert_threshold = 0;  ///< 0: every expert runs
  cta::Operand convolutions = cta::Operand::f16;
  cta::Operand experts = cta::Operand::f16;
  cta::Operand head = cta::Operand::f16;

  bool skips_experts() const { return expert_threshold > 0; }
  bool projects_tokens() const { return form == Form::vocab || form == Form::distinct; }
};

/// Elements of a row of the table of projected tokens, and what products that are not read by products are kept in.
constexpr cta::Operand stored_kind(cta::Operand operand) {
  return operand == cta::Operand::split ? cta::Operand::f32 : operand;
}

/// Sizes of the model in its resolved form.
struct CudaSizes {
  int64_t channels = 0;         ///< embedding_size, padded
  int64_t filters = 0;          ///< per width, padded: a row of the table
  int64_t features = 0;         ///< feature_size, padded
  int64_t expert_size = 0;      ///< of an expert's (folded) output
  int64_t expert_stride = 0;    ///< the same, padded
  size_t first_head = 0;        ///< head layers that the experts have swallowed
  int64_t table_row_bytes = 0;  ///< of one token: all taps
};
CudaSizes cuda_sizes(const ClassifierConfig& config, const CudaForm& form);

/// Throws Error for what cannot be: a form that the input or the configuration rules out, precisions, thresholds.
CudaForm select_cuda_form(const ClassifierConfig& config, const CudaOptions& options, size_t device_memory_bytes);

/// Sentences computed at once, before memory is looked at.
int64_t select_micro_batch(const ClassifierConfig& config, const CudaForm& form, const CudaOptions& options);

}  // namespace tessera::classifier
