#include "io/tokenizer.h"

#include <locale.h>
#include <wctype.h>

#include <algorithm>
#include <array>
#include <optional>

#include "io/ascii_words.h"
#include "io/quote.h"
#include "io/white_space.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

// ---- Code points ----------------------------------------------------------------------------------------------------

/// One code point to one, as Python's str.lower where that gives one. Without the C.UTF-8 locale (every glibc
/// since 2.35 has it built in) only ASCII letters change.
char32_t lower_code_point(char32_t c) {
  static_assert(sizeof(wint_t) >= sizeof(char32_t));
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);  // lives as long as the process
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  // U+0130 has a lower-case form of two code points and stays as it is.
  if (locale == nullptr || c == 0x130) return c;
  return static_cast<char32_t>(towlower_l(static_cast<wint_t>(c), locale));
}

/// What the typography of keyboards and editors is in ASCII; nothing for code points that stay.
std::optional<std::string_view> folded(char32_t c) {
  switch (c) {
    case 0x2018:
    case 0x2019:
    case 0x201A:
    case 0x2032:
    case 0x02BC: return "'";
    case 0x201C:
    case 0x201D:
    case 0x201E:
    case 0x2033:
    case 0x00AB:
    case 0x00BB: return "\"";
    case 0x2026: return "...";
    case 0x2212: return "-";
    case 0x00A0:
    case 0x202F:
    case 0x205F:
    case 0x3000: return " ";
    case 0x200B:
    case 0xFEFF:
    case 0x00AD: return "";
    default: break;
  }
  if (c >= 0x2010 && c <= 0x2015) return "-";
  if (c >= 0x2000 && c <= 0x200A) return " ";
  return std::nullopt;
}

/// The multi-byte sequence of `text` at `begin`. Throws Error if there is none.
std::string_view sequence_at(std::string_view text, size_t begin) {
  const size_t length = utf8_sequence_length(text.substr(begin));
  if (length == 0) {
    throw Error(str_cat("text: byte ", begin), quote(text.substr(begin, 1)), "well-formed UTF-8");
  }
  return text.substr(begin, length);
}

// ---- Bytes ----------------------------------------------------------------------------------------------------------

enum class ByteClass : uint8_t {
  plain,       // part of a word
  upper,       // part of a word, once lower-cased
  space,       // white space
  separator,   // ; :
  mark,        // . , ( ) ! ? always a word of its own
  apostrophe,  // the same, and a quote of the Penn Treebank
  backtick,    // a quote of the Penn Treebank, else part of a word
  dropped,     // "
  tag,         // < may open a line break
  multi_byte,  // starts or continues a code point beyond ASCII
};

constexpr std::array<ByteClass, 256> make_byte_classes() {
  std::array<ByteClass, 256> classes{};
  for (size_t byte = 0; byte < 256; ++byte) {
    const bool ascii_space = byte < 0x80 && is_white_space(static_cast<char32_t>(byte));
    classes[byte] = byte >= 0x80                 ? ByteClass::multi_byte
                    : byte >= 'A' && byte <= 'Z' ? ByteClass::upper
                    : ascii_space                ? ByteClass::space
                                                 : ByteClass::plain;
  }
  for (const char c : std::string_view(";:")) classes[static_cast<unsigned char>(c)] = ByteClass::separator;
  for (const char c : std::string_view(".,()!?")) classes[static_cast<unsigned char>(c)] = ByteClass::mark;
  classes['\''] = ByteClass::apostrophe;
  classes['`'] = ByteClass::backtick;
  classes['"'] = ByteClass::dropped;
  classes['<'] = ByteClass::tag;
  return classes;
}

constexpr std::array<ByteClass, 256> kByteClasses = make_byte_classes();

ByteClass class_of(char c) { return kByteClasses[static_cast<unsigned char>(c)]; }

/// Appends text[begin, ...) up to the first byte that the reviews' rules look at, lower-cased; returns the end.
size_t append_lower_run(std::string_view text, size_t begin, std::string& out) {
  size_t end = begin;
  bool has_upper = false;
  for (; end < text.size(); ++end) {
    const ByteClass c = class_of(text[end]);
    if (c == ByteClass::space || c == ByteClass::apostrophe || c == ByteClass::backtick || c == ByteClass::multi_byte) {
      break;
    }
    has_upper = has_upper || c == ByteClass::upper;
  }
  const size_t out_begin = out.size();
  out.append(text.substr(begin, end - begin));
  if (has_upper) {
    for (size_t i = out_begin; i < out.size(); ++i) {
      if (class_of(out[i]) == ByteClass::upper) out[i] = static_cast<char>(out[i] + 32);
    }
  }
  return end;
}

