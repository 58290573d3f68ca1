#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "api/device.h"
#include "api/status.h"
#include "io/record_stream.h"
#include "io/tokenizer.h"
#include "io/vocabulary.h"
#include "moe/validation.h"
#include "tessera/classifier/classifier.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/classifier/model.h"
#include "tessera/core/thread_pool.h"
#include "tessera/tessera.h"

struct tessera_classifier {
  tessera::classifier::ClassifierConfig config;
  std::optional<tessera::io::Vocabulary> vocabulary;
  std::unique_ptr<tessera::classifier::Classifier> classifier;
  std::string description;
  bool takes_embeddings = false;
  size_t device_bytes = 0;
};

namespace tessera::api {
namespace {

using classifier::InputKind;
using classifier::Precision;
using classifier::RecordStatus;

tessera_classifier_options default_options() {
  tessera_classifier_options options{};
  options.device = TESSERA_CPU;
  return options;
}

Precision read_precision(const tessera_classifier_options& options) {
  const bool on_cpu = options.device == TESSERA_CPU;
  switch (read_enum("precision", options.precision, TESSERA_PRECISION_FP64)) {
    case TESSERA_PRECISION_DEFAULT: return on_cpu ? Precision::fp32 : Precision::fp16;
    case TESSERA_PRECISION_FP32: return Precision::fp32;
    case TESSERA_PRECISION_BF16:
      if (on_cpu && !classifier::cpu_supports_bf16())
        throw Unavailable("precision", "bf16 on the CPU needs a processor that multiplies it, and oneDNN");
      return Precision::bf16;
    case TESSERA_PRECISION_FP16:
      if (on_cpu) throw Error("precision", "fp16 on the CPU", "bf16 or fp32");
      return Precision::fp16;
    case TESSERA_PRECISION_FP64:
      if (!on_cpu) throw Error("precision", "fp64 on a GPU", "fp16, bf16 or fp32: the oracle runs on the CPU");
      return Precision::fp64;
  }
  throw Error("precision", "an unknown number", "a tessera_precision");
}

void refuse_gpu_options(const tessera_classifier_options& options) {
  if (options.form != nullptr && std::string_view(options.form) != "auto")
    throw Error("form", escaped(options.form), "auto, as forms are chosen on GPUs only");
  if (options.expert_threshold != 0)
    throw Error("expert_threshold", str_cat(options.expert_threshold), "0, as experts are skipped on GPUs only");
  if (options.micro_batch != 0)
    throw Error("micro_batch", str_cat(options.micro_batch), "0, as it is chosen on GPUs only");
}

void make_back_end(tessera_classifier& target, std::shared_ptr<const classifier::Model> model,
                   const tessera_classifier_options& options) {
  moe::require_range("num_threads", options.num_threads, 0, kMaxThreads);
  const InputKind input = target.takes_embeddings ? InputKind::embeddings : InputKind::ids;
  const Precision precision = read_precision(options);
  if (options.device == TESSERA_CPU) {
    refuse_gpu_options(options);
    target.classifier = classifier::make_cpu_classifier(std::move(model), {input, precision, options.num_threads});
    return;
  }
  require_usable(options.device);
  classifier::CudaOptions cuda;
  cuda.input = input;
  cuda.precision = {precision, precision, precision};
  cuda.form = options.form == nullptr ? classifier::Form::automatic : classifier::parse_form(options.form);
  cuda.expert_threshold = options.expert_threshold;
  cuda.device = options.device;
  cuda.micro_batch = options.micro_batch;
  cuda.num_staging_threads = options.num_threads;
  auto lanes = classifier::make_cuda_classifiers(std::move(model), cuda);
  target.device_bytes = lanes.front()->device_bytes();
  target.classifier = std::move(lanes.front());
}

std::unique_ptr<tessera_classifier> load(const char* directory, const tessera_classifier_options& options) {
  auto model = std::make_shared<classifier::Model>(classifier::load_model(&require("directory", directory)));
  auto result = std::make_unique<tessera_classifier>();
  result->config = model->config;
  if (!model->vocabulary.empty()) {
    result->vocabulary.emplace(model->vocabulary, model->config.unknown_id, model->config.pad_id,
                               str_cat(directory, "/vocab.txt"));
  }
  result->takes_embeddings = options.takes_embeddings != 0;
  make_back_end(*result, std::move(model), options);
  result->description = result->classifier->description();
  return result;
}

void tokenize(const tessera_classifier& target, const char* const* texts, const size_t* lengths, int64_t num_texts,
              int32_t* ids, int64_t* num_words, int64_t* num_unknown) {
  if (num_texts < 0) throw Error("num_texts", str_cat(num_texts), "at least 0");
  if (num_texts == 0) return;
  require("texts", texts);
  require("lengths", lengths);
  require("ids", ids);
  if (!target.vocabulary) throw Error("texts", "text for a model without vocab.txt", "token ids, or such a file");
  const io::Tokenizer tokenizer(target.config.text_normalization);
  const auto length = static_cast<size_t>(target.config.sequence_length);
  for (int64_t i = 0; i < num_texts; ++i) {
    const auto where = [i] { return str_cat("texts[", i, "]"); };
    if (texts[i] == nullptr) throw Error(where(), "a null pointer", "an address");
    const std::string_view text(texts[i], lengths[i]);
    const std::string problem = io::text_problem(text);
    if (!problem.empty()) throw Error(where(), problem);
    try {
      const auto encoding = tokenizer.encode(text, *target.vocabulary, {ids + static_cast<size_t>(i) * length, length});
      if (num_words != nullptr) num_words[i] = encoding.num_words;
      if (num_unknown != nullptr) num_unknown[i] = encoding.num_unknown;
    } catch (const Error& error) {
      throw Error(where(), error.what());
    }
  }
}

/// Results may lie over neither the input nor each other.
void require_outputs_apart(const tessera_classifier& target, int64_t num_sentences, const int32_t* ids,
                           const float* embeddings, const tessera_classifier_outputs& outputs) {
  const classifier::ClassifierConfig& config = target.config;
  const auto bytes = [&](int64_t elements, size_t size) {
    return static_cast<uint64_t>(num_sentences) * static_cast<uint64_t>(elements) * size;
  };
  const moe::MemoryRange read[] = {
      {"ids", ids, bytes(config.sequence_length, sizeof(int32_t))},
      {"embeddings", embeddings, bytes(config.embedding_size * config.sequence_length, sizeof(float))}};
  const moe::MemoryRange written[] = {
      {"logits", outputs.logits, bytes(config.num_classes, sizeof(float))},
      {"router_weights", outputs.router_weights, bytes(config.num_experts, sizeof(float))},
      {"features", outputs.features, bytes(config.feature_size(), sizeof(float))},
      {"status", outputs.status, bytes(1, 1)}};
  moe::require_apart(written, read);
}

void run(tessera_classifier& target, int64_t num_sentences, const int32_t* ids, const float* embeddings,
         const tessera_classifier_outputs& outputs) {
  if (num_sentences < 0) throw Error("num_sentences", str_cat(num_sentences), "at least 0");
  const char* wanted = target.takes_embeddings ? "embeddings" : "ids";
  const char* other = target.takes_embeddings ? "ids" : "embeddings";
  if ((target.takes_embeddings ? static_cast<const void*>(ids) : embeddings) != nullptr)
    throw Error(other, "an array", str_cat("null: the classifier was loaded for ", wanted));
  if (num_sentences == 0) return;
  if ((target.takes_embeddings ? static_cast<const void*>(embeddings) : ids) == nullptr)
    throw Error(wanted, "a null pointer", "host memory");
  require("logits", outputs.logits);
  require_outputs_apart(target, num_sentences, ids, embeddings, outputs);
  static_assert(sizeof(RecordStatus) == sizeof(uint8_t) && static_cast<int>(RecordStatus::not_finite) == 2);
  target.classifier->run({num_sentences, ids, embeddings}, {outputs.logits, outputs.router_weights, outputs.features,
                                                            reinterpret_cast<RecordStatus*>(outputs.status)});
}

tessera_classifier_info info_of(const tessera_classifier& target) {
  const classifier::ClassifierConfig& config = target.config;
  tessera_classifier_info info{};
  info.vocab_size = config.vocab_size;
  info.sequence_length = config.sequence_length;
  info.embedding_size = config.embedding_size;
  info.feature_size = config.feature_size();
  info.num_experts = config.num_experts;
  info.num_classes = config.num_classes;
  info.preferred_batch = target.classifier->preferred_batch();
  info.has_vocabulary = target.vocabulary ? 1 : 0;
  info.device_bytes = target.device_bytes;
  return info;
}

}  // namespace
}  // namespace tessera::api

