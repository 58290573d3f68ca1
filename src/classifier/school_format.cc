#include "classifier/school_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "io/file.h"
#include "io/vocabulary.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

static_assert(std::endian::native == std::endian::little, "values are stored as they are in memory");

namespace {

constexpr size_t kWriteBytes = 1 << 20;

uint64_t num_elements(const TensorSpec& spec) {
  uint64_t count = 1;
  for (const int64_t dim : spec.shape) count *= static_cast<uint64_t>(dim);
  return count;
}

void check_size(const io::InputFile& file, uint64_t expected, const std::string& what) {
  io::refuse_stand_in(file);
  if (file.size() == expected) return;
  throw Error(file.name(), str_cat(file.size(), " bytes"), str_cat(expected, " bytes: ", what));
}

/// Reads a tensor's values from `offset`.
void read_tensor(const io::InputFile& file, uint64_t offset, const TensorSpec& spec) {
  *spec.values = Buffer<float>(num_elements(spec));
  file.read_at(offset, std::as_writable_bytes(spec.values->span()));
  const auto bad = std::find_if_not(spec.values->begin(), spec.values->end(), [](float x) { return std::isfinite(x); });
  if (bad == spec.values->end()) return;
  const auto element = static_cast<uint64_t>(bad - spec.values->begin());
  throw Error(str_cat(file.name(), ": offset ", offset + element * sizeof(float), ", tensor '", spec.name, "' element ",
                      element),
              str_cat(*bad), "a finite number");
}

void write_values(io::OutputFile& file, std::span<const float> values) {
  const std::string_view bytes(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  for (size_t begin = 0; begin < bytes.size(); begin += kWriteBytes) file.write(bytes.substr(begin, kWriteBytes));
}

void write_file(const std::filesystem::path& path, std::span<const float> values) {
  io::OutputFile file(path);
  write_values(file, values);
  file.commit();
}

void check_ids(const ClassifierConfig& config, const std::string& file, int64_t record, std::span<const int32_t> ids) {
  for (size_t position = 0; position < ids.size(); ++position) {
    if (ids[position] >= 0 && ids[position] < config.vocab_size) continue;
    throw Error(str_cat(file, ": record ", record, ", position ", position), str_cat("token id ", ids[position]),
                str_cat("an id in [0, ", config.vocab_size, ")"));
  }
}

}  // namespace

std::vector<TensorSpec> school_specs(const ClassifierConfig& config, ModelWeights& weights) {
  const std::vector<TensorSpec> specs = tensor_specs(config, weights);
  std::vector<TensorSpec> ordered;
  for (const std::string_view prefix : {"conv.", "experts.", "router.", "head.", "output."}) {
    std::copy_if(specs.begin(), specs.end(), std::back_inserter(ordered),
                 [&](const TensorSpec& spec) { return spec.name.starts_with(prefix); });
  }
  TESSERA_CHECK(ordered.size() + 1 == specs.size(), ordered.size(), specs.size());  // all but the embedding table
  return ordered;
}

uint64_t school_params_bytes(const ClassifierConfig& config) {
  ModelWeights weights;
  uint64_t count = 0;
  for (const TensorSpec& spec : school_specs(config, weights)) count += num_elements(spec);
  return count * sizeof(float);
}

Model read_school_model(const ClassifierConfig& config, const SchoolFiles& files) {
  Model model;
  model.config = config;
  model.config.validate("model");
  if (!files.vocabulary.empty()) {
    const auto vocabulary = io::Vocabulary::load(files.vocabulary, config.unknown_id, config.pad_id);
    if (vocabulary.size() != config.vocab_size) {
      throw Error(escaped(files.vocabulary.native()), str_cat(vocabulary.size(), " words"),
                  str_cat(config.vocab_size, " words"));
    }
    for (int32_t id = 0; id < vocabulary.size(); ++id) model.vocabulary.push_back(vocabulary.word(id));
  }
  const io::InputFile params(files.params);
  check_size(params, school_params_bytes(config), "the weights and biases of this configuration in fp32");
  uint64_t offset = 0;
  for (const TensorSpec& spec : school_specs(model.config, model.weights)) {
    read_tensor(params, offset, spec);
    offset += spec.values->size() * sizeof(float);
  }
  if (!files.embedding.empty()) {
    const TensorSpec table = tensor_specs(model.config, model.weights).front();
    const io::InputFile file(files.embedding);
    check_size(file, num_elements(table) * sizeof(float), "the embedding table in fp32");
    read_tensor(file, 0, table);
  }
  return model;
}

void write_school_model(const std::filesystem::path& directory, Model& model) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw Error(escaped(directory.native()), "cannot create the directory: " + errno_message(error.value()));
  io::OutputFile params(directory / "params.bin");
  for (const TensorSpec& spec : school_specs(model.config, model.weights)) write_values(params, spec.values->span());
  if (!model.weights.embedding.empty()) write_file(directory / "embedding.bin", model.weights.embedding.span());
  if (!model.vocabulary.empty()) {
    io::OutputFile vocabulary(directory / "vocab.txt");
    for (const std::string& word : model.vocabulary) vocabulary.write(word + "\n");
    vocabulary.commit();
  }
  params.commit();  // last: until then nobody else writes this set of files
}

int64_t write_embeddings(const Model& model, const std::filesystem::path& ids_path, const std::filesystem::path& path) {
  if (model.weights.embedding.empty()) throw Error("model", "no embedding table", "one, to look the ids up");
  const ClassifierConfig& config = model.config;
  const io::InputFile input(ids_path);
  const size_t length = static_cast<size_t>(config.sequence_length);
  const uint64_t row_bytes = length * sizeof(int32_t);
  if (input.size() % row_bytes != 0) {
    throw Error(input.name(), str_cat(input.size(), " bytes"),
                str_cat("a multiple of ", row_bytes, ": ", length, " ids a record"));
  }
  const int64_t num_records = static_cast<int64_t>(input.size() / row_bytes);
  std::vector<int32_t> ids(length);
  const auto read_record = [&](int64_t record) {
    input.read_at(static_cast<uint64_t>(record) * row_bytes, std::as_writable_bytes(std::span(ids)));
    check_ids(config, input.name(), record, ids);
  };
  // All ids are looked at before the first is written: they are small, the embeddings are not.
  for (int64_t record = 0; record < num_records; ++record) read_record(record);
  Buffer<float> embeddings(static_cast<size_t>(config.embedding_size) * length);
  io::OutputFile output(path);
  for (int64_t record = 0; record < num_records; ++record) {
    read_record(record);
    gather_embeddings(model, ids.data(), embeddings.data());
    write_values(output, embeddings.span());
  }
  output.commit();
  return num_records;
}

void gather_embeddings(const Model& model, const int32_t* ids, float* embeddings) {
  const int64_t length = model.config.sequence_length;
  const int64_t num_channels = model.config.embedding_size;
  for (int64_t position = 0; position < length; ++position) {
    const float* row = model.weights.embedding.data() + ids[position] * num_channels;
    for (int64_t channel = 0; channel < num_channels; ++channel) embeddings[channel * length + position] = row[channel];
  }
}

}  // namespace tessera::classifier
