// The words of short ASCII text, which is what most sentences are: tokenizer.cc's rules in one pass over a copy on the
// stack, words handed out as they end. Gives up on what is rare (a byte beyond ASCII, ` < and neighbouring ''), and the
// rules proper, which define the words, then do all of it. The tests compare the two.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "io/vocabulary.h"
#include "io/white_space.h"
#include "tessera/core/text_normalization.h"

namespace tessera::io {

/// A few times the length of a long sentence, and little for a stack.
inline constexpr size_t kMaxAsciiTextBytes = 1000;

namespace ascii {

enum class Kind : uint8_t {
  plain,      // part of a word
  space,      // white space: ends a word, and for reviews the Treebank's word too
  separator,  // ends a word
  mark,       // a word of its own
  apostrophe,
  dropped,  // "
  rare,     // not handled here
};

constexpr std::array<Kind, 256> make_kinds(TextNormalization normalization) {
  std::array<Kind, 256> kinds{};
  for (size_t byte = 0; byte < 256; ++byte) {
    kinds[byte] = byte >= 0x80 ? Kind::rare : is_white_space(static_cast<char32_t>(byte)) ? Kind::space : Kind::plain;
  }
  for (const char c : std::string_view(";:")) kinds[static_cast<unsigned char>(c)] = Kind::separator;
  for (const char c : std::string_view(".,()!?")) kinds[static_cast<unsigned char>(c)] = Kind::mark;
  kinds['\''] = Kind::apostrophe;
  kinds['"'] = Kind::dropped;
  kinds['<'] = Kind::rare;
  if (normalization == TextNormalization::reviews) {
    kinds['-'] = Kind::separator;
    kinds['`'] = Kind::rare;
  }
  return kinds;
}

template <TextNormalization normalization>
inline constexpr std::array<Kind, 256> kKinds = make_kinds(normalization);

// White space behind the text: a word ends there, and Vocabulary::id_of_padded may read on.
inline constexpr size_t kPadding = Vocabulary::kPaddedBytes;

static_assert(std::endian::native == std::endian::little, "the first byte of a text is the lowest of a number");

// Eight ASCII bytes at a time: adding 0x80 - c to a byte below 0x80 sets its top bit exactly if it is c or more.
constexpr uint64_t kTopBits = 0x8080808080808080u;
constexpr uint64_t each_byte(unsigned value) { return 0x0101010101010101u * value; }

/// The top bit of each byte in [first, last].
constexpr uint64_t bytes_between(uint64_t bytes, char first, char last) {
  const unsigned from = static_cast<unsigned char>(first), to = static_cast<unsigned char>(last);
  return (bytes + each_byte(0x80 - from)) & ~(bytes + each_byte(0x7F - to)) & kTopBits;
}

constexpr uint64_t lower_case(uint64_t bytes) { return bytes | bytes_between(bytes, 'A', 'Z') >> 2; }

/// A word that may be glued to the one behind it, as the Treebank split them; found by its three bytes.
enum class Stem : uint8_t { none, gon_wan, got, gim_lem, can };

inline bool is_at(const char* text, std::string_view word) { return std::memcmp(text, word.data(), word.size()) == 0; }

inline Stem stem_of(const char* word) {
  if (is_at(word, "can")) return Stem::can;
  if (is_at(word, "gon") || is_at(word, "wan")) return Stem::gon_wan;
  if (is_at(word, "got")) return Stem::got;
  return is_at(word, "gim") || is_at(word, "lem") ? Stem::gim_lem : Stem::none;
}

/// Splits lower-case text that ends in white space at `last`, where kPadding bytes of it follow.
template <TextNormalization normalization, class Word>
class Splitter {
 public:
  Splitter(char* text, const char* last, const Word& word) : read_(text), last_(last), word_(word) {}

  /// False when something rare was met; the words handed out are then of no use.
  bool run() {
    begin_word();
    while (true) {
      while (kind() == Kind::space && read_ < last_) ++read_;
      if (read_ >= last_) break;
      if (!start_chunk()) continue;
      if (!split_chunk()) return false;
    }
    end_word();
    return true;
  }

 private:
  Kind kind() const { return kKinds<normalization>[static_cast<unsigned char>(*read_)]; }
  bool ends_chunk(const char* text) const {
    return kKinds<normalization>[static_cast<unsigned char>(*text)] == Kind::space;
  }

  void begin_word() { begin_ = end_ = read_; }
  void end_word() {
    if (end_ != begin_) word_(std::string_view(begin_, static_cast<size_t>(end_ - begin_)));
    begin_word();
  }

