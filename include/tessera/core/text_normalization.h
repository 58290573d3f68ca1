// How raw text is prepared before it is split into words (io/tokenizer.h has the rules).
#pragma once

#include <cstdint>

namespace tessera {

/// none: torchtext's basic_english alone. reviews: text as people type it, or Penn-Treebank text, gives the same words.
enum class TextNormalization : uint8_t { none, reviews };

}  // namespace tessera
