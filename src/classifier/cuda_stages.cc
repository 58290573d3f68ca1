#include "classifier/cuda_stages.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "cuda/core/cuda_check.h"
#include "cuda/kernels/distinct_rows/launch.h"
#include "cuda/kernels/expert_gemm/launch.h"
#include "cuda/kernels/gather_pool/launch.h"
#include "cuda/kernels/mixture/launch.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "cuda/kernels/operand_rows/launch.h"
#include "cuda/kernels/output_layer/launch.h"
#include "cuda/kernels/spectrum/launch.h"
#include "moe/array_layout.h"
#include "moe/cuda/workspace.h"
#include "tessera/core/check.h"

namespace tessera::classifier {

using kernels::implicit_gemm::ImplicitGemm;
using kernels::implicit_gemm::Task;
namespace spectrum = kernels::spectrum;

namespace {

constexpr int32_t kChosenClusters = 2;

int32_t as_int(int64_t value) { return static_cast<int32_t>(value); }

}  // namespace

CudaStages::CudaStages(const ClassifierConfig& config, const CudaForm& form, std::shared_ptr<const CudaWeights> weights,
                       InputKind input, int64_t max_sentences)
    : config_(config),
      form_(form),
      sizes_(cuda_sizes(config, form)),
      weights_(std::move(weights)),
      max_sentences_(max_sentences) {
  make_feature_stages(input);
  make_experts();
  make_head();
}

CudaStages::~CudaStages() = default;

void CudaStages::make_feature_stages(InputKind input) {
  h_ = buffers_.take_matrix(form_.experts, max_sentences_, sizes_.features);
  const bool needs_rows = input == InputKind::embeddings || !form_.projects_tokens();
  if (needs_rows)
    x_ = buffers_.take_matrix(form_.convolutions, max_sentences_ * config_.sequence_length, sizes_.channels);
  if (input == InputKind::embeddings || form_.form == Form::dft) finite_ = buffers_.take<uint8_t>(max_sentences_);
  if (form_.form == Form::direct) convolutions_ = std::make_unique<ImplicitGemm>(convolution_tasks(x_), max_sentences_);
  if (form_.form == Form::dft) make_spectrum();
  if (form_.form == Form::distinct) make_projection(input);
}

std::vector<Task> CudaStages::convolution_tasks(const cta::OperandView& x) const {
  std::vector<Task> tasks;
  for (size_t width = 0; width < config_.filter_widths.size(); ++width) {
    const int64_t first_feature = static_cast<int64_t>(width) * config_.num_filters;
    const DeviceMatrix& weight = weights_->convolutions[width];
    Task task;
    task.x = x;
    task.weight = weight.view;
    task.channels = as_int(sizes_.channels);
    task.positions = as_int(config_.sequence_length);
    task.taps = as_int(config_.filter_widths[width]);
    task.out_features = as_int(config_.num_filters);
    task.scale = weight.scale;
    task.bias = weights_->convolution_bias + first_feature;
    task.relu = true;
    task.out = h_;
    task.out.data = static_cast<std::byte*>(h_.data) + first_feature * cta::element_bytes(h_.kind);
    tasks.push_back(task);
  }
  return tasks;
}

Task CudaStages::plain_task(const cta::OperandView& x, const DeviceMatrix& weight, int64_t in_features,
                            int64_t out_features, const cta::OperandView& out) const {
  Task task;
  task.x = x;
  task.weight = weight.view;
  task.channels = as_int(cta::padded_stride(in_features));
  task.out_features = as_int(out_features);
  task.scale = weight.scale;
  task.out = out;
  return task;
}

void CudaStages::make_spectrum() {
  const auto positions = as_int(config_.sequence_length);
  std::vector<Task> tasks;
  for (int32_t bin = 0; bin < spectrum::num_bins(positions); ++bin) {
    const int64_t parts = spectrum::is_real_bin(bin, positions) ? 1 : 2;
    input_bins_.push_back(buffers_.take_matrix(form_.convolutions, max_sentences_, parts * sizes_.channels));
    output_bins_.push_back(
        buffers_.take_matrix(stored_kind(form_.convolutions), max_sentences_, parts * sizes_.features));
    const int64_t outputs = parts == 1 ? config_.feature_size() : 2 * sizes_.features;
    tasks.push_back(plain_task(input_bins_.back(), weights_->bins[static_cast<size_t>(bin)], parts * sizes_.channels,
                               outputs, output_bins_.back()));
  }
  bins_ = std::make_unique<ImplicitGemm>(tasks, max_sentences_);
}

void CudaStages::make_projection(InputKind input) {
  const int64_t num_rows = max_sentences_ * config_.sequence_length;
  int64_t most = num_rows;
  num_distinct_ = buffers_.take<int32_t>(1);
  row_index_ = buffers_.take<int32_t>(num_rows);
  size_t workspace_bytes = kernels::distinct_rows::workspace_bytes(num_rows);
  if (input == InputKind::ids) {
    most = std::min(num_rows, config_.vocab_size);
    distinct_ids_ = buffers_.take<int32_t>(most);
    workspace_bytes = kernels::distinct_rows::token_workspace_bytes(num_rows, as_int(config_.vocab_size));
  }
  distinct_workspace_ = buffers_.take<std::byte>(static_cast<int64_t>(workspace_bytes));
  distinct_ = buffers_.take_matrix(form_.convolutions, most, sizes_.channels);
  table_ = buffers_.take<std::byte>(most * sizes_.table_row_bytes);
  Task task;
  task.x = distinct_;
  task.weight = weights_->taps.view;
  task.channels = as_int(sizes_.channels);
  task.out_features = as_int(config_.num_taps() * sizes_.filters);
  task.scale = weights_->taps.scale;
  task.out = {table_, stored_kind(form_.convolutions), config_.num_taps() * sizes_.filters, 0};
  projection_ = std::make_unique<ImplicitGemm>(std::span(&task, 1), most);
}

void CudaStages::make_experts() {
  const int64_t pairs = max_sentences_ * config_.num_experts;
  router_weights_ = buffers_.take<float>(pairs);
  if (form_.skips_experts()) {
    topk_ids_ = buffers_.take<int32_t>(pairs);
    const auto lay_out_plan = [&](void* base) {
      moe::ArrayLayout layout(base, moe::kWorkspaceAlignment);
      plan_ = moe::take_plan(layout, as_int(config_.num_experts), static_cast<size_t>(pairs));
      return static_cast<int64_t>(layout.used());
    };
    lay_out_plan(buffers_.take<std::byte>(lay_out_plan(nullptr)));
    chosen_rows_ = buffers_.take<uint16_t>(pairs * sizes_.expert_stride);
    int device = 0;
    TESSERA_CUDA_CHECK(cudaGetDevice(&device));
    TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&num_multiprocessors_, cudaDevAttrMultiProcessorCount, device));
    return;
  }
  expert_rows_ =
      buffers_.take_matrix(stored_kind(form_.experts), max_sentences_, config_.num_experts * sizes_.expert_stride);
  std::vector<Task> tasks;
  for (int64_t e = 0; e < config_.num_experts; ++e) {
    Task task = plain_task(h_, weights_->experts, config_.feature_size(), sizes_.expert_size, expert_rows_);
    const int64_t first_row = e * sizes_.expert_stride;
    task.weight.data = static_cast<uint16_t*>(weights_->experts.view.data) + first_row * weights_->experts.view.stride;
    task.bias = weights_->expert_bias + first_row;
    task.out.data = static_cast<std::byte*>(task.out.data) + first_row * cta::element_bytes(task.out.kind);
    tasks.push_back(task);
  }
  experts_ = std::make_unique<ImplicitGemm>(tasks, max_sentences_);
}

