// tessera bench moe: the layer on this machine's fastest back end, beside dense products of the same size.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench_report.h"
#include "commands.h"
#include "exit_codes.h"
#include "given_options.h"
#include "integer_option.h"
#include "moe_bench.h"
#include "moe_options.h"
#include "moe_report.h"
#include "output.h"
#include "side_file.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"
#include "text_format.h"
#include "write_options.h"

namespace tessera::cli {

namespace {

const std::string kBenchMoeFooter =
    "Examples:\n"
    "  tessera bench moe --preset qwen3-30b --tokens 4096\n"
    "  tessera bench moe --preset mixtral-8x7b --tokens 1,64,4096 --routing balanced,random --json moe.json\n"
    "  tessera bench moe --preset deepseek-v3-tp8 --format fp8-block --tokens 1,64 --floor\n"
    "  tessera bench moe --hidden 512 --intermediate 256 --experts 8 --top-k 2 --tokens 64 --device cpu --seconds 0\n"
    "Layer and dense products (cuBLASLt on a GPU) take turns, A B A B, first in blocks of 50 ms (burst),\n"
    "then in blocks of --seconds (sustained); on a GPU each kernel is measured alone too. r = time of\n"
    "the dense products of as many FLOPs / time of the layer. Data are random normal numbers; on a GPU\n"
    "several copies take turns where one would fit the cache. The result of the timed runs is compared\n"
    "with fp64 on a few tokens; the exit code is 1 if it is wrong.\n"
    "--floor adds the bytes of the experts with rows over the read rate that this run measures, and when\n"
    "each kernel of a layer in a CUDA graph begins, has its prerequisites and ends, weights cold.\n";

struct BenchMoeOptions {
  MoeOptions moe;
  MoeBenchOptions bench;
  std::string dtype = "bf16";
  std::string device = "auto";
  std::string json;
  bool no_dense = false;
};

/// The back end for --device, and, where that is not the first choice, why.
std::unique_ptr<MoeBench> make_bench(const BenchMoeOptions& options, const CLI::App& app, const moe::Preset& shape,
                                     std::string& reason) {
  const moe::LaunchPolicy policy = launch_policy(options.moe);
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda")
    throw Error("--device", "'" + escaped(options.device) + "'", "auto, cpu or cuda");
  if (options.device != "cpu") {
    const std::string unavailable = cuda_moe_unavailable();
    if (unavailable.empty() && options.bench.dtype != DType::f32)
      return make_cuda_moe_bench(shape, policy, options.bench);
    reason = unavailable.empty() ? "the CUDA kernels have no f32" : unavailable;
    if (options.device == "cuda") throw Error("--device cuda", reason);
  }
  refuse_given(app, {"--floor", "--order", "--back-every", "--cluster", "--ctas"},
               "the CPU back end" + (reason.empty() ? "" : ": " + reason), "a GPU");
  return make_cpu_moe_bench(shape, options.bench);
}

int bench(BenchMoeOptions options, const CLI::App& app) {
  options.bench.dtype = parse_dtype(options.dtype);
  options.bench.dense = !options.no_dense;
  options.bench.seed = options.moe.seed;
  const moe::Preset shape = moe_shape(options.moe);
  const std::vector<MoeCase> cases = moe_cases(options.moe, shape);
  std::string reason;
  const std::unique_ptr<MoeBench> bench = make_bench(options, app, shape, reason);
  SideFile file("--json", options.json);  // before the measurement, so that it is not made for nothing
  const bool on_gpu = bench->device() == "cuda";

  Output output("-");
  output.write(labelled("layer", describe(shape) + ", " + options.dtype));
  output.write(labelled("device", reason.empty() ? bench->device() : bench->device() + ": " + reason));
  nlohmann::ordered_json json = {{"shape", shape_json(shape)},
                                 {"dtype", options.dtype},
                                 {"format", std::string(moe::weight_format_name(shape.config.weight_format))},
                                 {"device", bench->device()},
                                 {"version", TESSERA_VERSION}};
  if (!reason.empty()) json["why_not_cuda"] = reason;
  report_machine(bench->description(), output, json);
  const bool all_right = measure_cases(
      *bench, cases,
      [&](const MoeCase& asked, const MoeResult& result) { return moe_result_text(asked, result, on_gpu); },
      [&](const MoeCase& asked, const MoeResult& result) { return moe_result_json(asked, result); }, output, json);
  finish_report(output, file, json);
  return all_right ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_bench_moe(CLI::App& app) {
  auto options = std::make_shared<BenchMoeOptions>();
  add_moe_options(app, options->moe);
  app.add_option("--dtype", options->dtype, "bf16, f16, or f32 (CPU only)")->type_name("NAME")->capture_default_str();
  app.add_option("--device", options->device, "auto (a GPU if there is one), cpu or cuda")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--seconds", options->bench.seconds, "Of a sustained block, 0 = bursts only; 0 to 600")
      ->type_name("NUMBER")
      ->check(CLI::Range(0.0, 600.0).description(""))
      ->capture_default_str();
  add_integer(app, "--threads", options->bench.num_threads, "Of the CPU back end, 0 = every processor of this process",
              0, kMaxThreads);
  app.add_flag("--no-dense", options->no_dense, "Leave the dense products and the ratio out");
  app.add_flag("--floor", options->bench.floor, "Read rate of the memory, times of kernels as they run; GPU only");
  app.add_option("--json", options->json, "Write the figures as JSON to this file")->type_name("FILE");
  app.footer(kBenchMoeFooter + preset_list());
  return [options, &app] { return bench(*options, app); };
}

}  // namespace tessera::cli
