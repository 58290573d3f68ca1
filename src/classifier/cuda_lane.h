// A lane: a ring of micro-batches on their way to the device, through it and back.
//
//   thread of run()     wait for the slot's last results, hand them out; stage input (pageable memory only)
//   copy stream         input to the slot's device memory
//   compute stream      kernels of one micro-batch after the other, then results to the slot's pinned memory
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "classifier/cuda_form.h"
#include "classifier/cuda_stages.h"
#include "cuda/core/memory.h"
#include "cuda/core/stream.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/core/buffer.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {

class CudaLane final : public CudaClassifier {
 public:
  struct Options {
    InputKind input = InputKind::ids;
    CudaForm form;
    int device = 0;
    std::string device_name;
    int num_staging_threads = 1;
  };

  /// On the current device. Throws std::bad_alloc when `micro_batch` sentences at once need more memory than there is.
  CudaLane(const ClassifierConfig& config, const Options& options, std::shared_ptr<const CudaWeights> weights,
           int64_t micro_batch);
  ~CudaLane() override;

  void run(const Batch& batch, const Outputs& outputs) override;
  std::string description() const override;
  int64_t preferred_batch() const override { return micro_batch_; }
  int device() const override { return options_.device; }
  void enqueue_resident(const void* embeddings, int64_t num_sentences, float* logits) override;
  void synchronize() override;
  int64_t padded_channels() const override { return sizes_.channels; }
  size_t device_bytes() const override;

 private:
  struct Slot {
    cuda::DeviceBytes input;   // embeddings or ids of a micro-batch
    cuda::PinnedBytes staged;  // the same, on its way; for embeddings beyond the first slot taken when needed
    cuda::PinnedBytes logits, router_weights, features, finite;
    std::vector<RecordStatus> status;
    cuda::Event copied, computed;
    int64_t begin = 0;  // sentences of the batch that are under way
    int64_t count = 0;  // 0: none
  };

  void run_on_device(const Batch& batch, const Outputs& outputs);
  void enqueue(Slot& slot, const Batch& batch, const Outputs& outputs, bool is_pinned);
  void stage_ids(Slot& slot, const int32_t* ids);
  void stage_embeddings(Slot& slot, const float* embeddings);
  void fetch_results(Slot& slot, const Outputs& outputs);
  void deliver(Slot& slot, const Outputs& outputs);
  void copy_rows(const Slot& slot, const float* rows, int64_t columns, float* out) const;
  void unpack_features(const Slot& slot, float* out) const;
  void abandon();

  const ClassifierConfig config_;
  const Options options_;
  const CudaSizes sizes_;
  const std::shared_ptr<const CudaWeights> weights_;
  const int64_t micro_batch_;
  const int64_t input_bytes_;  // of a sentence
  ThreadPool staging_threads_;
  cuda::Stream copy_stream_, compute_stream_;
  CudaStages stages_;
  std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace tessera::classifier
