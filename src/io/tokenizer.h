// Text to words: torchtext's "basic_english", optionally after the normalisation for review text as people type it.
//
//   const Tokenizer tokenizer(TextNormalization::reviews);
//   tokenizer.tokenize("It's NOT bad");                    // {"it", "'", "s", "not", "bad"}
//   tokenizer.encode("It's NOT bad", vocabulary, ids);     // ids.size() token ids, for a model
//
// basic_english (torchtext.data.utils.get_tokenizer):
//   lower-case; ' . , ( ) ! ? become words of their own; " is dropped; ; : and <br /> separate; then split at white
//   space, Unicode's included.
// reviews:
//   Unicode quotes, dashes and spaces are folded to ASCII, Penn-Treebank splitting is undone (wo n't -> won't,
//   `` and '' -> ", -lrb- -> (, gon na -> gonna) and hyphens separate words, so that raw and Treebank text give equal
//   words; then basic_english.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/vocabulary.h"
#include "tessera/core/text_normalization.h"

namespace tessera::io {

/// The normalised text: folded, lower-cased, Treebank splitting undone, words joined by single spaces, then hyphens
/// made spaces. `text` must be well-formed UTF-8, Error otherwise. Splitting it with TextNormalization::none gives the
/// words that `text` has with TextNormalization::reviews.
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
  /// Writes exactly `ids.size()` token ids: words, truncated, then padding. Thread-safe. `text` as for tokenize; after
  /// an Error `ids` is unchanged. One memory allocation a call, none a word.
  Encoding encode(std::string_view text, const Vocabulary& vocabulary, std::span<int32_t> ids) const;

 private:
  TextNormalization normalization_;
};

}  // namespace tessera::io
