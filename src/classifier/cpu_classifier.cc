#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "classifier/cpu_form.h"
#include "classifier/reference_classifier.h"
#include "cpu/convolution.h"
#include "cpu/gemm.h"
#include "cpu/head.h"
#include "cpu/mixture.h"
#include "cpu/page_buffer.h"
#include "cpu/projected_convolution.h"
#include "tessera/classifier/classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {
namespace {

cpu::LinearLayer layer_of(const LinearWeights& weights, int64_t out_features, int64_t in_features) {
  TESSERA_CHECK(weights.weight.size() == static_cast<size_t>(out_features * in_features), weights.weight.size(),
                out_features, in_features);
  TESSERA_CHECK(weights.bias.size() == static_cast<size_t>(out_features), weights.bias.size(), out_features);
  return {weights.weight.data(), weights.bias.data(), out_features, in_features};
}

cpu::ConvolutionShape convolution_shape(const ClassifierConfig& config) {
  return {config.embedding_size, config.sequence_length, config.num_filters, config.filter_widths};
}

std::vector<cpu::ConvolutionWeights> convolution_weights(const Model& model) {
  const ClassifierConfig& config = model.config;
  TESSERA_CHECK(model.weights.conv.size() == config.filter_widths.size(), model.weights.conv.size());
  std::vector<cpu::ConvolutionWeights> weights;
  for (size_t i = 0; i < config.filter_widths.size(); ++i) {
    const cpu::LinearLayer layer =
        layer_of(model.weights.conv[i], config.num_filters, config.embedding_size * config.filter_widths[i]);
    weights.push_back({layer.weight, layer.bias});
  }
  return weights;
}

// Sentences computed at once. Enough to fill every thread; at most about a second of work on slow processors, so that a
// run can be stopped; whole tiles of rows.
int64_t select_slice(const ClassifierConfig& config, const CpuForm& form, DType operand, int num_threads) {
  constexpr int64_t kFlopsPerThread = 64'000'000'000;       // fp32: the portable loops reach 75 GFLOP/s
  constexpr int64_t kBf16FlopsPerThread = 256'000'000'000;  // only in hardware: 500 GFLOP/s and more
  constexpr int64_t kMaxSlice = 256;  // beyond it nothing is gained; new tokens are projected per slice
  const int64_t flops_per_thread = operand == DType::bf16 ? kBf16FlopsPerThread : kFlopsPerThread;
  const int64_t flops = form.projected_vocabulary ? tail_flops(config, form) : config.flops_per_sentence();
  const int64_t affordable = std::clamp<int64_t>(num_threads * (flops_per_thread / flops), 1, kMaxSlice);
  int64_t tile = cpu::kRowTile;
  if (!form.projected_vocabulary && affordable < cpu::kRowTile / 2) {
    tile = cpu::select_policy(convolution_shape(config)).records_per_tile;
  }
  return (affordable + tile - 1) / tile * tile;
}

class CpuClassifier final : public Classifier {
 public:
  CpuClassifier(std::shared_ptr<const Model> model, const CpuOptions& options)
      : config_(model->config),
        input_(options.input),
        operand_(options.precision == Precision::bf16 ? DType::bf16 : DType::f32),
        pool_(options.num_threads),
        form_(select_cpu_form(config_, input_, cpu::physical_memory_bytes())),
        slice_(select_slice(config_, form_, operand_, pool_.num_threads())) {
    build_convolutions(*model);
    build_tail(*model);
    const size_t rows = static_cast<size_t>(cpu::padded_rows(slice_));
    const size_t mixed = static_cast<size_t>(config_.head_input_size(form_.folded_head ? 1 : 0));
    features_ = zeros(rows * static_cast<size_t>(config_.feature_size()));
    mixed_ = zeros(rows * mixed);
    router_weights_ = zeros(rows * static_cast<size_t>(config_.num_experts));
    logits_ = zeros(rows * static_cast<size_t>(config_.num_classes));
    finite_ = Buffer<uint8_t>(rows);
    status_.resize(rows);
    if (input_ == InputKind::ids) {
      ids_ = Buffer<int32_t>(rows * static_cast<size_t>(config_.sequence_length));
      model_ = std::move(model);
    }
  }

