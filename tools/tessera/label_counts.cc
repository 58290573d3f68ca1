#include "label_counts.h"

#include "model_options.h"

namespace tessera::cli {

LabelCounts::LabelCounts(const classifier::ClassifierConfig& config, double min_probability)
    : min_probability_(min_probability) {
  for (int64_t i = 0; i < config.num_classes; ++i) classes_.push_back({.label = class_name(config, i)});
}

const std::string& LabelCounts::add(const classifier::RecordResult& record) {
  const bool is_sure = static_cast<double>(record.probability) >= min_probability_;
  LabelCount& counted = is_empty(record) ? empty_ : is_sure ? classes_[static_cast<size_t>(record.label_idx)] : unsure_;
  ++counted.count;
  counted.probability_sum += static_cast<double>(record.probability);
  return counted.label;
}

std::vector<LabelCount> LabelCounts::counts() const {
  std::vector<LabelCount> counts = classes_;
  for (const LabelCount* status : {&unsure_, &empty_}) {
    if (status->count > 0) counts.push_back(*status);
  }
  return counts;
}

}  // namespace tessera::cli
