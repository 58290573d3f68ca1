// One micro-batch through the model on the device: the kernels in their order, on buffers taken once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "classifier/cuda_buffers.h"
#include "classifier/cuda_form.h"
#include "classifier/cuda_weights.h"
#include "cuda/core/stream.h"
#include "cuda/grouped/plan_view.h"
#include "cuda/kernels/implicit_gemm/launch.h"

namespace tessera::classifier {

class CudaStages {
 public:
  /// `weights` are kept. Throws std::bad_alloc when `max_sentences` need more memory than there is.
  CudaStages(const ClassifierConfig& config, const CudaForm& form, std::shared_ptr<const CudaWeights> weights,
             InputKind input, int64_t max_sentences);
  ~CudaStages();

  /// Enqueue one micro-batch; results are in the arrays below until the next one. Device memory all.
  void run_embeddings(const float* embeddings, int64_t num_sentences, const cuda::Stream& stream);
  void run_ids(const int32_t* ids, int64_t num_sentences, const cuda::Stream& stream);
  /// 16-bit rows [num_sentences * S, channels] that lie on the device already, and where the logits go.
  void run_resident(const void* rows, int64_t num_sentences, float* logits, const cuda::Stream& stream);

  const float* logits() const { return logits_; }                  ///< [max, classes]
  const float* router_weights() const { return router_weights_; }  ///< [max, E]
  const uint8_t* finite() const { return finite_; }                ///< [max], or null where nothing can be infinite
  const cta::OperandView& features() const { return h_; }          ///< [max, D]
  size_t device_bytes() const { return buffers_.bytes(); }

 private:
  kernels::implicit_gemm::Task plain_task(const cta::OperandView& x, const DeviceMatrix& weight, int64_t in_features,
                                          int64_t out_features, const cta::OperandView& out) const;

  void make_feature_stages(InputKind input);
  void make_spectrum();
  void make_projection(InputKind input);
  void make_experts();
  void make_head();
  std::vector<kernels::implicit_gemm::Task> convolution_tasks(const cta::OperandView& x) const;

  /// `convolutions`: of x, in the direct form.
  void features_of_rows(const cta::OperandView& x, const kernels::implicit_gemm::ImplicitGemm* convolutions, int64_t n,
                        const cuda::Stream& stream);
  void spectrum_features(const cta::OperandView& x, int64_t n, const cuda::Stream& stream);
  void project_distinct(int64_t num_rows, const cuda::Stream& stream);
  void gather_features(const int32_t* rows, const void* table, int64_t n, const cuda::Stream& stream);
  void run_tail(int64_t n, float* logits, const cuda::Stream& stream);
  void run_experts(int64_t n, const cuda::Stream& stream);
  void run_chosen_experts(int64_t n, const cuda::Stream& stream);
  void combine_experts(const cta::OperandView& rows, const int32_t* token_row, int64_t n, const cuda::Stream& stream);

  const ClassifierConfig config_;
  const CudaForm form_;
  const CudaSizes sizes_;
  const std::shared_ptr<const CudaWeights> weights_;
  const int64_t max_sentences_;

  CudaBuffers buffers_;  // all arrays below

  cta::OperandView x_;         // [max * S, C]: but for ids with vocab
  uint8_t* finite_ = nullptr;  // [max]

  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> convolutions_;  // direct
  // direct, run_resident: tensor maps of a caller's memory, by its address
  std::map<const void*, std::unique_ptr<kernels::implicit_gemm::ImplicitGemm>> resident_;
  std::vector<cta::OperandView> input_bins_;   // dft: per bin [max, C or 2 C']
  std::vector<cta::OperandView> output_bins_;  // dft: per bin [max, D or 2 D']
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> bins_;
  cta::OperandView distinct_;        // distinct: [rows, C]
  int32_t* distinct_ids_ = nullptr;  // distinct, ids: [rows]
  int32_t* row_index_ = nullptr;     // distinct: [max * S]
  int32_t* num_distinct_ = nullptr;  // distinct: [1]
  void* distinct_workspace_ = nullptr;
  void* table_ = nullptr;  // distinct: [rows * taps, F']
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> projection_;

  cta::OperandView h_;               // [max, D]
  float* router_weights_ = nullptr;  // [max, E]
  cta::OperandView expert_rows_;     // [max * E, X]
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> experts_;

  // Where experts are skipped:
  int32_t* topk_ids_ = nullptr;  // [max, E]
  grouped::PlanView plan_{};
  void* chosen_rows_ = nullptr;  // [max * E, X]
  int32_t num_multiprocessors_ = 0;

  std::vector<cta::OperandView> activations_;  // y, then the output of each head layer
  std::vector<std::unique_ptr<kernels::implicit_gemm::ImplicitGemm>> head_;
  float* logits_ = nullptr;
};

}  // namespace tessera::classifier
