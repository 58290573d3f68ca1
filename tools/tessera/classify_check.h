// Whether what a timed run left behind is right.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "classify_data.h"
#include "tessera/classifier/classifier.h"

namespace tessera::cli {

struct ClassifyCheck {
  int64_t num_records = 0;   ///< compared with the oracle
  double largest_error = 0;  ///< |logit - oracle| / max(1, |oracle|); infinite where a logit is no number
  double bound = 0;          ///< of it
  bool bits_agree = false;   ///< all logits finite, and every run gave the same ones

  bool passed() const { return num_records > 0 && largest_error <= bound && bits_agree; }
};

/// `input`: what the timed runs were given. `rounded`: 16-bit type that embeddings were rounded to before, or f32.
/// `runs`: the logits that timed runs left, each [n, num_classes] where row r is sentence r % num_sentences; the first
/// is compared with the fp64 oracle on `num_checked` records, the others with the first, bit for bit.
ClassifyCheck check_classified(const ClassifyData& data, classifier::InputKind input, DType rounded,
                               const std::string& precision, int64_t num_checked, int num_threads,
                               const std::vector<std::span<const float>>& runs);

}  // namespace tessera::cli
