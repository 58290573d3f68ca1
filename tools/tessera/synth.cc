// tessera synth: a model of any size from a seed, and inputs for it.
#include "classifier/synth.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "classifier/school_format.h"
#include "commands.h"
#include "exit_codes.h"
#include "file_roles.h"
#include "integer_option.h"
#include "io/file.h"
#include "io/vocabulary.h"
#include "tessera/classifier/model.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"
#include "write_options.h"

namespace tessera::cli {

namespace {

constexpr const char* kSynthFooter =
    "Examples:\n"
    "  tessera synth --preset small --seed 1 --output model --inputs 100\n"
    "  tessera synth --preset apws25 --seed 1 --dtype f16 --output full-size --inputs 4096\n"
    "  tessera synth --preset apws25 --seed 1 --output full-size --vocab vocab.txt\n"
    "Writes config.json, vocab.txt and model.safetensors; with --inputs also inputs.bin (int32 token ids [N, sequence\n"
    "length]) and inputs.txt (the same sentences in words), with --embeddings input_embeddings.bin (fp32 [N, "
    "channels,\n"
    "positions]). The same options and seed write the same bytes. apws25 takes 0.9 GB of disk and 2 GB of memory in "
    "f32.";

constexpr int64_t kMaxInputs = int64_t{1} << 32;
constexpr int64_t kSentencesPerWrite = 1024;

struct SynthCommandOptions {
  std::string preset;
  std::string config;
  std::string output;
  std::string vocabulary;
  std::string dtype = "f32";
  uint64_t seed = 1;
  int64_t num_inputs = 0;
  int num_threads = 0;
  bool embeddings = false;
};

std::vector<std::string> load_words(const std::string& path, const classifier::ClassifierConfig& config) {
  const auto vocabulary = io::Vocabulary::load(path, config.unknown_id, config.pad_id);
  std::vector<std::string> words;
  for (int32_t id = 0; id < vocabulary.size(); ++id) words.push_back(vocabulary.word(id));
  return words;
}

/// inputs.bin and inputs.txt.
void write_inputs(const SynthCommandOptions& options, const classifier::Model& model) {
  const classifier::ClassifierConfig& config = model.config;
  const size_t length = static_cast<size_t>(config.sequence_length);
  const std::filesystem::path directory = options.output;
  io::OutputFile ids_file(directory / "inputs.bin");
  io::OutputFile text_file(directory / "inputs.txt");
  for (int64_t first = 0; first < options.num_inputs; first += kSentencesPerWrite) {
    const size_t count = static_cast<size_t>(std::min(kSentencesPerWrite, options.num_inputs - first));
    std::vector<int32_t> ids(count * length);
    classifier::synthesize_ids(config, options.seed, first, ids);
    ids_file.write({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)});
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] != config.pad_id) {
        text_file.write((i % length == 0 ? "" : " ") + model.vocabulary[static_cast<size_t>(ids[i])]);
      }
      if (i % length == length - 1) text_file.write("\n");
    }
  }
  ids_file.commit();
  text_file.commit();
}

int synth(const SynthCommandOptions& options) {
  const DType dtype = parse_dtype(options.dtype);
  if (options.embeddings && options.num_inputs == 0) throw Error("--embeddings", "no --inputs", "--inputs N with it");
  FileRoles roles;
  roles.reads("--config", options.config);
  roles.reads("--vocab", options.vocabulary);
  roles.writes_into(
      "--output", options.output,
      {"config.json", "vocab.txt", "model.safetensors", "inputs.bin", "inputs.txt", "input_embeddings.bin"});
  classifier::ClassifierConfig config = read_config(options.preset, options.config);
  std::vector<std::string> words;
  if (!options.vocabulary.empty()) {
    words = load_words(options.vocabulary, config);
    config.vocab_size = static_cast<int64_t>(words.size());
  }
  classifier::Model model = classifier::synthesize_model(config, std::move(words),
                                                         {.seed = options.seed, .num_threads = options.num_threads});
  warn_of_replaced_checkpoint(options.output);
  classifier::save_model(options.output, model, dtype);
  if (options.num_inputs > 0) write_inputs(options, model);
  if (options.embeddings) {
    const std::filesystem::path directory = options.output;
    classifier::write_embeddings(model, directory / "inputs.bin", directory / "input_embeddings.bin");
  }
  std::fprintf(stderr, "tessera: wrote %s: seed %llu, %s, %lld inputs\n", escaped(options.output).c_str(),
               static_cast<unsigned long long>(options.seed), options.dtype.c_str(),
               static_cast<long long>(options.num_inputs));
  return kAllOk;
}

}  // namespace

Command add_synth(CLI::App& app) {
  auto options = std::make_shared<SynthCommandOptions>();
  app.add_option("--preset", options->preset, "apws25 (the full-size model) or small")->type_name("NAME");
  app.add_option("--config", options->config, "Or sizes from a config.json")->type_name("FILE");
  app.add_option("-o,--output", options->output, "Directory to write")->type_name("DIR")->required();
  add_integer(app, "--seed", options->seed, "Any number from 0 to 2^64 - 1", uint64_t{0});
  app.add_option("--vocab", options->vocabulary, "Words to use instead of made-up ones")->type_name("FILE");
  app.add_option("--dtype", options->dtype, "Weights: f32, f16 or bf16")->type_name("NAME")->capture_default_str();
  add_integer(app, "--inputs", options->num_inputs, "Random sentences to write as token ids and as text", int64_t{0},
              kMaxInputs);
  app.add_flag("--embeddings", options->embeddings, "Write the inputs as embeddings too");
  add_integer(app, "--threads", options->num_threads, "0 = every processor of this process", 0, kMaxThreads);
  app.footer(kSynthFooter);
  return [options] { return synth(*options); };
}

}  // namespace tessera::cli