  void run(const Batch& batch, const Outputs& outputs) override {
    TESSERA_CHECK(batch.num_sentences >= 0, batch.num_sentences);
    const bool has_input = input_ == InputKind::ids ? batch.ids != nullptr : batch.embeddings != nullptr;
    TESSERA_CHECK(has_input || batch.num_sentences == 0, batch.num_sentences);
    for (int64_t begin = 0; begin < batch.num_sentences; begin += slice_) {
      const int64_t count = std::min(slice_, batch.num_sentences - begin);
      std::fill(status_.begin(), status_.end(), RecordStatus::ok);
      if (input_ == InputKind::ids) {
        features_of_ids(batch.ids + begin * config_.sequence_length, count);
      } else {
        features_of_embeddings(batch.embeddings + begin * config_.embedding_size * config_.sequence_length, count);
      }
      mixture_->run(features_.data(), count, mixed_.data(), router_weights_.data());
      head_->run(mixed_.data(), count, logits_.data());
      write(outputs, begin, count);
    }
  }

  std::string description() const override {
    size_t bytes = mixture_->memory_bytes() + head_->memory_bytes() + features_.size() * sizeof(float);
    if (direct_) bytes += direct_->memory_bytes();
    if (projected_) bytes += projected_->memory_bytes();
    std::string text = str_cat("CPU, ", cpu::gemm_library_name(), ", ", operand_ == DType::bf16 ? "bf16" : "fp32", ", ",
                               pool_.num_threads(), " threads; ", form_);
    if (direct_) text += str_cat(" (", reason_for_direct(), "; ", direct_->policy(), ")");
    if (projected_) {
      text += str_cat(" (", projected_->num_projected_tokens(), " of ", config_.vocab_size, " tokens so far)");
    }
    return str_cat(text, "; ", (bytes + (size_t{1} << 19)) >> 20, " MiB");
  }

  int64_t preferred_batch() const override { return slice_; }

 private:
  const char* reason_for_direct() const {
    if (input_ == InputKind::embeddings) return "embeddings";
    return config_.embedding_size < kMinProjectedEmbedding ? "embedding too narrow for a table to pay"
                                                           : "table too large for this machine";
  }

  static Buffer<float> zeros(size_t size) {
    Buffer<float> buffer(size);
    std::fill(buffer.begin(), buffer.end(), 0.0f);
    return buffer;
  }

  void build_convolutions(const Model& model) {
    const cpu::ConvolutionShape shape = convolution_shape(config_);
    const std::vector<cpu::ConvolutionWeights> weights = convolution_weights(model);
    if (form_.projected_vocabulary) {
      projected_.emplace(shape, weights, operand_, model.weights.embedding.data(), config_.vocab_size, pool_);
    } else {
      direct_.emplace(shape, weights, operand_, slice_, pool_);
    }
  }

  void build_tail(const Model& model) {
    const ModelWeights& weights = model.weights;
    TESSERA_CHECK(weights.experts.size() == static_cast<size_t>(config_.num_experts), weights.experts.size());
    TESSERA_CHECK(weights.head.size() == config_.head_sizes.size(), weights.head.size());
    const int64_t feature_size = config_.feature_size();
    std::vector<cpu::LinearLayer> experts;
    for (const LinearWeights& expert : weights.experts) {
      experts.push_back(layer_of(expert, config_.expert_size, feature_size));
    }
    std::vector<cpu::LinearLayer> head;
    for (size_t i = 0; i < weights.head.size(); ++i) {
      head.push_back(layer_of(weights.head[i], config_.head_sizes[i], config_.head_input_size(i)));
    }
    std::vector<cpu::FoldedLayer> folded;
    const float* mixed_bias = nullptr;
    if (form_.folded_head) {
      for (cpu::LinearLayer& expert : experts) {
        folded.push_back(cpu::fold_layers(head.front(), expert, pool_));
        expert = {folded.back().weight.data(), folded.back().bias.data(), head.front().out_features, feature_size};
      }
      mixed_bias = head.front().bias;
      head.erase(head.begin());
    }
    mixture_.emplace(layer_of(weights.router, config_.num_experts, feature_size), experts, mixed_bias, operand_, slice_,
                     pool_);
    head_.emplace(head,
                  layer_of(weights.output, config_.num_classes, config_.head_input_size(config_.head_sizes.size())),
                  operand_, pool_);
  }

