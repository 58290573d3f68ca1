// One micro-batch through the model on the device: the kernels in their order, on buffers taken once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "classifier/cuda_form.h"
#include "classifier/cuda_weights.h"
#include "cuda/core/memory.h"
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

  const float* logits() const { return logits_.as<float>(); }                  ///< [max, classes]
  const float* router_weights() const { return router_weights_.as<float>(); }  ///< [max, E]
  const uint8_t* finite() const { return finite_.as<uint8_t>(); }  ///< [max], or null where nothing can be infinite
  const cta::OperandView& features() const { return h_.view; }     ///< [max, D]
  size_t device_bytes() const;

 private:
  struct Matrix {
    cuda::DeviceBytes memory;
    cta::OperandView view;
  };
  static Matrix make_matrix(cta::Operand kind, int64_t rows, int64_t stride);
  kernels::implicit_gemm::Task plain_task(const cta::OperandView& x, const DeviceMatrix& weight, int64_t in_features,
                                          int64_t out_features, const Matrix& out) const;

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

  Matrix x_;  // [max * S, C]: but for ids with vocab
  cuda::DeviceBytes finite_;
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> convolutions_;  // direct
  // direct, run_resident: tensor maps of a caller's memory, by its address
  std::map<const void*, std::unique_ptr<kernels::implicit_gemm::ImplicitGemm>> resident_;
  std::vector<Matrix> input_bins_;   // dft: per bin [max, C or 2 C']
  std::vector<Matrix> output_bins_;  // dft: per bin [max, D or 2 D']
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> bins_;
  Matrix distinct_;  // distinct: [rows, C]
  cuda::DeviceBytes distinct_ids_, row_index_, num_distinct_, distinct_workspace_;
  cuda::DeviceBytes table_;  // distinct: [rows * taps, F']
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> projection_;
  Matrix h_;                          // [max, D]
  cuda::DeviceBytes router_weights_;  // [max, E]
  Matrix expert_rows_;                // [max * E, X]
  std::unique_ptr<kernels::implicit_gemm::ImplicitGemm> experts_;
  cuda::DeviceBytes topk_ids_, plan_workspace_;  // where experts are skipped
  grouped::PlanView plan_{};
  void* chosen_rows_ = nullptr;
  int32_t num_multiprocessors_ = 0;  // where experts are skipped
  std::vector<Matrix> activations_;  // y, then the output of each head layer
  std::vector<std::unique_ptr<kernels::implicit_gemm::ImplicitGemm>> head_;
  cuda::DeviceBytes logits_;
};

}  // namespace tessera::classifier
