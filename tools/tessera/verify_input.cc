#include "verify_input.h"

namespace tessera::cli {

classifier::InputKind input_kind(const VerifyInput& input) {
  return input.embeddings.empty() ? classifier::InputKind::ids : classifier::InputKind::embeddings;
}

std::unique_ptr<io::RecordReader> open_input(const VerifyInput& input, const classifier::ClassifierConfig& config) {
  io::RecordSource source;
  source.sequence_length = config.sequence_length;
  source.embedding_size = config.embedding_size;
  if (!input.ids.empty()) {
    source.format = io::InputFormat::ids;
    source.path = input.ids;
  } else if (!input.embeddings.empty()) {
    source.format = io::InputFormat::embeddings;
    source.path = input.embeddings;
  } else {
    source.format = io::InputFormat::text;
    source.path = input.text;
  }
  return io::open_records(source);
}

ModelOptions oracle_options(const ModelOptions& options) {
  ModelOptions oracle = options;
  static_cast<BackEndOptions&>(oracle) = {.device = "cpu", .precision = "fp64"};
  return oracle;
}

}  // namespace tessera::cli
