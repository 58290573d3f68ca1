// Runs a classifier on batches that are already token ids or embeddings. The engine (engine.h) feeds it from files.
//
//   auto classifier = make_cpu_classifier(model, {.input = InputKind::ids, .precision = Precision::fp32});
//   classifier->run({.num_sentences = n, .ids = ids}, {.logits = logits});
//
// The same sentence gives the same bits whatever the batch, its neighbours, its place and the number of threads, for a
// given back end, input kind, precision and processor.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "tessera/classifier/model.h"

namespace tessera::classifier {

enum class InputKind : uint8_t { ids, embeddings };

/// What the GEMMs of convolutions, experts and head layers multiply; sums are fp32. The router's softmax and the output
/// layer are fp32 always. fp16 is for GPUs (cuda_classifier.h). fp64 is the oracle: plain loops, deliberately slow.
enum class Precision : uint8_t { fp32, bf16, fp64, fp16 };

/// A device that stopped answering in the middle of a run: its classifier is of no use any more, others go on.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Batch {
  int64_t num_sentences = 0;
  const int32_t* ids = nullptr;       ///< [num_sentences, sequence_length], each in [0, vocab_size)
  const float* embeddings = nullptr;  ///< [num_sentences, embedding_size, sequence_length]
};

/// not_finite: the input is not finite in the precision asked for, or sums of finite input overflowed.
enum class RecordStatus : uint8_t { ok, id_out_of_range, not_finite };

/// Every non-null array is written completely; a record whose status is not ok gets NaN.
struct Outputs {
  float* logits = nullptr;          ///< [num_sentences, num_classes]
  float* router_weights = nullptr;  ///< [num_sentences, num_experts]; optional
  float* features = nullptr;        ///< [num_sentences, feature_size], the pooled convolutions h; optional
  RecordStatus* status = nullptr;   ///< [num_sentences]; optional
};

class Classifier {
 public:
  virtual ~Classifier() = default;
  /// Throws DeviceError when the device fails, std::bad_alloc when memory is too small for the batch.
  virtual void run(const Batch& batch, const Outputs& outputs) = 0;
  /// One line: back end, precision, algebraic form and the reason for it, memory taken.
  virtual std::string description() const = 0;
  /// Sentences the back end likes to be given at once.
  virtual int64_t preferred_batch() const = 0;
};

struct CpuOptions {
  InputKind input = InputKind::ids;
  Precision precision = Precision::fp32;
  int num_threads = 0;  ///< 0 = every processor this process may use
};

/// Packs what it needs and keeps `model` only as long as it still reads from it (ids input and the fp64 oracle do).
/// Throws Error if the machine or the build lacks the precision asked for.
std::unique_ptr<Classifier> make_cpu_classifier(std::shared_ptr<const Model> model, const CpuOptions& options);

/// Whether bf16 products run in hardware here, and with which library.
bool cpu_supports_bf16();

}  // namespace tessera::classifier
