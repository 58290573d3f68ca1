#include "classify_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "comparison.h"
#include "tessera/core/buffer.h"
#include "tessera/core/check.h"

namespace tessera::cli {
namespace {

/// First, last, and evenly between.
std::vector<int64_t> chosen_records(int64_t num_sentences, int64_t num_checked) {
  std::vector<int64_t> records;
  const int64_t count = std::min(num_sentences, num_checked);
  for (int64_t i = 0; i < count; ++i) records.push_back(count == 1 ? 0 : i * (num_sentences - 1) / (count - 1));
  return records;
}

void round_to(DType dtype, std::span<float> values) {
  if (dtype == DType::f32) return;
  for (float& value : values)
    value = dtype == DType::f16 ? f16_to_f32(f32_to_f16(value)) : bf16_to_f32(f32_to_bf16(value));
}

/// [records, num_classes]
std::vector<float> oracle_logits(const ClassifyData& data, classifier::InputKind input, DType rounded,
                                 const std::vector<int64_t>& records, int num_threads) {
  const auto oracle = classifier::make_cpu_classifier(
      data.model(), {.input = input, .precision = classifier::Precision::fp64, .num_threads = num_threads});
  const auto length = static_cast<size_t>(data.sequence_length());
  const auto size = static_cast<size_t>(data.sentence_size());
  std::vector<int32_t> ids;
  Buffer<float> embeddings(input == classifier::InputKind::embeddings ? records.size() * size : 0);
  for (size_t i = 0; i < records.size(); ++i) {
    if (input == classifier::InputKind::embeddings) {
      data.sentence(records[i], embeddings.data() + i * size);
    } else {
      const int32_t* const row = data.ids().data() + static_cast<size_t>(records[i]) * length;
      ids.insert(ids.end(), row, row + length);
    }
  }
  round_to(rounded, embeddings.span());
  classifier::Batch batch;
  batch.num_sentences = static_cast<int64_t>(records.size());
  batch.ids = ids.data();
  batch.embeddings = embeddings.data();
  std::vector<float> logits(records.size() * static_cast<size_t>(data.model()->config.num_classes));
  classifier::Outputs outputs;
  outputs.logits = logits.data();
  oracle->run(batch, outputs);
  return logits;
}

bool same_bits(std::span<const float> run, std::span<const float> first) {
  for (size_t begin = 0; begin < run.size(); begin += first.size()) {
    const size_t count = std::min(first.size(), run.size() - begin);
    if (std::memcmp(run.data() + begin, first.data(), count * sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace

ClassifyCheck check_classified(const ClassifyData& data, classifier::InputKind input, DType rounded,
                               const std::string& precision, int64_t num_checked, int num_threads,
                               const std::vector<std::span<const float>>& runs) {
  const auto classes = static_cast<size_t>(data.model()->config.num_classes);
  const std::span<const float> first = runs.at(0);
  TESSERA_CHECK(first.size() == static_cast<size_t>(data.num_sentences()) * classes, first.size());
  const std::vector<int64_t> records = chosen_records(data.num_sentences(), num_checked);
  std::vector<float> checked;
  for (const int64_t record : records) {
    const auto row = first.subspan(static_cast<size_t>(record) * classes, classes);
    checked.insert(checked.end(), row.begin(), row.end());
  }
  ClassifyCheck result;
  result.num_records = static_cast<int64_t>(records.size());
  result.bound = tolerance_of(precision).ours;
  const std::vector<float> expected = oracle_logits(data, input, rounded, records, num_threads);
  const Comparison comparison =
      compare_logits(checked, expected, static_cast<int64_t>(classes), tolerance_of(precision));
  if (!comparison.worst.empty()) result.largest_error = comparison.worst.front().deviation;
  result.bits_agree = std::all_of(first.begin(), first.end(), [](float logit) { return std::isfinite(logit); }) &&
                      std::all_of(runs.begin() + 1, runs.end(), [&](auto run) { return same_bits(run, first); });
  return result;
}

}  // namespace tessera::cli
