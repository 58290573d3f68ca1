// Any bytes as vocab.txt. It is refused with an Error that a terminal can show, or every word has its own line as id.
#include "io/vocabulary.h"

#include "memory_file.h"
#include "tessera/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  using fuzz::require;
  const fuzz::MemoryFile file(fuzz::text_of(data, size));
  try {
    const io::Vocabulary words = io::Vocabulary::load(file.path(), 0, 1);
    require(words.size() >= 2);
    for (int32_t id = 0; id < words.size(); ++id) {
      const std::string& word = words.word(id);
      require(!word.empty() && utf8_first_invalid(word) == std::string::npos);
      require(words.id(word) == (id <= 1 ? words.unknown_id() : id));
    }
  } catch (const Error& error) {
    fuzz::check_message(error.what());
  }
  return 0;
}