// ---- Undoing the Penn Treebank --------------------------------------------------------------------------------------

/// Joins words with single spaces as they come, undoing the Treebank's splitting on the way.
class TreebankJoiner {
 public:
  explicit TreebankJoiner(std::string& out) : out_(out) {}

  std::string& out() { return out_; }

  /// ` or ': two of a kind are a double quote.
  void append_quote(char mark) {
    if (out_.size() > word_begin_ && out_.back() == mark) {
      out_.back() = '"';
      return;
    }
    out_.push_back(mark);
    has_backtick_ = has_backtick_ || mark == '`';
  }

  void end_word() {
    if (out_.size() == word_begin_) return;
    const auto begin = out_.begin() + static_cast<std::ptrdiff_t>(word_begin_);
    // Only now: an apostrophe that was a backtick makes no double quote with its neighbour.
    if (has_backtick_) std::replace(begin, out_.end(), '`', '\'');
    has_backtick_ = false;
    replace_bracket();
    if (word_begin_ > 0 && glues(previous_word(), word())) {
      out_.erase(word_begin_ - 1, 1);
    } else {
      previous_begin_ = word_begin_;
    }
    out_.push_back(' ');
    word_begin_ = out_.size();
  }

  void finish() {
    end_word();
    if (!out_.empty()) out_.pop_back();
  }

 private:
  std::string_view word() const { return std::string_view(out_).substr(word_begin_); }
  std::string_view previous_word() const {
    return std::string_view(out_).substr(previous_begin_, word_begin_ - 1 - previous_begin_);
  }

  void replace_bracket() {
    if (out_.size() - word_begin_ != 5 || out_[word_begin_] != '-') return;
    const std::string_view bracket = word() == "-lrb-" ? "(" : word() == "-rrb-" ? ")" : "";
    if (!bracket.empty()) out_.replace(word_begin_, 5, bracket);
  }

  static bool glues(std::string_view previous, std::string_view word) {
    if (word.size() == 2 && previous.size() == 3) {
      if (word == "na") return previous == "gon" || previous == "wan";
      if (word == "ta") return previous == "got";
      return word == "me" && (previous == "gim" || previous == "lem");
    }
    return word == "n't" || (word == "not" && previous == "can");
  }

  std::string& out_;
  size_t word_begin_ = 0;      // of the word that is growing at the end of out_
  size_t previous_begin_ = 0;  // of the word before it, what was glued to it included
  bool has_backtick_ = false;
};

void append_folded(std::string_view replacement, TreebankJoiner& joiner) {
  if (replacement == "'") {
    joiner.append_quote('\'');
  } else if (replacement == " ") {
    joiner.end_word();
  } else {
    joiner.out() += replacement;
  }
}

void normalize_into(std::string_view text, std::string& out) {
  out.reserve(text.size() + 1);
  TreebankJoiner joiner(out);
  for (size_t i = 0; i < text.size();) {
    i = append_lower_run(text, i, out);
    if (i == text.size()) break;
    const ByteClass c = class_of(text[i]);
    if (c == ByteClass::space) {
      joiner.end_word();
      ++i;
    } else if (c != ByteClass::multi_byte) {
      joiner.append_quote(text[i++]);
    } else {
      const std::string_view sequence = sequence_at(text, i);
      const char32_t code_point = utf8_decode(sequence);
      i += sequence.size();
      if (const auto replacement = folded(code_point)) {
        append_folded(*replacement, joiner);
      } else if (is_white_space(code_point)) {
        joiner.end_word();
      } else {
        utf8_append(out, lower_code_point(code_point));
      }
    }
  }
  joiner.finish();
  std::replace(out.begin(), out.end(), '-', ' ');
}

void lower_into(std::string_view text, std::string& out) {
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const ByteClass c = class_of(text[i]);
    if (c != ByteClass::multi_byte) {
      out.push_back(c == ByteClass::upper ? static_cast<char>(text[i] + 32) : text[i]);
      ++i;
      continue;
    }
    const std::string_view sequence = sequence_at(text, i);
    utf8_append(out, lower_code_point(utf8_decode(sequence)));
    i += sequence.size();
  }
}

