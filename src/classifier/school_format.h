// The file format of the Accelerator Programming School's project, for any configuration:
//   params.bin             headerless fp32, little endian: weight then bias of conv 0.., experts 0.., router ("gate"),
//   head
//                          layers 0.., output; apws25: 136,870,406 floats, 547,481,624 bytes
//   embedding.bin          fp32 [vocab_size, embedding_size]; the school keeps it apart
//   vocab.txt              a word a line, line number from 0 = token id
//   inputs.bin             int32 [N, sequence_length]
//   input_embeddings.bin   fp32 [N, embedding_size, sequence_length]
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "tessera/classifier/config.h"
#include "tessera/classifier/model.h"

namespace tessera::classifier {

/// The tensors of params.bin in its order; a selection of tensor_specs().
std::vector<TensorSpec> school_specs(const ClassifierConfig& config, ModelWeights& weights);

/// Exact size of params.bin.
uint64_t school_params_bytes(const ClassifierConfig& config);

struct SchoolFiles {
  std::filesystem::path params;
  std::filesystem::path embedding;   ///< empty: the model takes embeddings only
  std::filesystem::path vocabulary;  ///< empty: the model takes no text
};

/// Throws Error naming file, tensor, expected and actual for a wrong size and for a weight that is not finite.
Model read_school_model(const ClassifierConfig& config, const SchoolFiles& files);

/// Writes params.bin, and embedding.bin and vocab.txt where the model has them; creates `directory`.
void write_school_model(const std::filesystem::path& directory, Model& model);

/// Looks the ids of `ids_path` up in the model's embedding table and writes [N, embedding_size, sequence_length].
/// Returns N. Throws Error naming record and position of an id outside the vocabulary; nothing is then left at `path`.
int64_t write_embeddings(const Model& model, const std::filesystem::path& ids_path, const std::filesystem::path& path);

/// One sentence's embeddings, channel-major: embeddings[c, j] = table[ids[j], c]. Ids must lie in the vocabulary.
void gather_embeddings(const Model& model, const int32_t* ids, float* embeddings);

}  // namespace tessera::classifier
