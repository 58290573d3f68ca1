// The words a model knows: one UTF-8 word a line, line number from 0 = token id.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
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

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::vector<std::string> words_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  int32_t unknown_id_;
  int32_t pad_id_;
};

}  // namespace tessera::io
