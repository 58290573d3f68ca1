#include "classifier/cuda_lane.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "cuda/core/lost_device.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

constexpr size_t kNumSlots = 3;  // one is computed, one is copied, one is staged or delivered

// Bytes that one thread copies into pinned memory at a time: long against taking the next piece.
constexpr int64_t kStagingPiece = int64_t{1} << 20;

/// A range in the timeline of a profiler.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name) { nvtxRangePushA(name); }
  ~ProfilerRange() { nvtxRangePop(); }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

bool is_page_locked(const void* memory) {
  cudaPointerAttributes attributes{};
  TESSERA_CUDA_CHECK(cudaPointerGetAttributes(&attributes, memory));
  return attributes.type == cudaMemoryTypeHost;
}

/// CUDA errors as the engine knows them.
template <class Body>
void on_device(int device, const Body& body) {
  try {
    cuda::throw_if_lost(device);
    TESSERA_CUDA_CHECK(cudaSetDevice(device));
    body();
  } catch (const cuda::CudaError& error) {
    throw DeviceError(cuda::describe_failure(device, error));
  }
}

const char* kind_name(cta::Operand kind) {
  return kind == cta::Operand::f16 ? "fp16" : kind == cta::Operand::bf16 ? "bf16" : "fp32 (3 x fp16)";
}

float widen(cta::Operand kind, const uint16_t* high, const uint16_t* low) {
  if (kind == cta::Operand::bf16) return bf16_to_f32(*high);
  return f16_to_f32(*high) + (kind == cta::Operand::split ? f16_to_f32(*low) : 0.0f);
}

}  // namespace

CudaLane::CudaLane(const ClassifierConfig& config, const Options& options, std::shared_ptr<const CudaWeights> weights,
                   int64_t micro_batch)
    : config_(config),
      options_(options),
      sizes_(cuda_sizes(config, options.form)),
      weights_(std::move(weights)),
      micro_batch_(micro_batch),
      input_bytes_(options.input == InputKind::ids
                       ? config.sequence_length * static_cast<int64_t>(sizeof(int32_t))
                       : config.embedding_size * config.sequence_length * static_cast<int64_t>(sizeof(float))),
      staging_threads_(options.num_staging_threads),
      stages_(config, options.form, weights_, options.input, micro_batch) {
  const auto sentences = static_cast<size_t>(micro_batch);
  for (size_t i = 0; i < kNumSlots; ++i) {
    auto slot = std::make_unique<Slot>();
    slot->input = cuda::DeviceBytes::zeros(sentences * static_cast<size_t>(input_bytes_));
    // Taking pinned memory costs more than a run of a few micro-batches; embeddings that come one micro-batch a run, as
    // the engine hands them out, need that of the first slot only.
    if (options.input == InputKind::ids || i == 0) slot->staged = cuda::PinnedBytes(slot->input.bytes());
    slot->logits = cuda::PinnedBytes(sentences * static_cast<size_t>(config.num_classes) * sizeof(float));
    slot->router_weights = cuda::PinnedBytes(sentences * static_cast<size_t>(config.num_experts) * sizeof(float));
    slot->finite = cuda::PinnedBytes(sentences);
    slot->status.resize(sentences);
    slots_.push_back(std::move(slot));
  }
}

CudaLane::~CudaLane() { cudaSetDevice(options_.device); }

void CudaLane::run(const Batch& batch, const Outputs& outputs) {
  TESSERA_CHECK(batch.num_sentences >= 0, batch.num_sentences);
  const bool has_input = options_.input == InputKind::ids ? batch.ids != nullptr : batch.embeddings != nullptr;
  TESSERA_CHECK(has_input || batch.num_sentences == 0, batch.num_sentences);
  if (batch.num_sentences == 0) return;
  on_device(options_.device, [&] { run_on_device(batch, outputs); });
}

void CudaLane::run_on_device(const Batch& batch, const Outputs& outputs) {
  const ProfilerRange range("tessera classifier run");
  const bool is_pinned = options_.input == InputKind::embeddings && is_page_locked(batch.embeddings);
  try {
    size_t next = 0;
    for (int64_t begin = 0; begin < batch.num_sentences; begin += micro_batch_) {
      Slot& slot = *slots_[next];
      next = (next + 1) % kNumSlots;
      deliver(slot, outputs);
      slot.begin = begin;
      slot.count = std::min(micro_batch_, batch.num_sentences - begin);
      enqueue(slot, batch, outputs, is_pinned);
    }
    for (size_t i = 0; i < kNumSlots; ++i) deliver(*slots_[(next + i) % kNumSlots], outputs);
  } catch (...) {
    abandon();
    throw;
  }
}

