// Text to words: torchtext's "basic_english", optionally after the normalisation for review text as people type it.
//
//   Tokenizer tokenizer(TextNormalization::reviews);
//   tokenizer.tokenize("It's NOT bad", [&](std::string_view word) { ... });   // it ' s not bad
//
// basic_english (torchtext.data.utils.get_tokenizer): lower-case; ' . , ( ) ! ? become words of their own; " is dropped;
// ; : and <br /> separate; then split at white space.
// reviews: Unicode quotes, dashes and spaces are folded to ASCII, Penn-Treebank splitting is undone (wo n't -> won't,
// `` and '' -> ", -lrb- -> (, gon na -> gonna) and hyphens separate words, so that raw and PTB text give equal words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/vocabulary.h"
#include "tessera/core/text_normalization.h"

namespace tessera::io {

/// The normalised text (see above); also lower-cased. `text` must be well-formed UTF-8. Exposed for tests.
std::string normalize_review_text(std::string_view text);

class Tokenizer {
 public:
  explicit Tokenizer(TextNormalization normalization) : normalization_(normalization) {}

  /// Words of `text` (well-formed UTF-8; Error otherwise) in order.
  std::vector<std::string> tokenize(std::string_view text) const;

  struct Encoding {
    int64_t num_words = 0;    ///< before truncation
    int64_t num_unknown = 0;  ///< among those kept
  };
  /// Writes exactly `ids.size()` token ids: words, truncated, then padding. Thread-safe.
  Encoding encode(std::string_view text, const Vocabulary& vocabulary, std::span<int32_t> ids) const;

 private:
  TextNormalization normalization_;
};

}  // namespace tessera::io
