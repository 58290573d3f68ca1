// The sentences that `tessera bench classify` gives a classifier: token ids, or embeddings that are random or those of
// the ids. Any sentence can be had at any time, alone, with the same values.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tessera/classifier/model.h"
#include "tessera/core/dtype.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cli {

struct ClassifyDataOptions {
  int64_t num_sentences = 0;
  std::string ids_file;            ///< int32 [N, sequence_length]; empty: random sentences
  bool embeddings_of_ids = false;  ///< else N(0, 1)
  uint64_t seed = 1;
  int num_threads = 0;  ///< 0: every processor
};

class ClassifyData {
 public:
  /// Reads the file: its first rows, or all of them again and again. Error if it has no whole rows or an id that is not
  /// of the vocabulary.
  ClassifyData(std::shared_ptr<const classifier::Model> model, const ClassifyDataOptions& options);

  const std::shared_ptr<const classifier::Model>& model() const { return model_; }
  int64_t num_sentences() const { return options_.num_sentences; }
  int64_t sequence_length() const { return model_->config.sequence_length; }
  /// fp32 embeddings of a sentence.
  int64_t sentence_size() const { return model_->config.embedding_size * sequence_length(); }

  /// [num_sentences, sequence_length]
  const std::vector<int32_t>& ids() const { return ids_; }
  /// "random", "random sentences", "inputs.bin, 16384 rows": what the ids and the embeddings are.
  std::string ids_source() const { return ids_source_; }
  std::string embeddings_source() const { return options_.embeddings_of_ids ? "of the ids" : "random, N(0, 1)"; }

  /// embeddings [count, embedding_size, sequence_length] of the sentences from `first`.
  void fill(int64_t first, int64_t count, float* embeddings);
  /// Rounded to `dtype` (f16, bf16): embeddings [count, sequence_length, padded_channels], zeros in the padding.
  void fill_resident(int64_t first, int64_t count, DType dtype, int64_t padded_channels, uint16_t* embeddings);
  /// embeddings [embedding_size, sequence_length] of one sentence.
  void sentence(int64_t index, float* embeddings) const;

 private:
  std::shared_ptr<const classifier::Model> model_;
  ClassifyDataOptions options_;
  ThreadPool pool_;
  std::vector<int32_t> ids_;
  std::string ids_source_;
};

}  // namespace tessera::cli