  void features_of_ids(const int32_t* ids, int64_t count) {
    // A sentence with an id out of range is computed as one of zeros, which no other sentence sees.
    for (int64_t sentence = 0; sentence < count; ++sentence) {
      const int32_t* source = ids + sentence * config_.sequence_length;
      const bool in_range = std::all_of(source, source + config_.sequence_length,
                                        [&](int32_t id) { return id >= 0 && id < config_.vocab_size; });
      int32_t* destination = ids_.data() + sentence * config_.sequence_length;
      if (in_range) {
        std::copy_n(source, config_.sequence_length, destination);
      } else {
        std::fill_n(destination, config_.sequence_length, 0);
        status_[static_cast<size_t>(sentence)] = RecordStatus::id_out_of_range;
      }
    }
    if (projected_) {
      projected_->run(ids_.data(), count, features_.data());
    } else {
      direct_->run_ids(ids_.data(), model_->weights.embedding.data(), count, features_.data());
    }
  }

  void features_of_embeddings(const float* embeddings, int64_t count) {
    direct_->run_embeddings(embeddings, count, features_.data(), finite_.data());
    for (int64_t sentence = 0; sentence < count; ++sentence) {
      if (finite_[static_cast<size_t>(sentence)] == 0) {
        status_[static_cast<size_t>(sentence)] = RecordStatus::not_finite;
      }
    }
  }

  void write(const Outputs& outputs, int64_t begin, int64_t count) {
    const auto copy = [&](const Buffer<float>& rows, float* out, int64_t size) {
      if (out == nullptr) return;
      for (int64_t sentence = 0; sentence < count; ++sentence) {
        float* destination = out + (begin + sentence) * size;
        if (status_[static_cast<size_t>(sentence)] == RecordStatus::ok) {
          std::copy_n(rows.data() + sentence * size, size, destination);
        } else {
          std::fill_n(destination, size, std::numeric_limits<float>::quiet_NaN());
        }
      }
    };
    for (int64_t sentence = 0; sentence < count; ++sentence) {
      const float* row = logits_.data() + sentence * config_.num_classes;
      const bool finite = std::all_of(row, row + config_.num_classes, [](float value) { return std::isfinite(value); });
      RecordStatus& status = status_[static_cast<size_t>(sentence)];
      if (status == RecordStatus::ok && !finite)
        status = RecordStatus::not_finite;  // finite input, but sums overflowed
    }
    copy(logits_, outputs.logits, config_.num_classes);
    copy(router_weights_, outputs.router_weights, config_.num_experts);
    copy(features_, outputs.features, config_.feature_size());
    if (outputs.status != nullptr) std::copy_n(status_.begin(), count, outputs.status + begin);
  }

  ClassifierConfig config_;
  InputKind input_;
  DType operand_;
  ThreadPool pool_;
  CpuForm form_;
  int64_t slice_;
  std::shared_ptr<const Model> model_;  // for its embedding table, with ids only
  std::optional<cpu::Convolution> direct_;
  std::optional<cpu::ProjectedConvolution> projected_;
  std::optional<cpu::Mixture> mixture_;
  std::optional<cpu::Head> head_;
  Buffer<int32_t> ids_;               // [slice, sequence_length], all in range
  Buffer<float> features_;            // [padded slice, feature_size]
  Buffer<float> mixed_;               // [padded slice, expert size or first head size]
  Buffer<float> router_weights_;      // [padded slice, num_experts]
  Buffer<float> logits_;              // [padded slice, num_classes]
  Buffer<uint8_t> finite_;            // [padded slice]
  std::vector<RecordStatus> status_;  // [slice]
};

}  // namespace

bool cpu_supports_bf16() { return cpu::gemm_supports_bf16(); }

std::unique_ptr<Classifier> make_cpu_classifier(std::shared_ptr<const Model> model, const CpuOptions& options) {
  TESSERA_CHECK(model != nullptr, "a model");
  model->config.validate("model");
  if (options.num_threads < 0 || options.num_threads > kMaxThreads)
    throw Error("threads", str_cat(options.num_threads), str_cat("0 (all processors) to ", kMaxThreads));
  if (options.input == InputKind::ids && model->weights.embedding.empty()) {
    throw Error("model", "no tensor 'embedding.weight'", "one: text and token ids need it, embeddings as input do not");
  }
  CpuOptions resolved = options;
  if (resolved.num_threads == 0) resolved.num_threads = available_processors();
  if (options.precision == Precision::fp64) {
    return make_reference_classifier(std::move(model), options.input, resolved.num_threads);
  }
  return std::make_unique<CpuClassifier>(std::move(model), resolved);
}

}  // namespace tessera::classifier
