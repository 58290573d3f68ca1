// The classifier on Hopper GPUs.
//
//   auto lanes = make_cuda_classifiers(model, {.input = InputKind::embeddings, .device = 0, .num_lanes = 2});
//   lanes[0]->run({.num_sentences = n, .embeddings = pinned}, {.logits = logits});
//
// A lane is a classifier of its own: a ring of micro-batches with copy and compute streams, so that reading, copying
// and computing overlap inside one run() and, with two lanes on two threads, between runs. The lanes of one device
// share its weights. Input in pinned memory is copied from where it lies; other input passes through pinned buffers.
//
// The same sentence gives the same bits whatever the batch, its neighbours, the lane and the device, for a given input
// kind, form and precision. All device memory is taken at construction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/classifier/classifier.h"

namespace tessera::classifier {

/// Equal forms of the convolutions; they round differently, so the choice never depends on the data.
enum class Form : uint8_t {
  /// ids: vocab where the table fits the device, else distinct. Embeddings: dft for 16 positions, 256 channels or more
  /// and widths that save a third of the products, else direct.
  automatic,
  direct,    ///< one implicit GEMM a filter width, all in one launch
  dft,       ///< products in frequency space: half the multiplications; sequences of 2 to 32 positions
  distinct,  ///< each distinct token of a micro-batch is multiplied with every tap once, then gathered
  vocab,     ///< the whole vocabulary is multiplied with every tap at construction (ids only)
};
std::string form_name(Form form);
/// "auto", "direct", "dft", "distinct", "vocab"; Error naming "form" for anything else.
Form parse_form(const std::string& name);

/// fp16, bf16 or fp32 each. fp32 is made of three fp16 Tensor Core products.
struct LayerPrecision {
  Precision convolutions = Precision::fp16;
  Precision experts = Precision::fp16;
  Precision head = Precision::fp16;

  bool operator==(const LayerPrecision&) const = default;
};

struct CudaOptions {
  InputKind input = InputKind::ids;
  LayerPrecision precision = {};
  Form form = Form::automatic;
  double expert_threshold = 0;  ///< experts whose router weight is smaller are skipped: an approximation; 0 = none
  int device = 0;
  int64_t micro_batch = 0;  ///< sentences computed at once; 0 = chosen from the configuration
  int num_lanes = 1;
  int num_staging_threads = 0;  ///< that copy pageable input into pinned memory; 0 = every processor
};

class CudaClassifier : public Classifier {
 public:
  virtual int device() const = 0;
  /// Compute only, for measurements: 16-bit embeddings [num_sentences, sequence_length, padded_channels()] of the
  /// convolutions' precision (fp16 or bf16), already in device memory, to fp32 logits [num_sentences, num_classes] in
  /// device memory. Enqueued; `synchronize` waits for it. Form::direct, dft or distinct.
  virtual void enqueue_resident(const void* embeddings, int64_t num_sentences, float* logits) = 0;
  virtual void synchronize() = 0;
  /// embedding_size rounded up to a multiple of 8; the padding must be zeros.
  virtual int64_t padded_channels() const = 0;
  /// Device memory this lane and the weights it shares take.
  virtual size_t device_bytes() const = 0;
};

/// `options.num_lanes` classifiers on one device (tessera/cuda/device.h says which there are). Throws Error naming what
/// is missing (no GPU, wrong generation, build without CUDA, memory too small for the model, a form or precision that
/// cannot be). Out of memory for the micro-batch halves it, down to one sentence.
std::vector<std::unique_ptr<CudaClassifier>> make_cuda_classifiers(std::shared_ptr<const Model> model,
                                                                   const CudaOptions& options);

}  // namespace tessera::classifier
