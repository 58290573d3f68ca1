#include "io/vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "io/file.h"
#include "io/quote.h"
#include "io/white_space.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

uint64_t read_at(const char* bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

/// A mask of the lowest `count` bytes, at most 8.
uint64_t low_bytes(size_t count) { return count == 0 ? 0 : ~uint64_t{0} >> (64 - 8 * count); }

/// Both numbers in every bit of the upper half of the result, which a table's position is made of.
uint64_t mixed(uint64_t low, uint64_t high) {
  // Odd constants without a pattern: the fractions of the square roots of 2 and 3.
  constexpr uint64_t kFirst = 0x6A09E667F3BCC909u, kSecond = 0xBB67AE8584CAA73Bu;
  const uint64_t product = (low ^ std::rotl(high * kSecond, 32)) * kFirst;
  return (product ^ product >> 32) * kSecond;
}

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
  slots_.resize(std::bit_ceil(2 * words_.size()));
  shift_ = 64 - std::countr_zero(slots_.size());
  for (size_t i = 0; i < words_.size(); ++i) {
    const std::string problem = word_problem(words_[i]);
    if (!problem.empty()) throw Error(str_cat(where, ":", i + 1), problem, "one word a line");
    const Key key = key_of(words_[i]);
    Slot& slot = slots_[find(key, words_[i])];
    if (slot.num_bytes != 0) {
      throw Error(str_cat(where, ":", i + 1), quote(words_[i]) + " again",
                  str_cat("every word once; it is in line ", slot.id + 1));
    }
    slot = {.key = key, .num_bytes = static_cast<uint32_t>(words_[i].size()), .id = static_cast<int32_t>(i)};
  }
  // A text that spells these entries' names means words that the model does not know.
  for (const int32_t id : {unknown_id, pad_id}) {
    const std::string& word = words_[static_cast<size_t>(id)];
    slots_[find(key_of(word), word)].id = unknown_id;
  }
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

int32_t Vocabulary::id(std::string_view word) const { return id_of(key_of(word), word); }

int32_t Vocabulary::id_of_padded(std::string_view word) const { return id_of(key_of_padded(word), word); }

int32_t Vocabulary::id_of(const Key& key, std::string_view word) const {
  const Slot& slot = slots_[find(key, word)];
  return slot.num_bytes == 0 ? unknown_id_ : slot.id;
}

Vocabulary::Key Vocabulary::key_of(std::string_view word) {
  char padded[kPaddedBytes] = {};
  if (word.size() > kPaddedBytes) return key_of_padded(word);
  std::copy(word.begin(), word.end(), padded);
  return key_of_padded({padded, word.size()});
}

Vocabulary::Key Vocabulary::key_of_padded(std::string_view word) {
  static_assert(std::endian::native == std::endian::little, "the first bytes of a word are the lowest of its key");
  const char* const bytes = word.data();
  const size_t size = word.size();
  if (size > kPaddedBytes) {
    uint64_t hash = 0;
    for (size_t i = 0; i + 8 <= size; i += 8) hash = mixed(hash, read_at(bytes + i));
    return {hash, read_at(bytes + size - 8)};
  }
  const uint64_t low = read_at(bytes), high = read_at(bytes + 8);
  return {low & low_bytes(std::min<size_t>(size, 8)), size > 8 ? high & low_bytes(size - 8) : 0};
}

size_t Vocabulary::find(const Key& key, std::string_view word) const {
  const size_t mask = slots_.size() - 1;
  size_t position = static_cast<size_t>(mixed(key.low + word.size(), key.high) >> shift_);
  while (true) {
    const Slot& slot = slots_[position];
    if (slot.num_bytes == 0) return position;
    if (slot.key == key && slot.num_bytes == word.size() &&
        (word.size() <= kPaddedBytes || words_[static_cast<size_t>(slot.id)] == word)) {
      return position;
    }
    position = (position + 1) & mask;
  }
}

}  // namespace tessera::io