using namespace tessera::api;  // the functions below are C's and stand in no namespace

extern "C" {

void tessera_classifier_options_init_sized(tessera_classifier_options* options, size_t struct_bytes) {
  init_struct(options, struct_bytes, default_options());
}
void tessera_classifier_info_init_sized(tessera_classifier_info* info, size_t struct_bytes) {
  init_struct(info, struct_bytes, tessera_classifier_info{});
}
void tessera_classifier_outputs_init_sized(tessera_classifier_outputs* outputs, size_t struct_bytes) {
  init_struct(outputs, struct_bytes, tessera_classifier_outputs{});
}

tessera_status tessera_classifier_load(const char* directory, const tessera_classifier_options* options,
                                       tessera_classifier** classifier) {
  return guarded_stoppable([&] {
    require("classifier", classifier);
    *classifier =
        load(directory, options == nullptr ? default_options() : read_struct("options", options, default_options()))
            .release();
  });
}

void tessera_classifier_destroy(tessera_classifier* classifier) { delete classifier; }

tessera_status tessera_classifier_get_info(const tessera_classifier* classifier, tessera_classifier_info* info) {
  return guarded([&] { write_struct("info", info, info_of(require("classifier", classifier))); });
}

const char* tessera_classifier_description(const tessera_classifier* classifier) {
  return classifier == nullptr ? "" : classifier->description.c_str();
}

const char* tessera_classifier_class_name(const tessera_classifier* classifier, int64_t class_idx) {
  if (classifier == nullptr || class_idx < 0) return nullptr;
  const auto index = static_cast<size_t>(class_idx);
  return index < classifier->config.class_names.size() ? classifier->config.class_names[index].c_str() : nullptr;
}

tessera_status tessera_classifier_tokenize(const tessera_classifier* classifier, const char* const* texts,
                                           const size_t* lengths, int64_t num_texts, int32_t* ids) {
  return tessera_classifier_tokenize_counted(classifier, texts, lengths, num_texts, ids, nullptr, nullptr);
}

tessera_status tessera_classifier_tokenize_counted(const tessera_classifier* classifier, const char* const* texts,
                                                   const size_t* lengths, int64_t num_texts, int32_t* ids,
                                                   int64_t* num_words, int64_t* num_unknown) {
  return guarded(
      [&] { tokenize(require("classifier", classifier), texts, lengths, num_texts, ids, num_words, num_unknown); });
}

tessera_status tessera_classifier_run(tessera_classifier* classifier, int64_t num_sentences, const int32_t* ids,
                                      const float* embeddings, const tessera_classifier_outputs* outputs) {
  return guarded([&] {
    run(require("classifier", classifier), num_sentences, ids, embeddings,
        read_struct("outputs", outputs, tessera_classifier_outputs{}));
  });
}

}  // extern "C"
