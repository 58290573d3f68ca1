// Any bytes as text for both normalisations. Input: 1 byte of sequence length, then the text. Text that is no UTF-8 is
// refused; else the words are words, `encode` fills exactly its ids with what the words' ids are, and the normalised
// text means the same.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "io/tokenizer.h"
#include "io/white_space.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace {

using namespace tessera;

constexpr int32_t kGuard = -7;

void require(bool condition) {
  if (!condition) std::abort();
}

const io::Vocabulary& vocabulary() {
  static const io::Vocabulary words({"<unk>", "<pad>", "a", "b", "c", "'", ".", ",", "(", ")", "!", "?", "t", "isn"}, 0,
                                    1, "fuzz");
  return words;
}

void check_word(const std::string& word) {
  require(!word.empty() && utf8_first_invalid(word) == std::string::npos);
  for (size_t begin = 0; begin < word.size();) {
    const size_t length = utf8_sequence_length(std::string_view(word).substr(begin));
    require(!io::is_white_space(utf8_decode(std::string_view(word).substr(begin, length))));
    begin += length;
  }
  require(word.find_first_of("\";:ABCDEFGHIJKLMNOPQRSTUVWXYZ") == std::string::npos);
  require(word.size() == 1 || word.find_first_of("'.,()!?") == std::string::npos);
}

void check(const io::Tokenizer& tokenizer, const std::string& text, size_t sequence_length) {
  std::vector<int32_t> ids(sequence_length + 2, kGuard);
  const std::span<int32_t> inner = std::span(ids).subspan(1, sequence_length);
  if (utf8_first_invalid(text) != std::string::npos) {
    try {
      tokenizer.encode(text, vocabulary(), inner);
      require(false);
    } catch (const Error&) {
      for (const int32_t id : ids) require(id == kGuard);
      return;
    }
  }
  const std::vector<std::string> words = tokenizer.tokenize(text);
  const io::Tokenizer::Encoding encoding = tokenizer.encode(text, vocabulary(), inner);
  require(encoding.num_words == static_cast<int64_t>(words.size()));
  int64_t num_unknown = 0;
  for (size_t i = 0; i < sequence_length; ++i) {
    require(inner[i] == (i < words.size() ? vocabulary().id(words[i]) : vocabulary().pad_id()));
    require(inner[i] >= 0 && inner[i] < vocabulary().size());
    num_unknown += inner[i] == vocabulary().unknown_id() ? 1 : 0;
  }
  require(encoding.num_unknown == num_unknown && ids.front() == kGuard && ids.back() == kGuard);
  for (const std::string& word : words) check_word(word);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const io::Tokenizer reviews(TextNormalization::reviews);
  const io::Tokenizer basic(TextNormalization::none);
  check(reviews, text, data[0]);
  check(basic, text, data[0]);
  if (utf8_first_invalid(text) != std::string::npos) return 0;
  // Normalising twice may join what hyphens had kept apart ("ca-n't"); what holds is that the words are the same.
  const std::string normalized = io::normalize_review_text(text);
  require(utf8_first_invalid(normalized) == std::string::npos && normalized.size() <= 2 * text.size());
  require(normalized.find_first_of("-`\t\n\r") == std::string::npos);
  require(basic.tokenize(normalized) == reviews.tokenize(text));
  return 0;
}
