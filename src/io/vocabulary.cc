#include "io/vocabulary.h"

#include <utility>

#include "io/file.h"
#include "io/quote.h"
#include "io/white_space.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

/// What is wrong with `word` as an entry, or empty.
std::string word_problem(std::string_view word) {
  if (word.empty()) return "an empty line";
  for (size_t begin = 0; begin < word.size();) {
    const size_t length = utf8_sequence_length(word.substr(begin));
    if (length == 0) return "invalid UTF-8 in " + quote(word);
    if (is_white_space(utf8_decode(word.substr(begin, length)))) return "white space in " + quote(word);
    begin += length;
  }
  if (word.starts_with("\xEF\xBB\xBF")) return "a byte order mark";
  return "";
}

void check_special_id(const char* name, int32_t id, size_t size, const std::string& where) {
  if (id < 0 || static_cast<size_t>(id) >= size) {
    throw Error(where, str_cat(name, " ", id), str_cat("an id below the ", size, " words of the vocabulary"));
  }
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> words, int32_t unknown_id, int32_t pad_id, const std::string& where)
    : words_(std::move(words)), unknown_id_(unknown_id), pad_id_(pad_id) {
  if (words_.empty() || words_.size() > static_cast<size_t>(kMaxVocabularySize)) {
    throw Error(where, str_cat(words_.size(), " words"), str_cat("1 to ", kMaxVocabularySize, ", one a line"));
  }
  check_special_id("unknown_id", unknown_id, words_.size(), where);
  check_special_id("pad_id", pad_id, words_.size(), where);
  ids_.reserve(words_.size());
  for (size_t i = 0; i < words_.size(); ++i) {
    const std::string problem = word_problem(words_[i]);
    if (!problem.empty()) throw Error(str_cat(where, ":", i + 1), problem, "one word a line");
    const auto [first, inserted] = ids_.emplace(words_[i], static_cast<int32_t>(i));
    if (!inserted) {
      throw Error(str_cat(where, ":", i + 1), quote(words_[i]) + " again",
                  str_cat("every word once; it is in line ", first->second + 1));
    }
  }
  // A text that spells these entries' names means words that the model does not know.
  ids_.erase(words_[static_cast<size_t>(unknown_id)]);
  ids_.erase(words_[static_cast<size_t>(pad_id)]);
}

Vocabulary Vocabulary::load(const std::filesystem::path& path, int32_t unknown_id, int32_t pad_id) {
  const std::string text = read_text_file(path, kMaxVocabularyBytes);
  const std::string where = escaped(path.native());
  std::vector<std::string> words;
  for (size_t begin = 0; begin < text.size();) {
    if (words.size() == static_cast<size_t>(kMaxVocabularySize)) {
      throw Error(where, "more lines", str_cat("at most ", kMaxVocabularySize));
    }
    const size_t end = std::min(text.find('\n', begin), text.size());
    words.emplace_back(text, begin, end - begin);
    begin = end + 1;
  }
  return Vocabulary(std::move(words), unknown_id, pad_id, where);
}

int32_t Vocabulary::id(std::string_view word) const {
  const auto found = ids_.find(word);
  return found == ids_.end() ? unknown_id_ : found->second;
}

}  // namespace tessera::io