/// After an error nothing of this batch is under way any more.
void CudaLane::abandon() {
  cudaStreamSynchronize(copy_stream_.get());
  cudaStreamSynchronize(compute_stream_.get());
  for (const auto& slot : slots_) slot->count = 0;
}

void CudaLane::enqueue(Slot& slot, const Batch& batch, const Outputs& outputs, bool is_pinned) {
  const void* source = nullptr;
  std::fill_n(slot.status.begin(), slot.count, RecordStatus::ok);
  if (options_.input == InputKind::ids) {
    stage_ids(slot, batch.ids + slot.begin * config_.sequence_length);
    source = slot.staged.as<void>();
  } else {
    source = batch.embeddings + slot.begin * config_.embedding_size * config_.sequence_length;
    if (!is_pinned) {
      stage_embeddings(slot, static_cast<const float*>(source));
      source = slot.staged.as<void>();
    }
  }
  const auto bytes = static_cast<size_t>(slot.count * input_bytes_);
  // The slot's last micro-batch has been delivered, so its device memory is free.
  TESSERA_CUDA_CHECK(cudaMemcpyAsync(slot.input.data(), source, bytes, cudaMemcpyHostToDevice, copy_stream_.get()));
  slot.copied.record(copy_stream_);
  slot.copied.make_wait(compute_stream_);
  const ProfilerRange range("tessera micro-batch");
  if (options_.input == InputKind::ids) {
    stages_.run_ids(slot.input.as<int32_t>(), slot.count, compute_stream_);
  } else {
    stages_.run_embeddings(slot.input.as<float>(), slot.count, compute_stream_);
  }
  fetch_results(slot, outputs);
  slot.computed.record(compute_stream_);
}

/// Ids into pinned memory. A sentence with an id out of range is computed as one of zeros, which no other sees.
void CudaLane::stage_ids(Slot& slot, const int32_t* ids) {
  const ProfilerRange range("tessera staging");
  const int64_t length = config_.sequence_length;
  const auto vocab_size = static_cast<uint32_t>(config_.vocab_size);
  auto* staged = slot.staged.as<int32_t>();
  for (int64_t sentence = 0; sentence < slot.count; ++sentence) {
    const int32_t* source = ids + sentence * length;
    int32_t* target = staged + sentence * length;
    bool in_range = true;
    for (int64_t i = 0; i < length; ++i) {
      in_range &= static_cast<uint32_t>(source[i]) < vocab_size;  // negative ids are large numbers
      target[i] = source[i];
    }
    if (in_range) continue;
    std::fill_n(target, length, 0);
    slot.status[static_cast<size_t>(sentence)] = RecordStatus::id_out_of_range;
  }
}

void CudaLane::stage_embeddings(Slot& slot, const float* embeddings) {
  const ProfilerRange range("tessera staging");
  if (slot.staged.bytes() == 0) slot.staged = cuda::PinnedBytes(slot.input.bytes());
  const int64_t bytes = slot.count * input_bytes_;
  staging_threads_.run((bytes + kStagingPiece - 1) / kStagingPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kStagingPiece;
    std::memcpy(slot.staged.as<std::byte>() + begin, reinterpret_cast<const std::byte*>(embeddings) + begin,
                static_cast<size_t>(std::min(kStagingPiece, bytes - begin)));
  });
}

/// Results of the micro-batch to pinned memory, behind its kernels.
void CudaLane::fetch_results(Slot& slot, const Outputs& outputs) {
  const auto fetch = [&](void* target, const void* source, size_t bytes) {
    TESSERA_CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, compute_stream_.get()));
  };
  const auto count = static_cast<size_t>(slot.count);
  fetch(slot.logits.as<void>(), stages_.logits(), count * static_cast<size_t>(config_.num_classes) * sizeof(float));
  if (stages_.finite() != nullptr) fetch(slot.finite.as<void>(), stages_.finite(), count);
  if (outputs.router_weights != nullptr) {
    fetch(slot.router_weights.as<void>(), stages_.router_weights(),
          count * static_cast<size_t>(config_.num_experts) * sizeof(float));
  }
  if (outputs.features == nullptr) return;
  const cta::OperandView& features = stages_.features();
  const auto row_bytes = static_cast<size_t>(features.stride * cta::element_bytes(features.kind));
  const auto planes = static_cast<size_t>(cta::num_planes(features.kind));
  const size_t plane_bytes = static_cast<size_t>(micro_batch_) * row_bytes;
  if (slot.features.bytes() == 0) slot.features = cuda::PinnedBytes(planes * plane_bytes);
  for (size_t plane = 0; plane < planes; ++plane) {
    fetch(slot.features.as<std::byte>() + plane * plane_bytes,
          static_cast<const std::byte*>(features.data) + plane * plane_bytes, count * row_bytes);
  }
}

