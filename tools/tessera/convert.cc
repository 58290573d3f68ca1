// tessera convert: the school's files and checkpoints.
#include <cstdio>
#include <memory>
#include <string>

#include "classifier/school_format.h"
#include "commands.h"
#include "exit_codes.h"
#include "file_roles.h"
#include "given_options.h"
#include "tessera/classifier/config.h"
#include "tessera/classifier/model.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "write_options.h"

namespace tessera::cli {

namespace {

constexpr const char* kConvertFooter =
    "Examples:\n"
    "  tessera convert --params params.bin --embedding embedding.bin --vocab vocab.txt --preset apws25 --output model\n"
    "  tessera convert --model model --to-school school\n"
    "  tessera convert --model model --ids inputs.bin --to-embeddings input_embeddings.bin\n"
    "The school's format: params.bin, headerless fp32, weight then bias of conv 0.., experts 0.., router, linear 0.. "
    "(the\n"
    "last one is the output layer), 547,481,624 bytes for apws25; embedding.bin, fp32 [vocabulary, channels]; "
    "vocab.txt, a\n"
    "word a line; input_embeddings.bin, fp32 [N, channels, positions]. Sizes are checked to the byte.";

struct ConvertOptions {
  std::string params;
  std::string embedding;
  std::string vocabulary;
  std::string preset;
  std::string config;
  std::string output;
  std::string dtype = "f32";
  std::string model;
  std::string to_school;
  std::string ids;
  std::string to_embeddings;
};

int from_school(const ConvertOptions& options) {
  if (options.output.empty()) throw Error("convert", "--params without --output", "--output DIR for the checkpoint");
  FileRoles roles;
  roles.reads("--params", options.params);
  roles.reads("--embedding", options.embedding);
  roles.reads("--vocab", options.vocabulary);
  roles.reads("--config", options.config);
  roles.writes_into("--output", options.output, {"config.json", "vocab.txt", "model.safetensors"});
  const DType dtype = parse_dtype(options.dtype);
  const classifier::ClassifierConfig config = read_config(options.preset, options.config);
  classifier::Model model = classifier::read_school_model(
      config, {.params = options.params, .embedding = options.embedding, .vocabulary = options.vocabulary});
  warn_of_replaced_checkpoint(options.output);
  classifier::save_model(options.output, model, dtype);
  std::fprintf(stderr, "tessera: wrote the checkpoint %s%s\n", escaped(options.output).c_str(),
               options.embedding.empty() ? " (without --embedding it takes embeddings only)" : "");
  return kAllOk;
}

int from_checkpoint(const ConvertOptions& options) {
  if (!options.to_embeddings.empty() && options.ids.empty()) {
    throw Error("convert", "--to-embeddings without --ids", "--ids FILE with the token ids to look up");
  }
  FileRoles roles;
  roles.reads_model("--model", options.model);
  roles.reads("--ids", options.ids);
  roles.writes_into("--to-school", options.to_school, {"params.bin", "embedding.bin", "vocab.txt"});
  roles.writes("--to-embeddings", options.to_embeddings);
  classifier::Model model = classifier::load_model(options.model);
  if (!options.to_school.empty()) {
    classifier::write_school_model(options.to_school, model);
    std::fprintf(stderr, "tessera: wrote the school's files to %s\n", escaped(options.to_school).c_str());
  }
  if (!options.to_embeddings.empty()) {
    const int64_t count = classifier::write_embeddings(model, options.ids, options.to_embeddings);
    std::fprintf(stderr, "tessera: wrote the embeddings of %lld records to %s\n", static_cast<long long>(count),
                 escaped(options.to_embeddings).c_str());
  }
  return kAllOk;
}

int convert(const ConvertOptions& options, const CLI::App& app) {
  const bool has_target = !options.to_school.empty() || !options.to_embeddings.empty();
  if (!options.params.empty() && options.model.empty() && !has_target) {
    refuse_given(app, {"--ids"}, "--params, whose model has no records", "--model DIR with it");
    return from_school(options);
  }
  if (options.params.empty() && !options.model.empty() && has_target) {
    refuse_given(app, {"--embedding", "--vocab", "--preset", "--config", "--output", "--dtype"},
                 "--model, a checkpoint that is read as it is", "--params FILE with it");
    if (options.to_embeddings.empty())
      refuse_given(app, {"--ids"}, "no --to-embeddings", "--to-embeddings FILE with it");
    return from_checkpoint(options);
  }
  throw Error("convert", "another combination of options",
              "--params FILE --output DIR, or --model DIR with --to-school DIR or --to-embeddings FILE");
}

}  // namespace

Command add_convert(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  app.add_option("--params", options->params, "The school's params.bin to read")->type_name("FILE");
  app.add_option("--embedding", options->embedding, "Its embedding table, for token ids and text")->type_name("FILE");
  app.add_option("--vocab", options->vocabulary, "Its vocabulary, for text")->type_name("FILE");
  app.add_option("--preset", options->preset, "Sizes of its model: apws25 or small")->type_name("NAME");
  app.add_option("--config", options->config, "Or sizes from a config.json")->type_name("FILE");
  app.add_option("-o,--output", options->output, "Checkpoint directory to write")->type_name("DIR");
  app.add_option("--dtype", options->dtype, "Weights of the checkpoint: f32, f16 or bf16")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("-m,--model", options->model, "Checkpoint directory to read")->type_name("DIR");
  app.add_option("--to-school", options->to_school, "Directory for params.bin, embedding.bin, vocab.txt")
      ->type_name("DIR");
  app.add_option("--ids", options->ids, "Token ids, int32 [N, sequence length]")->type_name("FILE");
  app.add_option("--to-embeddings", options->to_embeddings, "File for the embeddings of these ids")->type_name("FILE");
  app.footer(kConvertFooter);
  return [options, &app] { return convert(*options, app); };
}

}  // namespace tessera::cli
