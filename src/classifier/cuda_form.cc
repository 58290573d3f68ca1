#include "classifier/cuda_form.h"

#include <algorithm>
#include <string>

#include "classifier/cpu_form.h"
#include "cuda/kernels/gather_pool/launch.h"
#include "cuda/kernels/implicit_gemm/launch.h"
#include "cuda/kernels/mixture/launch.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "cuda/kernels/spectrum/launch.h"
#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

constexpr int64_t kMaxSequence = 512;

// The table of a whole vocabulary may take this part of the device; the rest holds weights and micro-batches.
constexpr double kTableShareOfMemory = 0.5;

cta::Operand operand_of(const char* layer, Precision precision) {
  switch (precision) {
    case Precision::fp16: return cta::Operand::f16;
    case Precision::bf16: return cta::Operand::bf16;
    case Precision::fp32: return cta::Operand::split;
    default: throw Error(str_cat("precision of ", layer), "fp64", "fp16, bf16 or fp32 on a GPU");
  }
}

void require(bool holds, const std::string& where, const std::string& got, const std::string& expected) {
  if (!holds) throw Error(where, got, expected);
}

void check_limits(const ClassifierConfig& config) {
  require(config.sequence_length <= kMaxSequence, "model on a GPU", str_cat("sequence_length ", config.sequence_length),
          str_cat("at most ", kMaxSequence));
  require(config.num_experts <= kernels::mixture::kMaxExperts, "model on a GPU",
          str_cat(config.num_experts, " experts"), str_cat("at most ", kernels::mixture::kMaxExperts));
  require(config.filter_widths.size() <= static_cast<size_t>(kernels::gather_pool::kMaxWidths), "model on a GPU",
          str_cat(config.filter_widths.size(), " filter widths"),
          str_cat("at most ", kernels::gather_pool::kMaxWidths));
}

void check_form(const ClassifierConfig& config, const CudaOptions& options) {
  if (options.form == Form::vocab && options.input != InputKind::ids) {
    throw Error("form vocab", "embeddings as input", "token ids: embeddings say nothing of the vocabulary");
  }
  if (options.form == Form::dft) {
    constexpr int64_t kMost = kernels::spectrum::kMaxPositions;
    require(config.sequence_length >= 2 && config.sequence_length <= kMost, "form dft",
            str_cat("sequence_length ", config.sequence_length), str_cat("2 to ", kMost));
  }
}

void check_threshold(const ClassifierConfig& config, const CudaOptions& options) {
  require(options.expert_threshold >= 0 && options.expert_threshold < 1, "expert_threshold",
          str_cat(options.expert_threshold), "a number in [0, 1)");
  if (options.expert_threshold == 0) return;
  require(options.precision.experts != Precision::fp32, "expert_threshold", "experts in fp32", "fp16 or bf16");
  require(config.num_experts <= kernels::moe_plan::kMaxTopK, "expert_threshold",
          str_cat(config.num_experts, " experts"), str_cat("at most ", kernels::moe_plan::kMaxTopK));
}

// Frequency space pays where its kernels are at their best (16 positions), where the products dwarf the transforms, and
// where there are a third fewer of them.
bool frequency_space_pays(const ClassifierConfig& config) {
  constexpr int64_t kTunedPositions = 16;
  constexpr int64_t kLeastChannels = 256;
  const int64_t positions = config.sequence_length;
  if (positions != kTunedPositions || config.embedding_size < kLeastChannels) return false;
  int64_t direct = 0;
  for (const int64_t width : config.filter_widths) direct += (positions - width + 1) * width;
  // Two real bins and positions / 2 - 1 complex ones, of 1 and 4 products, for every width.
  const int64_t frequency = (2 + 4 * (positions / 2 - 1)) * static_cast<int64_t>(config.filter_widths.size());
  return 3 * frequency <= 2 * direct;
}

Form automatic_form(const ClassifierConfig& config, InputKind input, int64_t table_row_bytes, size_t memory_bytes) {
  if (input == InputKind::embeddings) return frequency_space_pays(config) ? Form::dft : Form::direct;
  const double table_bytes = static_cast<double>(config.vocab_size) * static_cast<double>(table_row_bytes);
  return table_bytes <= kTableShareOfMemory * static_cast<double>(memory_bytes) ? Form::vocab : Form::distinct;
}

}  // namespace

CudaSizes cuda_sizes(const ClassifierConfig& config, const CudaForm& form) {
  CudaSizes sizes;
  sizes.channels = cta::padded_stride(config.embedding_size);
  sizes.filters = cta::padded_stride(config.num_filters);
  sizes.features = cta::padded_stride(config.feature_size());
  sizes.first_head = form.folded_head ? 1 : 0;
  sizes.expert_size = config.head_input_size(sizes.first_head);
  sizes.expert_stride = cta::padded_stride(sizes.expert_size);
  sizes.table_row_bytes = config.num_taps() * sizes.filters * cta::element_bytes(stored_kind(form.convolutions));
  return sizes;
}

CudaForm select_cuda_form(const ClassifierConfig& config, const CudaOptions& options, size_t device_memory_bytes) {
  check_limits(config);
  check_form(config, options);
  check_threshold(config, options);
  CudaForm form;
  form.convolutions = operand_of("convolutions", options.precision.convolutions);
  form.experts = operand_of("experts", options.precision.experts);
  form.head = operand_of("head", options.precision.head);
  form.expert_threshold = static_cast<float>(options.expert_threshold);
  form.form = options.form;
  if (form.form == Form::automatic) {
    form.form = automatic_form(config, options.input, cuda_sizes(config, form).table_row_bytes, device_memory_bytes);
  }
  if (!config.head_sizes.empty()) {
    form.folded_head = tail_flops(config, {.folded_head = true}) < tail_flops(config, {.folded_head = false});
  }
  return form;
}

int64_t select_micro_batch(const ClassifierConfig& config, const CudaForm& form, const CudaOptions& options) {
  if (options.micro_batch > 0) return options.micro_batch;
  constexpr int64_t kMost = 8192;
  // Embeddings: a slot of 128 MiB. The last micro-batch of a run is computed when nothing is left to copy, so small
  // ones end sooner; smaller ones than this leave the last wave of tiles half empty.
  constexpr int64_t kSlotBytes = int64_t{128} << 20;
  const int64_t record_bytes = config.embedding_size * config.sequence_length * static_cast<int64_t>(sizeof(float));
  if (options.input == InputKind::embeddings && form.form != Form::distinct) {
    return std::clamp<int64_t>(kSlotBytes / record_bytes, 1, kMost);
  }
  // Distinct tokens: every one of the micro-batch may be different.
  constexpr int64_t kTableBytes = int64_t{4} << 30;
  if (form.form == Form::distinct) {
    const int64_t row_bytes = cuda_sizes(config, form).table_row_bytes;
    return std::clamp<int64_t>(kTableBytes / (row_bytes * config.sequence_length), 1, kMost);
  }
  // Activations of a sentence are small against this but for wide models.
  return std::clamp<int64_t>(int64_t{16} * kSlotBytes / record_bytes, 1, kMost);
}

}  // namespace tessera::classifier