/// Waits for the slot's micro-batch, if there is one, and writes the caller's arrays.
void CudaLane::deliver(Slot& slot, const Outputs& outputs) {
  if (slot.count == 0) return;
  slot.computed.synchronize();
  const int64_t classes = config_.num_classes;
  for (int64_t i = 0; i < slot.count; ++i) {
    RecordStatus& status = slot.status[static_cast<size_t>(i)];
    const float* row = slot.logits.as<float>() + i * classes;
    const bool is_finite = std::all_of(row, row + classes, [](float value) { return std::isfinite(value); });
    const bool was_finite = stages_.finite() == nullptr || slot.finite.as<uint8_t>()[i] != 0;
    if (status == RecordStatus::ok && !(is_finite && was_finite)) status = RecordStatus::not_finite;
  }
  copy_rows(slot, slot.logits.as<float>(), classes, outputs.logits);
  copy_rows(slot, slot.router_weights.as<float>(), config_.num_experts, outputs.router_weights);
  if (outputs.features != nullptr) unpack_features(slot, outputs.features);
  if (outputs.status != nullptr) std::copy_n(slot.status.begin(), slot.count, outputs.status + slot.begin);
  slot.count = 0;
}

void CudaLane::copy_rows(const Slot& slot, const float* rows, int64_t columns, float* out) const {
  if (out == nullptr) return;
  for (int64_t i = 0; i < slot.count; ++i) {
    float* target = out + (slot.begin + i) * columns;
    if (slot.status[static_cast<size_t>(i)] == RecordStatus::ok) {
      std::copy_n(rows + i * columns, columns, target);
    } else {
      std::fill_n(target, columns, std::numeric_limits<float>::quiet_NaN());
    }
  }
}

void CudaLane::unpack_features(const Slot& slot, float* out) const {
  const cta::OperandView& view = stages_.features();
  const auto* high = slot.features.as<uint16_t>();
  const uint16_t* low = view.kind == cta::Operand::split ? high + micro_batch_ * view.stride : high;
  const int64_t columns = config_.feature_size();
  Buffer<float> rows(static_cast<size_t>(slot.count * columns));
  for (int64_t i = 0; i < slot.count; ++i) {
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t source = i * view.stride + column;
      rows[static_cast<size_t>(i * columns + column)] = widen(view.kind, high + source, low + source);
    }
  }
  copy_rows(slot, rows.data(), columns, out);
}

void CudaLane::enqueue_resident(const void* embeddings, int64_t num_sentences, float* logits) {
  TESSERA_CHECK(options_.input == InputKind::embeddings, "a lane for embeddings");
  on_device(options_.device, [&] {
    const int64_t row_bytes = config_.sequence_length * sizes_.channels * static_cast<int64_t>(sizeof(uint16_t));
    for (int64_t begin = 0; begin < num_sentences; begin += micro_batch_) {
      const int64_t count = std::min(micro_batch_, num_sentences - begin);
      stages_.run_resident(static_cast<const std::byte*>(embeddings) + begin * row_bytes, count,
                           logits + begin * config_.num_classes, compute_stream_);
    }
  });
}

void CudaLane::synchronize() {
  on_device(options_.device, [&] { compute_stream_.synchronize(); });
}

size_t CudaLane::device_bytes() const {
  size_t bytes = weights_->device_bytes() + stages_.device_bytes();
  for (const auto& slot : slots_) bytes += slot->input.bytes();
  return bytes;
}

std::string CudaLane::description() const {
  const CudaForm& form = options_.form;
  std::string text = str_cat("cuda:", options_.device, " (", options_.device_name, "), ", kind_name(form.convolutions));
  if (form.experts != form.convolutions || form.head != form.convolutions) {
    text += str_cat(" convolutions, ", kind_name(form.experts), " experts, ", kind_name(form.head), " head");
  }
  text +=
      str_cat("; form ", form_name(form.form), form.folded_head ? ", first head layer folded into the experts" : "");
  if (form.skips_experts()) text += str_cat(", experts below ", form.expert_threshold, " skipped");
  constexpr size_t kHalfMebibyte = size_t{1} << 19;
  return str_cat(text, "; micro-batches of ", micro_batch_, "; ", (device_bytes() + kHalfMebibyte) >> 20, " MiB");
}

}  // namespace tessera::classifier
