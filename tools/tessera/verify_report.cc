#include "verify_report.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "classifier/school_format.h"
#include "classifier/synth.h"
#include "comparison.h"
#include "exit_codes.h"
#include "interrupt.h"
#include "output.h"
#include "record_sample.h"
#include "side_file.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "text_format.h"

namespace tessera::cli {

namespace {

using classifier::ClassifierConfig;
using classifier::InputKind;
using classifier::Model;
using Json = nlohmann::ordered_json;

// Made-up input: enough for a rate, little enough for the memory and the patience of a small machine.
constexpr int64_t kMadeUpIds = 16'384;
constexpr int64_t kMadeUpEmbeddings = 4096;
constexpr int64_t kMadeUpBytes = int64_t{128} << 20;

/// One input kind: what the oracle judges, and how to read the whole of it again.
struct ReportInput {
  InputKind kind = InputKind::ids;
  std::string name;      ///< "token ids"
  RecordSample made_up;  ///< the whole input where no file was named
  std::function<std::unique_ptr<io::RecordReader>()> open;
  RecordSample sample;
  std::vector<float> answers;  ///< of the oracle for the sample: [num_records, num_classes]
};

/// One way to run the model.
struct Variant {
  ModelOptions options;
  std::string device;
  std::string precision;
  Tolerance tolerance;
};

struct Row {
  const ReportInput* input = nullptr;
  Variant variant;
  std::string refusal;  ///< why it cannot be had; nothing below is set then
  std::string description;
  double max_error = 0;  ///< largest |o - a| / max(1, |a|), infinite where a logit is not finite
  bool holds = false;
  std::optional<double> added_error;  ///< by the expert threshold
  int64_t num_sentences = 0;
  double rate = 0;
  std::vector<float> logits;  ///< of the sample
};

RecordSample make_up(const Model& model, InputKind kind) {
  const ClassifierConfig& config = model.config;
  RecordSample whole;
  whole.ids_per_record = config.sequence_length;
  whole.floats_per_record = config.embedding_size * config.sequence_length;
  const int64_t row_bytes = whole.floats_per_record * static_cast<int64_t>(sizeof(float));
  const int64_t count =
      kind == InputKind::ids ? kMadeUpIds : std::clamp<int64_t>(kMadeUpBytes / row_bytes, 16, kMadeUpEmbeddings);
  Buffer<int32_t> ids(static_cast<size_t>(count * whole.ids_per_record));
  classifier::synthesize_ids(config, 1, 0, ids.span());
  whole.records.num_records = count;
  whole.records.errors.resize(static_cast<size_t>(count));
  if (kind == InputKind::ids) {
    whole.records.ids = std::move(ids);
    return whole;
  }
  whole.records.embeddings = Buffer<float>(static_cast<size_t>(count * whole.floats_per_record));
  float* const embeddings = whole.records.embeddings.data();
  if (!model.weights.embedding.empty()) {
    for (int64_t i = 0; i < count; ++i) {
      classifier::gather_embeddings(model, ids.data() + i * whole.ids_per_record,
                                    embeddings + i * whole.floats_per_record);
    }
    return whole;
  }
  const classifier::RandomStream random(1, 1);
  for (int64_t i = 0; i < count * whole.floats_per_record; ++i) {
    double first = 0, second = 0;
    random.normal_pair(static_cast<uint64_t>(i), first, second);
    embeddings[i] = static_cast<float>(first);
  }
  return whole;
}

std::vector<std::unique_ptr<ReportInput>> open_inputs(const ReportOptions& options, const Model& model) {
  std::vector<std::unique_ptr<ReportInput>> inputs;
  const auto add = [&](InputKind kind, const std::string& name) -> ReportInput& {
    inputs.push_back(std::make_unique<ReportInput>());
    inputs.back()->kind = kind;
    inputs.back()->name = name;
    return *inputs.back();
  };
  const auto name_of = [](InputKind kind) { return kind == InputKind::ids ? "token ids" : "embeddings"; };
  if (options.input.num_named() == 1) {
    const InputKind kind = input_kind(options.input);
    ReportInput& input = add(kind, options.input.text.empty() ? name_of(kind) : "text");
    input.open = [&] { return open_input(options.input, model.config); };
  } else {
    for (const InputKind kind : {InputKind::ids, InputKind::embeddings}) {
      if (kind == InputKind::ids && model.weights.embedding.empty()) continue;
      ReportInput& input = add(kind, name_of(kind));
      input.made_up = make_up(model, kind);
      input.open = [&input] { return input.made_up.reader(); };
    }
  }
  for (const auto& input : inputs) input->sample = take_sample(*input->open(), options.sample_size, model.config);
  return inputs;
}

class Engines {
 public:
  Engines(const std::shared_ptr<const Model>& model, const ModelOptions& options, InputKind kind)
      : engine_(model, make_classifiers(model, options, kind, true),
                {.batch_size = options.batch_size, .num_encode_threads = options.num_threads}) {}

