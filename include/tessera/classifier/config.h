// What a classifier is: one embedding table, parallel convolutions of several widths with max-pooling over positions, a
// dense mixture of experts, a few linear layers. Everything else follows from these numbers.
//
//   x [embedding_size, sequence_length]
//   h = concat over widths K of max_j relu(conv_K(x)[:, j])         [num_filters * len(filter_widths)]
//   g = softmax(router h + b)                                       [num_experts]
//   y = sum_e g_e (expert_e h + b_e)                                [expert_size]
//   y = relu(head_i y + b_i) for each head layer;  logits = output y + b      [num_classes]
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tessera/core/text_normalization.h"

namespace tessera::classifier {

struct ClassifierConfig {
  int64_t vocab_size = 0;
  int64_t embedding_size = 0;
  int64_t sequence_length = 0;
  std::vector<int64_t> filter_widths;  ///< positions each convolution covers; at most sequence_length
  int64_t num_filters = 0;             ///< per width
  int64_t num_experts = 0;
  int64_t expert_size = 0;
  std::vector<int64_t> head_sizes;  ///< hidden linear layers after the experts, may be empty
  int64_t num_classes = 0;
  std::vector<std::string> class_names;
  TextNormalization text_normalization = TextNormalization::none;
  int32_t unknown_id = 0;
  int32_t pad_id = 1;

  /// num_filters * len(filter_widths): the width of h.
  int64_t feature_size() const { return num_filters * static_cast<int64_t>(filter_widths.size()); }
  /// Sum of the filter widths: the taps that one token has in a projected vocabulary.
  int64_t num_taps() const;
  int64_t max_filter_width() const;
  /// Multiply-adds count two; direct convolutions, experts not folded.
  int64_t flops_per_sentence() const;
  /// Input width of head layer `i`, or of the output layer for i == len(head_sizes).
  int64_t head_input_size(size_t i) const { return i == 0 ? expert_size : head_sizes[i - 1]; }

  /// Throws Error naming `where` and the field if the numbers do not describe a model (a filter wider than the
  /// sequence, a size of 0 or beyond the loader's limits, class names that do not match).
  void validate(const std::string& where) const;

  bool operator==(const ClassifierConfig&) const = default;
};

/// "apws25": the full-size model of the Accelerator Programming School 2025. "small": a few kilobytes, for trying out.
/// Error listing the names for any other.
ClassifierConfig preset_config(const std::string& name);

/// config.json, strictly read: integers are integers, unknown keys are returned in `warnings`, duplicates are errors.
ClassifierConfig load_config(const std::filesystem::path& path, std::vector<std::string>& warnings);
/// What save_config writes.
std::string config_text(const ClassifierConfig& config);
void save_config(const std::filesystem::path& path, const ClassifierConfig& config);

}  // namespace tessera::classifier
