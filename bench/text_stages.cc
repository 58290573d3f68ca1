// The host stages of text classification, each on one thread: reading lines, words to token ids, formatting and writing
// results; then all of them together in the engine, with a classifier that costs nothing. Prints one JSON object of
// sentences a second.
//
//   bench_text_stages [--model DIR] [--input FILE] [--sentences N] [--threads N] [--seconds S]
//
// FILE holds a sentence a line and is repeated up to N sentences; without it sentences of 4 to 20 words of the model's
// vocabulary are made up, as unevenly frequent as words of a language.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "classifier/engine_worker.h"
#include "classifier/synth.h"
#include "io/file.h"
#include "io/records.h"
#include "io/results.h"
#include "tessera/classifier/engine.h"
#include "tessera/classifier/model.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace {

using namespace tessera;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int64_t kBatchSize = 4096;  // records read at a time, as a GPU's lanes like them

struct Options {
  std::string model = "models/movie-reviews";
  std::string input;
  int64_t sentences = 1'000'000;
  int threads = available_processors();
  double seconds = 3;  // per stage
};

/// Median, least and most of `sentences` over the seconds of a step; a step that is not counted comes first.
Json measure(const Options& options, const std::function<void()>& step) {
  step();
  std::vector<double> rates;
  const auto begin = Clock::now();
  while (rates.size() < 3 || Clock::now() - begin < std::chrono::duration<double>(options.seconds)) {
    const auto step_begin = Clock::now();
    step();
    const std::chrono::duration<double> seconds = Clock::now() - step_begin;
    rates.push_back(static_cast<double>(options.sentences) / seconds.count());
  }
  std::sort(rates.begin(), rates.end());
  return {{"sentences_per_second", rates[rates.size() / 2]}, {"spread", {rates.front(), rates.back()}}};
}

std::vector<std::string> file_sentences(const std::string& path) {
  std::vector<std::string> sentences;
  const auto reader = io::open_records({.path = path});
  for (io::RecordBatch batch; reader->next(kBatchSize, batch);) {
    for (int64_t i = 0; i < batch.num_records; ++i) sentences.emplace_back(batch.texts[static_cast<size_t>(i)]);
  }
  if (sentences.empty()) throw Error(path, "no lines", "a sentence a line");
  return sentences;
}

std::vector<std::string> made_up_sentences(const classifier::Model& model) {
  constexpr int64_t kCount = 20'000;
  constexpr uint64_t kMinWords = 4, kMaxWords = 20;
  const classifier::RandomStream random(1, 0);
  std::vector<std::string> sentences(kCount);
  uint64_t counter = 0;
  for (std::string& sentence : sentences) {
    const uint64_t num_words = kMinWords + random.bits(counter++) % (kMaxWords - kMinWords + 1);
    for (uint64_t i = 0; i < num_words; ++i) {
      const double share = random.uniform(counter++);
      const double size = static_cast<double>(model.vocabulary.size());
      const size_t rank = static_cast<size_t>(size * share * share * share);
      sentence += (i == 0 ? "" : " ") + model.vocabulary[rank];
    }
  }
  return sentences;
}

/// Writes options.sentences lines to `path`; returns the bytes.
uint64_t write_input(const Options& options, const classifier::Model& model, const std::filesystem::path& path) {
  const std::vector<std::string> sentences =
      options.input.empty() ? made_up_sentences(model) : file_sentences(options.input);
  io::OutputFile file(path);
  uint64_t num_bytes = 0;
  for (int64_t i = 0; i < options.sentences; ++i) {
    const std::string& sentence = sentences[static_cast<size_t>(i) % sentences.size()];
    file.write(sentence);
    file.write("\n");
    num_bytes += sentence.size() + 1;
  }
  file.commit();
  return num_bytes;
}

void read_lines(const Options& options, const std::filesystem::path& path) {
  const auto reader = io::open_records({.path = path.string()});
  int64_t num_records = 0;
  for (io::RecordBatch batch; reader->next(kBatchSize, batch); batch = {}) {  // batches move on, as in the engine
    num_records += batch.num_records;
  }
  TESSERA_CHECK(num_records == options.sentences, num_records, options.sentences);
}

/// The records of the whole input, for the stages after the reader.
std::vector<io::RecordBatch> read_batches(const std::filesystem::path& path) {
  const auto reader = io::open_records({.path = path.string()});
  std::vector<io::RecordBatch> batches(1);
  while (reader->next(kBatchSize, batches.back())) batches.emplace_back();
  batches.pop_back();
  return batches;
}

void encode(const std::vector<io::RecordBatch>& batches, const classifier::TextEncoder& encoder,
            std::span<int32_t> ids) {
  for (const io::RecordBatch& batch : batches) {
    for (int64_t i = 0; i < batch.num_records; ++i) {
      static_cast<void>(encoder.encode(batch.texts[static_cast<size_t>(i)], ids));
    }
  }
}

