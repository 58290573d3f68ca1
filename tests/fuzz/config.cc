// Any bytes as config.json. It is refused with an Error that a terminal can show, or it is a model that can be: what it
// says passes the checks of one made by hand, and nothing overflows.
#include "tessera/classifier/config.h"

#include "memory_file.h"
#include "tessera/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  using fuzz::require;
  const fuzz::MemoryFile file(fuzz::text_of(data, size));
  try {
    std::vector<std::string> warnings;
    const classifier::ClassifierConfig config = classifier::load_config(file.path(), warnings);
    config.validate("config");
    require(config.vocab_size >= 1 && config.num_experts >= 1 && config.num_classes >= 1);
    require(config.feature_size() >= 1 && config.max_filter_width() <= config.sequence_length);
    require(config.num_taps() >= config.max_filter_width());
    for (const std::string& warning : warnings) fuzz::check_message(warning);
  } catch (const Error& error) {
    fuzz::check_message(error.what());
  }
  return 0;
}
