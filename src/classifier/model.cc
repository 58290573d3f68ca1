#include "tessera/classifier/model.h"

#include <algorithm>
#include <cmath>
#include <system_error>
#include <utility>

#include "core/stop.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "io/vocabulary.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {
namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kVocabularyFile = "vocab.txt";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kEmbedding = "embedding.weight";

constexpr size_t kMaxListedTensors = 20;  // extra tensors named one by one; the rest are counted

size_t num_elements(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (const int64_t dim : shape) count *= static_cast<size_t>(dim);
  return count;
}

// Nothing at all under that name: a link that leads nowhere is an error, not an absence.
bool is_absent(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::symlink_status(path, ignored).type() == std::filesystem::file_type::not_found;
}

std::vector<std::string> load_vocabulary(const std::filesystem::path& path, const ClassifierConfig& config) {
  const io::Vocabulary vocabulary = io::Vocabulary::load(path, config.unknown_id, config.pad_id);
  if (vocabulary.size() != config.vocab_size) {
    throw Error(escaped(path.native()), str_cat(vocabulary.size(), " words"),
                str_cat("the vocab_size of config.json, ", config.vocab_size));
  }
  std::vector<std::string> words;
  words.reserve(static_cast<size_t>(vocabulary.size()));
  for (int32_t id = 0; id < vocabulary.size(); ++id) words.push_back(vocabulary.word(id));
  return words;
}

void check_finite(const Buffer<float>& values, const std::string& file, const std::string& tensor) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      throw Error(str_cat(file, ": tensor '", tensor, "' element ", i), str_cat(values[i]), "a finite number");
    }
  }
}

void warn_of_extra_tensors(const io::SafetensorsFile& file, const std::vector<TensorSpec>& specs,
                           std::vector<std::string>& warnings) {
  std::vector<std::string> expected;
  expected.reserve(specs.size());
  for (const TensorSpec& spec : specs) expected.push_back(spec.name);
  std::sort(expected.begin(), expected.end());
  size_t num_extra = 0;
  for (const io::TensorInfo& info : file.tensors()) {
    if (std::binary_search(expected.begin(), expected.end(), info.name)) continue;
    if (++num_extra > kMaxListedTensors) continue;
    warnings.push_back(str_cat(file.name(), ": tensor '", escaped(info.name), "' is not part of the model"));
  }
  if (num_extra > kMaxListedTensors) {
    warnings.push_back(str_cat(file.name(), ": ", num_extra - kMaxListedTensors, " more tensors are not either"));
  }
}

// Rounding to a smaller type must not turn a finite weight into an infinity that no loader takes.
void check_fits(const TensorSpec& spec, DType dtype, const std::string& where) {
  for (size_t i = 0; i < spec.values->size(); ++i) {
    const float value = (*spec.values)[i];
    float stored = value;
    if (dtype == DType::f16) stored = f16_to_f32(f32_to_f16(value));
    if (dtype == DType::bf16) stored = bf16_to_f32(f32_to_bf16(value));
    if (!std::isfinite(stored)) {
      throw Error(str_cat(where, ": tensor '", spec.name, "' element ", i), str_cat(value),
                  str_cat("a number that is finite as ", dtype_name(dtype)));
    }
  }
}

}  // namespace

std::vector<TensorSpec> tensor_specs(const ClassifierConfig& config, ModelWeights& weights) {
  std::vector<TensorSpec> specs;
  const auto add_linear = [&](const std::string& name, std::vector<int64_t> shape, LinearWeights& layer) {
    const int64_t out_features = shape.front();
    specs.push_back({name + ".weight", std::move(shape), &layer.weight});
    specs.push_back({name + ".bias", {out_features}, &layer.bias});
  };
  weights.conv.resize(config.filter_widths.size());
  weights.experts.resize(static_cast<size_t>(config.num_experts));
  weights.head.resize(config.head_sizes.size());

  specs.push_back({kEmbedding, {config.vocab_size, config.embedding_size}, &weights.embedding});
  for (size_t i = 0; i < weights.conv.size(); ++i) {
    add_linear(str_cat("conv.", i), {config.num_filters, config.embedding_size, config.filter_widths[i]},
               weights.conv[i]);
  }
  add_linear("router", {config.num_experts, config.feature_size()}, weights.router);
  for (size_t e = 0; e < weights.experts.size(); ++e) {
    add_linear(str_cat("experts.", e), {config.expert_size, config.feature_size()}, weights.experts[e]);
  }
  for (size_t i = 0; i < weights.head.size(); ++i) {
    add_linear(str_cat("head.", i), {config.head_sizes[i], config.head_input_size(i)}, weights.head[i]);
  }
  add_linear("output", {config.num_classes, config.head_input_size(config.head_sizes.size())}, weights.output);
  return specs;
}

Model load_model(const std::filesystem::path& directory) {
  Model model;
  model.config = load_config(directory / kConfigFile, model.warnings);
  if (!is_absent(directory / kVocabularyFile)) {
    model.vocabulary = load_vocabulary(directory / kVocabularyFile, model.config);
  }
  const io::SafetensorsFile file(directory / kWeightsFile);
  const std::vector<TensorSpec> specs = tensor_specs(model.config, model.weights);
  for (const TensorSpec& spec : specs) {  // all of them before the first is read: reading may take long
    if (spec.name != kEmbedding || file.find(spec.name) != nullptr) file.require(spec.name, spec.shape);
  }
  for (const TensorSpec& spec : specs) {
    const io::TensorInfo* info = file.find(spec.name);
    if (info == nullptr) continue;
    throw_if_stopped();
    *spec.values = file.read_f32(*info);
    check_finite(*spec.values, file.name(), spec.name);
  }
  warn_of_extra_tensors(file, specs, model.warnings);
  return model;
}

void save_model(const std::filesystem::path& directory, Model& model, DType dtype) {
  model.config.validate("model");
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw Error(escaped(directory.native()), "cannot create the directory: " + errno_message(error.value()));

  const std::filesystem::path weights_path = directory / kWeightsFile;
  std::vector<io::TensorToWrite> tensors;
  for (const TensorSpec& spec : tensor_specs(model.config, model.weights)) {
    if (spec.name == kEmbedding && spec.values->empty()) continue;
    TESSERA_CHECK(spec.values->size() == num_elements(spec.shape), spec.name, spec.values->size());
    check_fits(spec, dtype, escaped(weights_path.native()));
    tensors.push_back({spec.name, dtype, spec.shape, spec.values->span()});
  }
  // Held from the first file to the last: the files of two writers would be no model.
  io::OutputClaim claim(directory / kConfigFile);
  io::write_safetensors(weights_path, tensors);
  if (!model.vocabulary.empty()) {
    TESSERA_CHECK(model.vocabulary.size() == static_cast<size_t>(model.config.vocab_size), model.vocabulary.size());
    io::OutputFile file(directory / kVocabularyFile);
    for (const std::string& word : model.vocabulary) file.write(word + "\n");
    file.commit();
  }
  io::OutputFile config(std::move(claim));
  config.write(config_text(model.config));
  config.commit();
}

}  // namespace tessera::classifier
