// tessera bench classify: the classifier on this machine, beside what the machine allows.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "back_end.h"
#include "bench_report.h"
#include "classifier/synth.h"
#include "classify_bench.h"
#include "classify_report.h"
#include "commands.h"
#include "exit_codes.h"
#include "file_roles.h"
#include "given_options.h"
#include "integer_option.h"
#include "option_text.h"
#include "output.h"
#include "side_file.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"
#include "text_format.h"

namespace tessera::cli {

namespace {

using classifier::Precision;

constexpr int64_t kGpuSentences = 16384, kCpuSentences = 256;
constexpr int64_t kMaxSentences = int64_t{1} << 24;

constexpr const char* kBenchClassifyFooter =
    "Examples:\n"
    "  tessera bench classify --path embeddings --precision fp16 --device cuda:0 --json embeddings.json\n"
    "  tessera bench classify --path resident --data ids --ids inputs.bin --form direct,distinct\n"
    "  tessera bench classify --path ids --ids inputs.bin --device cuda:0,1,2,3 --seconds 5\n"
    "  tessera bench classify --preset small --device cpu --seconds 0.2\n"
    "Paths: embeddings are fp32 in pinned host memory, resident ones 16-bit and in device memory already (compute\n"
    "only), ids lie in pinned host memory. First all sentences at once, nothing else running; then blocks of "
    "--seconds\n"
    "with two lanes a GPU take turns with blocks of what limits them: copies from the same memory to all chosen GPUs,\n"
    "cuBLASLt products, copies within device memory. TFLOP/s count the direct form's operations whatever the form.\n"
    "The results of the timed runs are compared with the fp64 oracle; the exit code is 1 if they are wrong.";

struct BenchClassifyOptions {
  std::string model, preset, device = "auto", paths = "embeddings,resident,ids", precisions = "auto", forms = "auto";
  std::string data = "random", json;
  ClassifyDataOptions inputs;
  ClassifyBenchOptions bench;
};

template <class Parse>
auto parse_list(const std::string& list, const Parse& parse) {
  std::vector<decltype(parse(list))> items;
  for (const std::string_view piece : split_list(list)) items.push_back(parse(std::string(piece)));
  return items;
}

classifier::Form parse_bench_form(const std::string& name) {
  return with_options_named({"form"}, [&] { return classifier::parse_form(name); });
}

Path parse_path(const std::string& name) {
  for (const Path path : {Path::embeddings, Path::resident, Path::ids}) {
    if (path_name(path) == name) return path;
  }
  throw Error("--path", "'" + escaped(name) + "'", "embeddings, resident or ids");
}

Precision parse_bench_precision(const std::string& name, bool on_gpu) {
  if (name == "auto") return on_gpu ? Precision::fp16 : Precision::fp32;
  for (const Precision precision : {Precision::fp16, Precision::bf16, Precision::fp32}) {
    if (precision_name(precision) == name) return precision;
  }
  throw Error("--precision", "'" + escaped(name) + "'", "fp16, bf16, fp32 or auto");
}

/// The GPUs for --device, or none: the CPU, and, where that is not what was asked for, why.
std::vector<int> choose_devices(const std::string& asked, std::string& reason) {
  const BackEnd back_end = select_back_end({.device = asked}, find_devices());
  reason = back_end.why_cpu;
  std::vector<int> devices;
  for (const cuda::DeviceFacts& gpu : back_end.gpus) devices.push_back(gpu.index);
  return devices;
}

struct LeftOut {
  ClassifyCase asked;
  std::string reason;
};

/// Every path in every precision and form that the back end can measure. Error if there is none.
std::vector<ClassifyCase> choose_cases(const BenchClassifyOptions& options, const ClassifyBench& bench, bool on_gpu,
                                       std::vector<LeftOut>& left_out) {
  std::vector<ClassifyCase> cases;
  const auto precision = [&](const std::string& name) { return parse_bench_precision(name, on_gpu); };
  for (const Path path : parse_list(options.paths, parse_path)) {
    for (const Precision wanted : parse_list(options.precisions, precision)) {
      for (const classifier::Form form : parse_list(options.forms, parse_bench_form)) {
        const ClassifyCase asked = {path, wanted, form};
        const std::string reason = bench.impossible(asked);
        if (reason.empty()) {
          cases.push_back(asked);
        } else {
          left_out.push_back({asked, reason});
        }
      }
    }
  }
  if (cases.empty())
    throw Error("--path, --precision, --form", "only what cannot be measured here: " + left_out.front().reason);
  return cases;
}

std::shared_ptr<const classifier::Model> make_model(const BenchClassifyOptions& options) {
  if (!options.model.empty() && !options.preset.empty())
    throw Error("--model, --preset", "both", "one of them, or neither for --preset apws25");
  if (!options.model.empty()) return std::make_shared<const classifier::Model>(classifier::load_model(options.model));
  const auto config = classifier::preset_config(options.preset.empty() ? "apws25" : options.preset);
  return std::make_shared<const classifier::Model>(classifier::synthesize_model(
      config, {}, {.seed = options.inputs.seed, .num_threads = options.bench.num_threads}));
}

std::string model_name(const BenchClassifyOptions& options) {
  if (!options.model.empty()) return escaped(options.model);
  return str_cat(options.preset.empty() ? "apws25" : options.preset, ", weights from seed ", options.inputs.seed);
}

/// Options that need neither model nor device to be found wrong.
void check_options(const BenchClassifyOptions& options) {
  parse_list(options.paths, parse_path);
  parse_list(options.precisions, [](const std::string& name) { return parse_bench_precision(name, false); });
  parse_list(options.forms, parse_bench_form);
  if (options.data != "random" && options.data != "ids")
    throw Error("--data", "'" + escaped(options.data) + "'", "random or ids");
}

nlohmann::ordered_json case_json(const ClassifyCase& asked) {
  return {
      {"path", path_name(asked.path)}, {"precision", precision_name(asked.precision)}, {"form", form_name(asked.form)}};
}

int run(BenchClassifyOptions options, const CLI::App& app) {
  check_options(options);
  std::string reason;
  options.bench.devices = choose_devices(options.device, reason);
  const bool on_gpu = !options.bench.devices.empty();
  if (!on_gpu) refuse_given(app, {"--batch"}, "the CPU" + (reason.empty() ? "" : ": " + reason), "a GPU");
  options.inputs.embeddings_of_ids = options.data == "ids";
  options.inputs.num_threads = options.bench.num_threads;
  if (options.inputs.num_sentences == 0) options.inputs.num_sentences = on_gpu ? kGpuSentences : kCpuSentences;
  FileRoles roles;
  roles.reads_model("--model", options.model);
  roles.reads("--ids", options.inputs.ids_file);
  roles.writes("--json", options.json);
  const auto model = make_model(options);
  const auto data = std::make_shared<ClassifyData>(model, options.inputs);
  const auto bench =
      on_gpu ? make_cuda_classify_bench(data, options.bench) : make_cpu_classify_bench(data, options.bench);
  std::vector<LeftOut> left_out;
  const std::vector<ClassifyCase> cases = choose_cases(options, *bench, on_gpu, left_out);
  SideFile file("--json", options.json);  // before the measurement, so that it is not made for nothing

  const ClassifyMachine machine = {options.bench.devices, model->config.flops_per_sentence()};
  const std::string device = on_gpu ? "cuda" : "cpu";
  Output output("-");
  output.write(labelled("model", str_cat(model_name(options), ": ", machine.flops_per_sentence, " FLOP a sentence")));
  output.write(labelled("sentences", str_cat(data->num_sentences(), "; ids: ", data->ids_source(),
                                             "; embeddings: ", data->embeddings_source())));
  output.write(labelled("device", reason.empty() ? device : device + ": " + reason));
  nlohmann::ordered_json json = {{"model", model_name(options)},
                                 {"flops_per_sentence", machine.flops_per_sentence},
                                 {"sentences", data->num_sentences()},
                                 {"ids", data->ids_source()},
                                 {"embeddings", data->embeddings_source()},
                                 {"device", device},
                                 {"devices", options.bench.devices},
                                 {"version", TESSERA_VERSION}};
  if (!reason.empty()) json["why_not_cuda"] = reason;
  report_machine(bench->description(), output, json);
  const bool all_right = measure_cases(
      *bench, cases,
      [&](const ClassifyCase& asked, const ClassifyResult& result) {
        return classify_result_text(asked, result, machine);
      },
      [&](const ClassifyCase& asked, const ClassifyResult& result) {
        return classify_result_json(asked, result, machine);
      },
      output, json);
  json["left_out"] = nlohmann::ordered_json::array();
  for (const LeftOut& entry : left_out) {
    json["left_out"].push_back(case_json(entry.asked));
    json["left_out"].back()["reason"] = entry.reason;
  }
  finish_report(output, file, json);
  return all_right ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_bench_classify(CLI::App& app) {
  auto options = std::make_shared<BenchClassifyOptions>();
  app.add_option("--preset", options->preset, "apws25 (the full-size model, unless --model is given) or small")
      ->type_name("NAME");
  app.add_option("-m,--model", options->model, "Or a checkpoint directory")->type_name("DIR");
  app.add_option("--device", options->device, "auto (every GPU that can, else the CPU), cpu, cuda or cuda:0,1,...")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--path", options->paths, "embeddings, resident, ids")
      ->type_name("NAME[,NAME...]")
      ->capture_default_str();
  app.add_option("--precision", options->precisions, "fp16, bf16, fp32; auto = fp16 on a GPU, fp32 on a CPU")
      ->type_name("NAME[,NAME...]")
      ->capture_default_str();
  app.add_option("--form", options->forms, "auto, direct, dft, distinct, vocab")
      ->type_name("NAME[,NAME...]")
      ->capture_default_str();
  add_integer(app, "--sentences", options->inputs.num_sentences, "0 = 16,384, on the CPU 256", int64_t{0},
              kMaxSentences);
  app.add_option("--data", options->data, "Embeddings: random, N(0, 1), or ids: those of the token ids")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--ids", options->inputs.ids_file, "Token ids, int32 rows; else random sentences")->type_name("FILE");
  app.add_option("--seconds", options->bench.seconds, "Of a sustained block; 0 to 600")
      ->type_name("NUMBER")
      ->check(CLI::Range(0.0, 600.0).description(""))
      ->capture_default_str();
  add_integer(app, "--batch", options->bench.micro_batch, "Sentences computed at once on a GPU, 0 = chosen", int64_t{0},
              int64_t{1} << 20);
  add_integer(app, "--check", options->bench.num_checked, "Records to compare with the fp64 oracle", int64_t{1},
              int64_t{4096});
  add_integer(app, "--threads", options->bench.num_threads, "Of the CPU, 0 = every processor of this process", 0,
              kMaxThreads);
  add_integer(app, "--seed", options->inputs.seed, "Of weights and inputs", uint64_t{0});
  app.add_option("--json", options->json, "Write the figures as JSON to this file")->type_name("FILE");
  app.footer(kBenchClassifyFooter);
  return [options, &app] { return run(*options, app); };
}

}  // namespace tessera::cli
