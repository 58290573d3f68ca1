// How often each label was given, and how sure of it the model was.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/classifier/config.h"
#include "tessera/classifier/engine.h"

namespace tessera::cli {

inline constexpr const char* kUnsure = "unsure";  ///< the label of what is less probable than was asked for
inline constexpr const char* kEmpty = "empty";    ///< of a text without words

struct LabelCount {
  std::string label;
  int64_t count = 0;
  double probability_sum = 0;  ///< of the best class

  double mean_probability() const { return count > 0 ? probability_sum / static_cast<double>(count) : 0; }
};

class LabelCounts {
 public:
  /// `min_probability` of the best class, below which a record is unsure; 0 = never.
  LabelCounts(const classifier::ClassifierConfig& config, double min_probability);

  /// Counts a record that did not fail; returns its label, which lives as long as this.
  const std::string& add(const classifier::RecordResult& record);
  static bool is_empty(const classifier::RecordResult& record) { return record.num_words == 0; }

  /// Every class, then unsure and empty where there were any.
  std::vector<LabelCount> counts() const;

 private:
  double min_probability_;
  std::vector<LabelCount> classes_;
  LabelCount unsure_{.label = kUnsure};
  LabelCount empty_{.label = kEmpty};
};

}  // namespace tessera::cli