// ---- basic_english --------------------------------------------------------------------------------------------------

/// Bytes of the <br /> that starts at text[0], or 0. Double quotes are gone before it is looked for.
size_t line_break_length(std::string_view text) {
  static constexpr std::string_view kTag = "<br />";
  size_t matched = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') continue;
    if (text[i] != kTag[matched]) return 0;
    if (++matched == kTag.size()) return i + 1;
  }
  return 0;
}

/// Calls word(std::string_view) for each word of `text`, which is lower-case and well-formed UTF-8. The views point
/// into `text`, where dropped quotes are squeezed out of the words on the way.
template <class Word>
void split_words(std::string& text, const Word& word) {
  char* const last = text.data() + text.size();
  char* read = text.data();
  char* begin = read;  // the word that is growing is [begin, end)
  char* end = read;
  const auto separate = [&](size_t num_bytes) {
    if (end != begin) word(std::string_view(begin, static_cast<size_t>(end - begin)));
    read += num_bytes;
    begin = end = read;
  };
  const auto keep = [&](size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; ++i) *end++ = *read++;
  };
  while (read != last) {
    const ByteClass c = class_of(*read);
    if (c == ByteClass::plain) {
      *end++ = *read++;
    } else if (c == ByteClass::space || c == ByteClass::separator) {
      separate(1);
    } else if (c == ByteClass::mark || c == ByteClass::apostrophe) {
      const char mark = *read;
      separate(1);
      word(std::string_view(&mark, 1));
    } else if (c == ByteClass::dropped) {
      ++read;
    } else {
      const std::string_view rest(read, static_cast<size_t>(last - read));
      if (c == ByteClass::tag) {
        const size_t length = line_break_length(rest);
        length > 0 ? separate(length) : keep(1);
      } else if (c == ByteClass::multi_byte) {
        const size_t length = utf8_sequence_length(rest);
        is_white_space(utf8_decode(rest.substr(0, length))) ? separate(length) : keep(length);
      } else {
        keep(1);
      }
    }
  }
  separate(0);
}

/// Ids as they come: kept, counted, cut. `is_padded`: the words are as Vocabulary::id_of_padded asks for.
template <bool is_padded>
class IdWriter {
 public:
  IdWriter(const Vocabulary& vocabulary, std::span<int32_t> ids) : vocabulary_(vocabulary), ids_(ids) {}

  void operator()(std::string_view word) {
    if (num_words_ < ids_.size()) {
      const int32_t id = is_padded ? vocabulary_.id_of_padded(word) : vocabulary_.id(word);
      ids_[num_words_] = id;
      num_unknown_ += id == vocabulary_.unknown_id() ? 1 : 0;
    }
    ++num_words_;
  }

  Tokenizer::Encoding finish() const {
    const size_t num_kept = std::min(num_words_, ids_.size());
    std::fill(ids_.begin() + static_cast<std::ptrdiff_t>(num_kept), ids_.end(), vocabulary_.pad_id());
    return {.num_words = static_cast<int64_t>(num_words_), .num_unknown = num_unknown_};
  }

 private:
  const Vocabulary& vocabulary_;
  std::span<int32_t> ids_;
  size_t num_words_ = 0;
  int64_t num_unknown_ = 0;
};

/// `text` up to the point where both normalisations go the same way.
std::string prepared(std::string_view text, TextNormalization normalization) {
  std::string out;
  normalization == TextNormalization::reviews ? normalize_into(text, out) : lower_into(text, out);
  return out;
}

}  // namespace

std::string normalize_review_text(std::string_view text) { return prepared(text, TextNormalization::reviews); }

std::vector<std::string> Tokenizer::tokenize(std::string_view text) const {
  std::vector<std::string> words;
  std::string buffer = prepared(text, normalization_);
  split_words(buffer, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

Tokenizer::Encoding Tokenizer::encode(std::string_view text, const Vocabulary& vocabulary,
                                      std::span<int32_t> ids) const {
  if (text.size() <= kMaxAsciiTextBytes) {
    IdWriter<true> writer(vocabulary, ids);
    if (split_ascii_words(text, normalization_, [&](std::string_view word) { writer(word); })) return writer.finish();
  }
  std::string buffer = prepared(text, normalization_);
  IdWriter<false> writer(vocabulary, ids);
  split_words(buffer, [&](std::string_view word) { writer(word); });
  return writer.finish();
}

}  // namespace tessera::io