void write_results(const Options& options, const classifier::Model& model, const io::ResultFormat& format,
                   const std::filesystem::path& path) {
  io::OutputFile file(path);
  std::string pending;
  float logits[] = {-0.25f, 1.5f};
  float probability = 0.5f;
  for (int64_t i = 0; i < options.sentences; ++i) {
    io::Result result;
    result.index = i;
    result.label = model.config.class_names[static_cast<size_t>(i % 2)];
    result.probability = probability;
    result.logits = logits;
    io::append_result(format, result, pending);
    probability = probability < 0.999f ? probability + 0.000123f : 0.5f;
    if (i % kBatchSize == kBatchSize - 1) {
      file.write(pending);
      file.flush();
      pending.clear();
    }
  }
  file.write(pending);
  file.flush();
}

/// Label 1 for every sentence, at once.
class FreeClassifier : public classifier::Classifier {
 public:
  explicit FreeClassifier(const classifier::ClassifierConfig& config) : config_(config) {}
  void run(const classifier::Batch& batch, const classifier::Outputs& outputs) override {
    for (int64_t i = 0; i < batch.num_sentences * config_.num_classes; ++i) {
      outputs.logits[i] = static_cast<float>(i % config_.num_classes) * 0.5f;
    }
    if (outputs.status != nullptr) {
      std::fill_n(outputs.status, batch.num_sentences, classifier::RecordStatus::ok);
    }
  }
  std::string description() const override { return "nothing is computed"; }
  int64_t preferred_batch() const override { return kBatchSize; }

 private:
  const classifier::ClassifierConfig& config_;
};

class FileSink : public classifier::ResultSink {
 public:
  FileSink(const classifier::ClassifierConfig& config, const std::filesystem::path& path)
      : config_(config), file_(path) {}
  void write(const classifier::RecordResult& record) override {
    io::Result result;
    result.index = record.index;
    result.error = record.error;
    result.label = config_.class_names[static_cast<size_t>(record.label_idx)];
    result.probability = record.probability;
    result.logits = record.logits;
    io::append_result({.format = io::OutputFormat::jsonl}, result, pending_);
  }
  void end_batch(int64_t) override {
    file_.write(pending_);
    file_.flush();
    pending_.clear();
  }

 private:
  const classifier::ClassifierConfig& config_;
  io::OutputFile file_;
  std::string pending_;
};

/// From the file to JSON lines, the engine's threads and queues included.
void run_engine(const Options& options, const std::shared_ptr<const classifier::Model>& model,
                const std::filesystem::path& input, const std::filesystem::path& output) {
  std::vector<std::unique_ptr<classifier::Classifier>> classifiers;
  for (int lane = 0; lane < 2; ++lane) classifiers.push_back(std::make_unique<FreeClassifier>(model->config));
  classifier::Engine engine(model, std::move(classifiers), {.num_encode_threads = options.threads});
  const auto reader = io::open_records({.path = input.string()});
  FileSink sink(model->config, output);
  const classifier::RunStatistics statistics = engine.run(*reader, sink);
  TESSERA_CHECK(statistics.num_ok == options.sentences, statistics.num_ok, options.sentences);
}

Json bench(const Options& options) {
  const auto model = std::make_shared<const classifier::Model>(classifier::load_model(options.model));
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / str_cat("tessera_text_stages.", getpid());
  std::filesystem::create_directory(folder);
  const std::filesystem::path input = folder / "input.txt", output = folder / "output";
  const uint64_t num_bytes = write_input(options, *model, input);
  Json result = {{"sentences", options.sentences},
                 {"bytes_per_sentence", static_cast<double>(num_bytes) / static_cast<double>(options.sentences)},
                 {"threads", options.threads}};
  result["read"] = measure(options, [&] { read_lines(options, input); });
  {
    const std::vector<io::RecordBatch> batches = read_batches(input);
    const classifier::TextEncoder encoder(*model);
    std::vector<int32_t> ids(static_cast<size_t>(model->config.sequence_length));
    result["encode"] = measure(options, [&] { encode(batches, encoder, ids); });
  }
  const std::pair<const char*, io::OutputFormat> formats[] = {{"write_text", io::OutputFormat::text},
                                                              {"write_csv", io::OutputFormat::csv},
                                                              {"write_jsonl", io::OutputFormat::jsonl},
                                                              {"write_bin", io::OutputFormat::bin}};
  for (const auto& [name, format] : formats) {
    const io::ResultFormat result_format = {.format = format,
                                            .num_classes = static_cast<int>(model->config.num_classes)};
    result[name] = measure(options, [&] { write_results(options, *model, result_format, output); });
  }
  result["engine"] = measure(options, [&] { run_engine(options, model, input, output); });
  std::filesystem::remove_all(folder);
  return result;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw Error(name, "no value", "one");
    const std::string value = argv[i + 1];
    if (name == "--model") {
      options.model = value;
    } else if (name == "--input") {
      options.input = value;
    } else if (name == "--sentences") {
      options.sentences = std::stoll(value);
    } else if (name == "--threads") {
      options.threads = std::stoi(value);
    } else if (name == "--seconds") {
      options.seconds = std::stod(value);
    } else {
      throw Error(name, "an unknown option", "--model, --input, --sentences, --threads or --seconds");
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::printf("%s\n", bench(parse(argc, argv)).dump(2).c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_text_stages: %s\n", error.what());
    return 1;
  }
}