void CudaStages::make_head() {
  const size_t num_layers = config_.head_sizes.size() - sizes_.first_head;
  for (size_t i = 0; i <= num_layers; ++i) {
    const cta::Operand kind = i == num_layers ? cta::Operand::f32 : form_.head;  // the output layer reads fp32
    activations_.push_back(
        buffers_.take_matrix(kind, max_sentences_, cta::padded_stride(config_.head_input_size(sizes_.first_head + i))));
  }
  for (size_t i = 0; i < num_layers; ++i) {
    const size_t layer = sizes_.first_head + i;
    Task task = plain_task(activations_[i], weights_->head[i], config_.head_input_size(layer),
                           config_.head_sizes[layer], activations_[i + 1]);
    task.bias = weights_->head_bias[i];
    task.relu = true;
    head_.push_back(std::make_unique<ImplicitGemm>(std::span(&task, 1), max_sentences_));
  }
  logits_ = buffers_.take<float>(max_sentences_ * config_.num_classes);
}

void CudaStages::run_embeddings(const float* embeddings, int64_t n, const cuda::Stream& stream) {
  kernels::operand_rows::convert_embeddings({.embeddings = embeddings,
                                             .rows = x_,
                                             .finite = finite_,
                                             .num_records = n,
                                             .channels = as_int(config_.embedding_size),
                                             .positions = as_int(config_.sequence_length)},
                                            stream.get());
  features_of_rows(x_, convolutions_.get(), n, stream);
  run_tail(n, logits_, stream);
}

