#include "classify_data.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "classifier/school_format.h"
#include "classifier/synth.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {
namespace {

constexpr uint64_t kEmbeddingStream = uint64_t{2} << 32;  // no stream of synth.cc

/// The first `count` rows of the file, or as many as there are.
std::vector<int32_t> read_rows(const std::string& path, int64_t count, const classifier::ClassifierConfig& config) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file || !std::filesystem::is_regular_file(path)) throw Error(escaped(path), "cannot open a file of token ids");
  const int64_t bytes = file.tellg(), row_bytes = config.sequence_length * int64_t{sizeof(int32_t)};
  if (bytes == 0 || bytes % row_bytes != 0)
    throw Error(escaped(path), str_cat(bytes, " bytes"), str_cat("one or more rows of ", row_bytes, " bytes"));
  std::vector<int32_t> ids(static_cast<size_t>(std::min(count, bytes / row_bytes) * config.sequence_length));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof(int32_t))))
    throw Error(escaped(path), "cannot be read to its end");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab_size)
      throw Error(str_cat(escaped(path), ": record ", i / static_cast<size_t>(config.sequence_length)),
                  str_cat("token id ", ids[i]), str_cat("0 to ", config.vocab_size - 1));
  }
  return ids;
}

}  // namespace

ClassifyData::ClassifyData(std::shared_ptr<const classifier::Model> model, const ClassifyDataOptions& options)
    : model_(std::move(model)),
      options_(options),
      pool_(options.num_threads > 0 ? options.num_threads : available_processors()) {
  const classifier::ClassifierConfig& config = model_->config;
  if (options.ids_file.empty()) {
    ids_.resize(static_cast<size_t>(options.num_sentences * config.sequence_length));
    classifier::synthesize_ids(config, options.seed, 0, ids_);
    ids_source_ = "random sentences";
  } else {
    ids_ = read_rows(options.ids_file, options.num_sentences, config);
    const size_t rows = ids_.size() / static_cast<size_t>(config.sequence_length);
    ids_source_ = str_cat(escaped(std::filesystem::path(options.ids_file).filename().string()), ", ", rows, " rows");
    const size_t period = ids_.size();
    ids_.resize(static_cast<size_t>(options.num_sentences * config.sequence_length));
    for (size_t i = period; i < ids_.size(); ++i) ids_[i] = ids_[i - period];
  }
}

void ClassifyData::sentence(int64_t index, float* embeddings) const {
  if (options_.embeddings_of_ids) {
    classifier::gather_embeddings(*model_, ids_.data() + index * sequence_length(), embeddings);
    return;
  }
  const classifier::RandomStream random(options_.seed, kEmbeddingStream);
  const int64_t size = sentence_size(), pairs = (size + 1) / 2;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    double first = 0, second = 0;
    random.normal_pair(static_cast<uint64_t>(index * pairs + pair), first, second);
    embeddings[2 * pair] = static_cast<float>(first);
    if (2 * pair + 1 < size) embeddings[2 * pair + 1] = static_cast<float>(second);
  }
}

void ClassifyData::fill(int64_t first, int64_t count, float* embeddings) {
  pool_.run(count, [&](int64_t i, int) { sentence(first + i, embeddings + i * sentence_size()); });
}

void ClassifyData::fill_resident(int64_t first, int64_t count, DType dtype, int64_t padded_channels,
                                 uint16_t* embeddings) {
  TESSERA_CHECK(dtype != DType::f32, dtype_size(dtype));
  const int64_t channels = model_->config.embedding_size, positions = sequence_length();
  TESSERA_CHECK(padded_channels >= channels, padded_channels, channels);
  std::vector<Buffer<float>> sentences;
  for (int i = 0; i < pool_.num_threads(); ++i) sentences.emplace_back(static_cast<size_t>(sentence_size()));
  pool_.run(count, [&](int64_t i, int worker) {
    float* const x = sentences[static_cast<size_t>(worker)].data();
    sentence(first + i, x);
    for (int64_t position = 0; position < positions; ++position) {
      uint16_t* const out = embeddings + (i * positions + position) * padded_channels;
      for (int64_t channel = 0; channel < channels; ++channel) {
        const float value = x[channel * positions + position];
        out[channel] = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      }
      std::fill(out + channels, out + padded_channels, uint16_t{0});
    }
  });
}

}  // namespace tessera::cli