  /// The statistics of a run that went to its end; `logits` as of LogitsSink.
  classifier::RunStatistics run(io::RecordReader& reader, bool show_progress, std::vector<float>& logits) {
    const InterruptGuard interrupt;
    Progress progress(show_progress, reader);
    LogitsSink sink(progress);
    const classifier::RunStatistics statistics = engine_.run(reader, sink, interrupt.token());
    if (statistics.interrupted) throw Interrupted(interrupt.signal());
    logits = sink.take();
    return statistics;
  }
  std::string description() const { return engine_.description(); }

 private:
  classifier::Engine engine_;
};

std::string device_column(const BackEnd& back_end) {
  if (!back_end.on_gpu()) return "CPU";
  std::string text = "GPU";
  for (size_t i = 0; i < back_end.gpus.size(); ++i) text += str_cat(i == 0 ? " " : ",", back_end.gpus[i].index);
  return text;
}

std::string precision_column(const BackEnd& back_end) {
  const classifier::LayerPrecision& layers = back_end.gpu_precision;
  const bool differ = layers.experts != layers.convolutions || layers.head != layers.convolutions;
  if (!back_end.on_gpu() || !differ) return precision_name(back_end.coarsest_precision());
  return precision_name(layers.convolutions) + "/" + precision_name(layers.experts) + "/" + precision_name(layers.head);
}

std::vector<std::string> forms_of(const ReportOptions& options, bool on_gpu, InputKind kind) {
  if (!on_gpu || !options.all_forms) return {options.model.form};
  std::vector<std::string> forms = {"direct", "dft", "distinct"};
  if (kind == InputKind::ids) forms.push_back("vocab");
  return forms;
}

/// Every precision and form to report, the exact one before the one that skips experts.
std::vector<Variant> variants_of(const ReportOptions& options, InputKind kind) {
  const Devices devices = find_devices();
  const bool on_gpu = select_back_end(options.model, devices).on_gpu();
  std::vector<std::string> precisions = {options.model.precision};
  if (options.model.precision == "default" && options.model.layer_precision.empty()) {
    precisions = {"fp32"};
    if (on_gpu) precisions = {"fp16", "bf16", "fp32"};
    if (!on_gpu && devices.cpu_multiplies_bf16) precisions.push_back("bf16");
  }
  std::vector<double> thresholds = {0};
  if (options.model.expert_threshold > 0) thresholds.push_back(options.model.expert_threshold);
  std::vector<Variant> variants;
  for (const std::string& precision : precisions) {
    for (const std::string& form : forms_of(options, on_gpu, kind)) {
      for (const double threshold : thresholds) {
        Variant variant;
        variant.options = options.model;
        variant.options.precision = precision;
        variant.options.form = form;
        variant.options.expert_threshold = threshold;
        const BackEnd back_end = select_back_end(variant.options, devices);
        variant.device = device_column(back_end);
        variant.precision = precision_column(back_end);
        variant.tolerance = tolerance_of(precision_name(back_end.coarsest_precision()));
        variants.push_back(std::move(variant));
      }
    }
  }
  return variants;
}

double max_error(const std::vector<float>& outputs, const std::vector<float>& answers, const Model& model,
                 const Tolerance& tolerance) {
  const Comparison comparison = compare_logits(outputs, answers, model.config.num_classes, tolerance);
  return comparison.worst.empty() ? 0 : comparison.worst.front().deviation;
}

/// `exact`: the row of the same variant without a threshold, or null.
Row measure(const std::shared_ptr<const Model>& model, const ReportInput& input, const Variant& variant,
            const Row* exact, bool show_progress) {
  Row row;
  row.input = &input;
  row.variant = variant;
  std::optional<Engines> engines;
  try {
    engines.emplace(model, variant.options, input.kind);
  } catch (const Error& error) {
    row.refusal = error.what();
    return row;
  }
  engines->run(*input.sample.reader(), false, row.logits);
  row.max_error = max_error(row.logits, input.answers, *model, variant.tolerance);
  row.holds = row.max_error <= variant.tolerance.ours;
  if (exact != nullptr) row.added_error = max_error(row.logits, exact->logits, *model, variant.tolerance);
  std::vector<float> all;
  const classifier::RunStatistics statistics = engines->run(*input.open(), show_progress, all);
  row.num_sentences = statistics.num_read;
  row.rate = statistics.rate();
  row.description = engines->description();
  return row;
}

std::string header_line() {
  return format_text("%-11s %-8s %-14s %-9s %10s %10s %10s %7s %6s %12s\n", "input", "device", "precision", "form",
                     "skip below", "max error", "it adds", "bound", "holds", "sentences/s");
}

std::string row_line(const Row& row) {
  const Variant& variant = row.variant;
  std::string line =
      format_text("%-11s %-8s %-14s %-9s %10g ", row.input->name.c_str(), variant.device.c_str(),
                  variant.precision.c_str(), variant.options.form.c_str(), variant.options.expert_threshold);
  if (!row.refusal.empty()) return line + row.refusal + "\n";
  const std::string added = row.added_error ? format_text("%.2g", *row.added_error) : "-";
  return line + format_text("%10.2g %10s %7g %6s %12.0f\n", row.max_error, added.c_str(), variant.tolerance.ours,
                            row.holds ? "yes" : "NO", row.rate);
}

Json row_json(const Row& row) {
  const Variant& variant = row.variant;
  Json json = {{"input", row.input->name},
               {"device", variant.device},
               {"precision", variant.precision},
               {"form", variant.options.form},
               {"expert_threshold", variant.options.expert_threshold}};
  if (!row.refusal.empty()) {
    json["refused"] = row.refusal;
    return json;
  }
  json["description"] = row.description;
  json["sample"] = row.input->sample.records.num_records;
  json["max_error"] = row.max_error;
  json["bound"] = variant.tolerance.ours;
  json["holds"] = row.holds;
  if (row.added_error) json["added_error"] = *row.added_error;
  json["sentences"] = row.num_sentences;
  json["sentences_per_second"] = row.rate;
  return json;
}

std::string json_text(const std::string& model, const std::vector<Row>& rows) {
  Json json = {{"model", model}, {"rows", Json::array()}};
  for (const Row& row : rows) json["rows"].push_back(row_json(row));
  return json.dump(2) + "\n";
}

/// What "auto" was, once each.
std::string descriptions(const std::vector<Row>& rows) {
  std::vector<std::string> seen;
  std::string text;
  for (const Row& row : rows) {
    if (row.description.empty() || std::find(seen.begin(), seen.end(), row.description) != seen.end()) continue;
    seen.push_back(row.description);
    text += row.description + "\n";
  }
  return text;
}

}  // namespace

int print_verify_report(const ReportOptions& options) {
  SideFile json("--json", options.json);
  const auto model = load_model(options.model);
  const auto inputs = open_inputs(options, *model);
  for (const auto& input : inputs) {
    if (input->sample.records.num_records == 0) throw Error("verify", "no records", "at least one to compare");
  }
  Output output("-");
  output.write(header_line());
  std::vector<Row> rows;
  for (const auto& input : inputs) {
    Engines(model, oracle_options(options.model), input->kind).run(*input->sample.reader(), false, input->answers);
    for (const Variant& variant : variants_of(options, input->kind)) {
      const bool skips = variant.options.expert_threshold > 0;
      const Row* const exact = skips && rows.back().refusal.empty() ? &rows.back() : nullptr;
      rows.push_back(measure(model, *input, variant, exact, !options.quiet));
      output.write(row_line(rows.back()));
      output.flush();
    }
  }
  const auto is_measured = [](const Row& row) { return row.refusal.empty(); };
  if (std::none_of(rows.begin(), rows.end(), is_measured)) throw Error("--report", rows.back().refusal);
  const bool holds = std::all_of(rows.begin(), rows.end(), [&](const Row& row) {
    return !is_measured(row) || row.variant.options.expert_threshold > 0 || row.holds;
  });
  output.write("\n" + descriptions(rows) + (holds ? "verified\n" : "NOT verified\n"));
  output.commit();
  json.write(json_text(options.model.model, rows));
  return holds ? kAllOk : kSomeFailed;
}

}  // namespace tessera::cli