void CudaStages::run_ids(const int32_t* ids, int64_t n, const cuda::Stream& stream) {
  const int64_t num_rows = n * config_.sequence_length;
  if (form_.form == Form::vocab) {
    gather_features(ids, weights_->table, n, stream);
  } else if (form_.form == Form::distinct) {
    kernels::distinct_rows::find_tokens({.ids = ids,
                                         .num_rows = num_rows,
                                         .vocab_size = as_int(config_.vocab_size),
                                         .distinct_ids = distinct_ids_,
                                         .row_index = row_index_,
                                         .num_distinct = num_distinct_,
                                         .workspace = distinct_workspace_},
                                        stream.get());
    // Ids beyond the count are zeros or those of an earlier micro-batch: copied, never multiplied.
    const int64_t most = std::min(num_rows, config_.vocab_size);
    kernels::operand_rows::gather_tokens(
        {.ids = distinct_ids_, .table = weights_->embedding.view, .rows = distinct_, .num_rows = most}, stream.get());
    project_distinct(most, stream);
    gather_features(row_index_, table_, n, stream);
  } else {
    kernels::operand_rows::gather_tokens(
        {.ids = ids, .table = weights_->embedding.view, .rows = x_, .num_rows = num_rows}, stream.get());
    if (finite_ != nullptr) {
      TESSERA_CUDA_CHECK(cudaMemsetAsync(finite_, 1, static_cast<size_t>(n), stream.get()));
    }
    features_of_rows(x_, convolutions_.get(), n, stream);
  }
  run_tail(n, logits_, stream);
}

void CudaStages::run_resident(const void* rows, int64_t n, float* logits, const cuda::Stream& stream) {
  TESSERA_CHECK(form_.convolutions != cta::Operand::split && form_.form != Form::vocab, form_name(form_.form));
  const cta::OperandView x{const_cast<void*>(rows), form_.convolutions, sizes_.channels, 0};
  ImplicitGemm* convolutions = nullptr;
  if (form_.form == Form::direct) {
    std::unique_ptr<ImplicitGemm>& gemm = resident_[rows];
    if (!gemm) gemm = std::make_unique<ImplicitGemm>(convolution_tasks(x), max_sentences_);
    convolutions = gemm.get();
  }
  features_of_rows(x, convolutions, n, stream);
  run_tail(n, logits, stream);
}

void CudaStages::features_of_rows(const cta::OperandView& x, const ImplicitGemm* convolutions, int64_t n,
                                  const cuda::Stream& stream) {
  if (form_.form == Form::direct) return convolutions->launch(n, stream.get());
  if (form_.form == Form::dft) return spectrum_features(x, n, stream);
  const int64_t num_rows = n * config_.sequence_length;
  kernels::distinct_rows::find({.rows = x,
                                .num_rows = num_rows,
                                .row_columns = as_int(sizes_.channels),
                                .distinct = distinct_,
                                .row_index = row_index_,
                                .num_distinct = num_distinct_,
                                .workspace = distinct_workspace_},
                               stream.get());
  project_distinct(num_rows, stream);
  gather_features(row_index_, table_, n, stream);
}

void CudaStages::spectrum_features(const cta::OperandView& x, int64_t n, const cuda::Stream& stream) {
  spectrum::ForwardArgs forward{};
  spectrum::InversePoolArgs inverse{};
  for (size_t bin = 0; bin < input_bins_.size(); ++bin) {
    forward.bins[bin] = input_bins_[bin];
    inverse.bins[bin] = output_bins_[bin];
  }
  forward.x = x;
  forward.imaginary_offset = as_int(sizes_.channels);
  forward.twiddle = weights_->twiddle;
  forward.num_records = n;
  forward.channels = as_int(sizes_.channels);
  forward.positions = as_int(config_.sequence_length);
  forward.finite = finite_;
  spectrum::forward(forward, stream.get());
  bins_->launch(n, stream.get());
  inverse.imaginary_offset = as_int(sizes_.features);
  inverse.twiddle = forward.twiddle;
  inverse.bias = weights_->convolution_bias;
  inverse.out = h_;
  inverse.num_records = n;
  inverse.num_features = as_int(config_.feature_size());
  inverse.filters = as_int(config_.num_filters);
  inverse.num_widths = static_cast<int32_t>(config_.filter_widths.size());
  std::transform(config_.filter_widths.begin(), config_.filter_widths.end(), inverse.widths, as_int);
  inverse.positions = forward.positions;
  spectrum::inverse_pool(inverse, stream.get());
}

void CudaStages::project_distinct(int64_t most_rows, const cuda::Stream& stream) {
  projection_->launch(most_rows, stream.get(), num_distinct_);
}

