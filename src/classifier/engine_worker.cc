#include "classifier/engine_worker.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "classifier/restartable.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

namespace {

// Texts that one thread takes at a time: about 0.2 ms of work, long against taking the next item.
constexpr int64_t kTextsPerItem = 32;

std::string record_place(int64_t index) { return str_cat("record ", index); }

Error too_little_memory() {
  return {"memory", "too little for one sentence at a time", "more memory or a smaller model"};
}

/// The first id of `ids` [length] outside the vocabulary.
std::string bad_id_message(const ClassifierConfig& config, int64_t index, const int32_t* ids) {
  for (int64_t position = 0; position < config.sequence_length; ++position) {
    if (ids[position] < 0 || ids[position] >= config.vocab_size) {
      return Error(str_cat(record_place(index), ", position ", position), str_cat("token id ", ids[position]),
                   str_cat("an id in [0, ", config.vocab_size, ")"))
          .what();
    }
  }
  return Error(record_place(index), "a token id outside the vocabulary").what();
}

/// The first value of `embeddings` [embedding_size, sequence_length] that is not finite.
std::string not_finite_message(const ClassifierConfig& config, int64_t index, const float* embeddings) {
  const int64_t size = config.embedding_size * config.sequence_length;
  const int64_t i =
      std::find_if_not(embeddings, embeddings + size, [](float x) { return std::isfinite(x); }) - embeddings;
  if (i == size) return Error(record_place(index), "an embedding that is not finite").what();
  return Error(str_cat(record_place(index), ", channel ", i / config.sequence_length, ", position ",
                       i % config.sequence_length),
               std::isnan(embeddings[i]) ? "nan" : str_cat(embeddings[i]), "a finite number")
      .what();
}

}  // namespace

int64_t batch_bytes(const io::RecordBatch& batch) {
  size_t bytes = batch.ids.size() * sizeof(int32_t) + batch.embeddings.size() * sizeof(float);
  bytes += batch.texts.num_bytes() + batch.kept.num_bytes() + batch.texts.size() * sizeof(size_t);
  return static_cast<int64_t>(bytes);
}

TextEncoder::TextEncoder(const Model& model)
    : tokenizer_(model.config.text_normalization),
      vocabulary_(model.vocabulary, model.config.unknown_id, model.config.pad_id, "vocab.txt") {}

Worker::Worker(const ClassifierConfig& config, const TextEncoder* encoder, Classifier& classifier,
               const Options& options)
    : config_(config),
      encoder_(encoder),
      classifier_(classifier),
      options_(options),
      encode_threads_(options.num_encode_threads),
      slice_size_(std::max<int64_t>(1, classifier.preferred_batch())) {}

LabelledBatch Worker::label(EngineBatch& batch, const GiveUp& give_up) {
  io::RecordBatch& records = batch.records;
  const int64_t n = records.num_records;
  const size_t size = static_cast<size_t>(n);
  TESSERA_CHECK(records.errors.size() == size, records.errors.size(), n);
  LabelledBatch out;
  out.sequence = batch.sequence;
  out.first_index = records.first_index;
  out.num_skipped = records.num_skipped;
  out.num_records = n;
  out.errors = records.errors;
  out.logits = Buffer<float>(size * static_cast<size_t>(config_.num_classes));
  if (options_.router_weights) out.router_weights = Buffer<float>(size * static_cast<size_t>(config_.num_experts));
  if (!records.texts.empty()) encode_texts(records, out);
  records.errors = out.errors;
  blank_failed_records(out.errors, records);
  while (out.num_done < n && !give_up(last_slice_)) {
    const auto start = std::chrono::steady_clock::now();
    const int64_t count = std::min(slice_size_, n - out.num_done);
    if (batch.num_deaths > 0) {
      run_suspect(records, out.num_done, count, out);
      out.num_done += count;
    } else {
      run_slice(records, out.num_done, count, out);
    }
    last_slice_ = std::chrono::steady_clock::now() - start;
  }
  out.texts = std::move(records.texts);
  out.kept = std::move(records.kept);
  return out;
}

void Worker::encode_texts(io::RecordBatch& records, LabelledBatch& out) {
  if (encoder_ == nullptr) throw Error("vocab.txt", "no vocabulary", "the words of the model, which text input needs");
  const int64_t n = records.num_records;
  TESSERA_CHECK(records.texts.size() == static_cast<size_t>(n), records.texts.size(), n);
  records.ids = Buffer<int32_t>(static_cast<size_t>(n * config_.sequence_length));
  out.encodings.resize(static_cast<size_t>(n));
  const size_t length = static_cast<size_t>(config_.sequence_length);
  encode_threads_.run((n + kTextsPerItem - 1) / kTextsPerItem, [&](int64_t item, int) {
    const int64_t end = std::min(n, (item + 1) * kTextsPerItem);
    for (size_t i = static_cast<size_t>(item * kTextsPerItem); i < static_cast<size_t>(end); ++i) {
      if (!out.errors[i].empty()) continue;
      try {
        out.encodings[i] = encoder_->encode(records.texts[i], records.ids.span().subspan(i * length, length));
      } catch (const Error& error) {
        out.errors[i] = str_cat(record_place(records.first_index + static_cast<int64_t>(i)), ": ", error.what());
      }
    }
  });
}

