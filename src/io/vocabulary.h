// The words a model knows: one UTF-8 word a line, line number from 0 = token id.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::io {

inline constexpr uint64_t kMaxVocabularyBytes = 256ull << 20;
inline constexpr int64_t kMaxVocabularySize = 16'777'216;

class Vocabulary {
 public:
  /// `words[id]`; every word once, non-empty, without white space, well-formed UTF-8. Error names `where` and the line.
  Vocabulary(std::vector<std::string> words, int32_t unknown_id, int32_t pad_id, const std::string& where);
  static Vocabulary load(const std::filesystem::path& path, int32_t unknown_id, int32_t pad_id);

  int64_t size() const { return static_cast<int64_t>(words_.size()); }
  int32_t unknown_id() const { return unknown_id_; }
  int32_t pad_id() const { return pad_id_; }
  const std::string& word(int32_t id) const { return words_[static_cast<size_t>(id)]; }
  /// The id of `word`, or unknown_id(). A text never reaches the pad or unknown entries by spelling their names.
  int32_t id(std::string_view word) const;
  /// The same for a word in a buffer that can be read from word.data() for kPaddedBytes, whatever stands there.
  int32_t id_of_padded(std::string_view word) const;
  static constexpr size_t kPaddedBytes = 16;

 private:
  /// What is compared: a word of up to 16 bytes with zeros behind, so that most look-ups touch one cache line, else a
  /// hash.
  struct Key {
    uint64_t low = 0;
    uint64_t high = 0;
    bool operator==(const Key&) const = default;
  };
  struct Slot {
    Key key;
    uint32_t num_bytes = 0;  // 0: free
    int32_t id = 0;
  };
  static Key key_of(std::string_view word);
  static Key key_of_padded(std::string_view word);
  int32_t id_of(const Key& key, std::string_view word) const;
  /// The slot that holds `word`, or the free one where it belongs.
  size_t find(const Key& key, std::string_view word) const;

  std::vector<std::string> words_;
  std::vector<Slot> slots_;  // open addressing; a power of two, at most half full
  int shift_ = 0;            // 64 - log2(slots_.size())
  int32_t unknown_id_;
  int32_t pad_id_;
};

}  // namespace tessera::io