void CudaStages::gather_features(const int32_t* rows, const void* table, int64_t n, const cuda::Stream& stream) {
  kernels::gather_pool::Args args{};
  args.rows = rows;
  args.table = {const_cast<void*>(table), stored_kind(form_.convolutions), sizes_.filters, 0};
  args.bias = weights_->convolution_bias;
  args.out = h_;
  args.num_records = n;
  args.positions = as_int(config_.sequence_length);
  args.filters = as_int(config_.num_filters);
  args.num_widths = static_cast<int32_t>(config_.filter_widths.size());
  std::transform(config_.filter_widths.begin(), config_.filter_widths.end(), args.widths, as_int);
  kernels::gather_pool::launch(args, stream.get());
}

void CudaStages::run_tail(int64_t n, float* logits, const cuda::Stream& stream) {
  kernels::mixture::weigh({.h = h_,
                           .weight = weights_->router_weight,
                           .bias = weights_->router_bias,
                           .router_weights = router_weights_,
                           .threshold = form_.expert_threshold,
                           .topk_ids = topk_ids_,
                           .num_records = n,
                           .num_features = as_int(config_.feature_size()),
                           .num_experts = as_int(config_.num_experts)},
                          stream.get());
  form_.skips_experts() ? run_chosen_experts(n, stream) : run_experts(n, stream);
  for (const auto& layer : head_) layer->launch(n, stream.get());
  const cta::OperandView& last = activations_.back();
  kernels::output_layer::launch({.x = static_cast<const float*>(last.data),
                                 .stride = last.stride,
                                 .weight = weights_->output_weight,
                                 .bias = weights_->output_bias,
                                 .logits = logits,
                                 .num_records = n,
                                 .in_features = as_int(config_.head_input_size(config_.head_sizes.size())),
                                 .num_classes = as_int(config_.num_classes)},
                                stream.get());
}

void CudaStages::run_experts(int64_t n, const cuda::Stream& stream) {
  experts_->launch(n, stream.get());
  cta::OperandView rows = expert_rows_;
  rows.stride = sizes_.expert_stride;  // a row an expert
  combine_experts(rows, nullptr, n, stream);
}

// The weighted sum of the experts' rows; `token_row` says where they are if not all ran.
void CudaStages::combine_experts(const cta::OperandView& rows, const int32_t* token_row, int64_t n,
                                 const cuda::Stream& stream) {
  kernels::mixture::CombineArgs args{};
  args.rows = rows;
  args.token_row = token_row;
  args.router_weights = router_weights_;
  args.output_bias = weights_->mixed_bias;
  args.relu = form_.folded_head;
  args.out = activations_.front();
  args.num_records = n;
  args.num_experts = as_int(config_.num_experts);
  args.expert_size = as_int(sizes_.expert_size);
  kernels::mixture::combine(args, stream.get());
}

void CudaStages::run_chosen_experts(int64_t n, const cuda::Stream& stream) {
  namespace expert_gemm = kernels::expert_gemm;
  constexpr auto kRole = grouped::Role::up_only;
  const int32_t num_experts = as_int(config_.num_experts);
  grouped::Problem problem{};
  problem.plan = plan_;
  problem.hidden_size = as_int(sizes_.features);
  problem.intermediate_size = as_int(sizes_.expert_stride);
  // GEMM 2 is not run; its tiles are planned all the same.
  for (grouped::Tiling& tiling : problem.tilings)
    tiling = expert_gemm::tiling(kRole, problem.intermediate_size, kChosenClusters);
  problem.num_experts = num_experts;
  problem.max_rows = as_int(n) * num_experts;
  problem.dtype = form_.experts == cta::Operand::bf16 ? DType::bf16 : DType::f16;
  problem.operand_bytes = 2;
  problem.activation.kind = ActivationKind::identity;
  problem.tokens = h_.data;
  problem.gate_up = weights_->experts.view.data;
  problem.gate_up_bias = weights_->expert_bias_16;
  problem.intermediate = chosen_rows_;
  kernels::moe_plan::Args plan{};
  plan.topk_ids = topk_ids_;
  plan.num_tokens = as_int(n);
  plan.num_slots = num_experts;
  plan.num_experts = num_experts;
  plan.order = batching::TaskOrder::heavy_first;
  std::copy(std::begin(problem.tilings), std::end(problem.tilings), std::begin(plan.tilings));
  plan.plan = plan_;
  kernels::moe_plan::launch(plan, stream.get());
  const grouped::LaunchOptions options{num_multiprocessors_, kChosenClusters, 0};
  expert_gemm::launch(problem, kRole, options, stream.get());
  combine_experts({chosen_rows_, form_.experts, sizes_.expert_stride, 0}, plan_.token_row, n, stream);
}

}  // namespace tessera::classifier