// The classifier sees well-formed values in their place; their results are thrown away.
void Worker::blank_failed_records(const std::vector<std::string>& errors, io::RecordBatch& records) const {
  for (size_t i = 0; i < errors.size(); ++i) {
    if (errors[i].empty()) continue;
    if (!records.ids.empty()) {
      const size_t length = static_cast<size_t>(config_.sequence_length);
      std::fill_n(records.ids.data() + i * length, length, config_.pad_id);
    }
    if (!records.embeddings.empty()) {
      const size_t length = static_cast<size_t>(config_.embedding_size * config_.sequence_length);
      std::fill_n(records.embeddings.data() + i * length, length, 0.0f);
    }
  }
}

void Worker::call(const io::RecordBatch& records, int64_t begin, int64_t count, bool alone, LabelledBatch& out) {
  status_.assign(static_cast<size_t>(count), RecordStatus::ok);
  Batch batch{.num_sentences = count};
  if (!records.ids.empty()) batch.ids = records.ids.data() + begin * config_.sequence_length;
  if (!records.embeddings.empty()) {
    batch.embeddings = records.embeddings.data() + begin * config_.embedding_size * config_.sequence_length;
  }
  Outputs outputs{.logits = out.logits.data() + begin * config_.num_classes, .status = status_.data()};
  if (!out.router_weights.empty()) outputs.router_weights = out.router_weights.data() + begin * config_.num_experts;
  auto* const restartable = alone ? dynamic_cast<RestartableClassifier*>(&classifier_) : nullptr;
  if (restartable != nullptr) {
    restartable->run_alone(batch, outputs);
  } else {
    classifier_.run(batch, outputs);
  }
  for (int64_t i = 0; i < count; ++i) describe_failure(records, begin + i, status_[static_cast<size_t>(i)], out);
}

void Worker::run_slice(const io::RecordBatch& records, int64_t begin, int64_t count, LabelledBatch& out) {
  try {
    call(records, begin, count, false, out);
  } catch (const std::bad_alloc&) {
    if (count == 1) throw too_little_memory();
    slice_size_ = count / 2;  // the caller goes on with smaller slices
    return;
  }
  out.num_done = begin + count;
}

/// By halves, where a process dies or memory runs out, down to the one record that does it.
void Worker::run_suspect(io::RecordBatch& records, int64_t begin, int64_t count, LabelledBatch& out) {
  try {
    call(records, begin, count, true, out);
    return;
  } catch (const std::bad_alloc&) {
    if (count == 1) throw too_little_memory();
  } catch (const WorkerLost& lost) {
    if (options_.on_death) options_.on_death(lost.what());
    if (count == 1) {
      const size_t position = static_cast<size_t>(begin);
      // The same words in every run: how a process died may differ.
      records.errors[position] = out.errors[position] =
          Error(record_place(records.first_index + begin), "ends the worker process that labels it").what();
      blank_failed_records(records.errors, records);
      describe_failure(records, begin, RecordStatus::ok, out);
      return;
    }
  }
  run_suspect(records, begin, count / 2, out);
  run_suspect(records, begin + count / 2, count - count / 2, out);
}

void Worker::describe_failure(const io::RecordBatch& records, int64_t i, RecordStatus status,
                              LabelledBatch& out) const {
  float* logits = out.logits.data() + i * config_.num_classes;
  std::string& error = out.errors[static_cast<size_t>(i)];
  const int64_t index = records.first_index + i;
  if (error.empty() && status == RecordStatus::id_out_of_range) {
    error = bad_id_message(config_, index, records.ids.data() + i * config_.sequence_length);
  } else if (error.empty() && status == RecordStatus::not_finite) {
    error = records.embeddings.empty()
                ? Error(record_place(index), "a result that is not finite").what()
                : not_finite_message(config_, index,
                                     records.embeddings.data() + i * config_.embedding_size * config_.sequence_length);
  } else if (error.empty() &&
             !std::all_of(logits, logits + config_.num_classes, [](float x) { return std::isfinite(x); })) {
    error = Error(record_place(index), "logits that are not finite", "finite ones").what();
  }
  if (!error.empty()) std::fill_n(logits, config_.num_classes, std::numeric_limits<float>::quiet_NaN());
}

}  // namespace tessera::classifier