  /// At the first byte of what stands between white space. The word before it may go on in it. False when all of it
  /// has been handled already.
  bool start_chunk() {
    if constexpr (normalization == TextNormalization::reviews) {
      const bool is_glued = has_chunk_ && glues();
      has_chunk_ = true;
      if (is_glued) {
        if (begin_ == end_) begin_word();
        return true;
      }
    }
    end_word();
    if constexpr (normalization == TextNormalization::reviews) {
      if (*read_ == '-' && (is_at(read_, "-lrb-") || is_at(read_, "-rrb-")) && ends_chunk(read_ + 5)) {
        static constexpr char kBrackets[] = "(               )               ";
        static_assert(sizeof(kBrackets) > 2 * kPadding && kBrackets[kPadding] == ')');
        word_(std::string_view(read_[1] == 'l' ? kBrackets : kBrackets + kPadding, 1));
        read_ += 5;
        stem_ = Stem::none;
        begin_word();
        return false;
      }
    }
    return true;
  }

  /// Whether what stands at read_ belongs to the chunk before.
  bool glues() const {
    switch (*read_) {
      case 'n':
        return (is_at(read_, "n't") && ends_chunk(read_ + 3)) ||
               (stem_ == Stem::can && is_at(read_, "not") && ends_chunk(read_ + 3)) ||
               (stem_ == Stem::gon_wan && is_at(read_, "na") && ends_chunk(read_ + 2));
      case 't': return stem_ == Stem::got && is_at(read_, "ta") && ends_chunk(read_ + 2);
      case 'm': return stem_ == Stem::gim_lem && is_at(read_, "me") && ends_chunk(read_ + 2);
      default: return false;
    }
  }

  /// Up to the next white space; the word that grows there stays open. False at something rare.
  bool split_chunk() {
    const char* const chunk = read_;
    bool is_whole = true;  // its bytes are where they were
    while (true) {
      switch (kind()) {
        case Kind::plain: keep_run(); break;
        case Kind::space: stem_ = is_whole && read_ - chunk == 3 ? stem_of(chunk) : Stem::none; return true;
        case Kind::separator:
          end_word();
          ++read_;
          begin_word();
          break;
        case Kind::apostrophe:
          if (normalization == TextNormalization::reviews && read_[1] == '\'') return false;
          [[fallthrough]];
        case Kind::mark:
          end_word();
          word_(std::string_view(read_, 1));
          ++read_;
          begin_word();
          break;
        case Kind::dropped:
          is_whole = false;
          ++read_;
          break;
        case Kind::rare: return false;
      }
    }
  }

  /// Adds the plain bytes at read_ to the word; they move down where a quote was dropped or a gap closed before them.
  void keep_run() {
    const char* const first = read_;
    do {
      uint64_t bytes = 0;
      std::memcpy(&bytes, read_, sizeof(bytes));
      const int num_letters = std::countr_zero(~bytes_between(bytes, 'a', 'z') & kTopBits) / 8;
      read_ += std::max(num_letters, 1);  // plain is more than letters
    } while (kind() == Kind::plain);
    const size_t num_bytes = static_cast<size_t>(read_ - first);
    if (end_ != first) std::memmove(end_, first, num_bytes);
    end_ += num_bytes;
  }

  char* read_;
  const char* last_;
  const Word& word_;
  char* begin_ = nullptr;  // the word that grows is [begin_, end_)
  char* end_ = nullptr;
  Stem stem_ = Stem::none;  // of the chunk before
  bool has_chunk_ = false;  // there was one
};

}  // namespace ascii

/// Calls word(std::string_view) for each word of `text`, of at most kMaxAsciiTextBytes; the words are padded as
/// Vocabulary::id_of_padded asks for. False when the text is not for
/// this; some words may have been handed out, all of them of text that is ASCII throughout.
template <class Word>
bool split_ascii_words(std::string_view text, TextNormalization normalization, const Word& word) {
  std::array<char, kMaxAsciiTextBytes + ascii::kPadding> copy;
  uint64_t any = 0;
  const auto copy_lower = [&](size_t begin, size_t num_bytes) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, text.data() + begin, num_bytes);
    any |= bytes;
    bytes = ascii::lower_case(bytes);
    std::memcpy(copy.data() + begin, &bytes, sizeof(bytes));
  };
  size_t begin = 0;
  for (; begin + 8 <= text.size(); begin += 8) copy_lower(begin, 8);
  if (begin < text.size()) copy_lower(begin, text.size() - begin);
  if ((any & ascii::kTopBits) != 0) return false;
  char* const last = copy.data() + text.size();
  std::memset(last, ' ', ascii::kPadding);
  if (normalization == TextNormalization::reviews) {
    return ascii::Splitter<TextNormalization::reviews, Word>(copy.data(), last, word).run();
  }
  return ascii::Splitter<TextNormalization::none, Word>(copy.data(), last, word).run();
}

}  // namespace tessera::io
