// tessera explain moe: what a run of the layer on a GPU will do, without one.
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "file_format.h"
#include "file_roles.h"
#include "integer_option.h"
#include "moe/kernels.h"
#include "moe/model/explain.h"
#include "moe_options.h"
#include "output.h"
#include "side_file.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "text_format.h"
#include "tile_map_page.h"
#include "tile_map_svg.h"
#include "tile_trace.h"

namespace tessera::cli {

namespace {

const std::string kExplainMoeFooter =
    "Examples:\n"
    "  tessera explain moe --preset qwen3-30b --tokens 4096\n"
    "  tessera explain moe --preset qwen2-57b --tokens 4096 --routing worst --back-every 0 --svg tiles.svg\n"
    "  tessera explain moe --preset qwen3-30b --tokens 512 --routing balanced,random,zipf --html tiles.html\n"
    "  tessera explain moe --preset olmoe --tokens 512 --trace trace.json\n"
    "  tessera explain moe --preset olmoe --tokens 64,4096 --routing random,zipf --json plans.json\n"
    "Needs no GPU: the tiles are those that the kernels compute, their times come from a model. A tile\n"
    "takes its products at its multiprocessor's part of the dense rate, or its bytes at what the memory\n"
    "gives it while all share it. The floor of a kernel is the longer of its bytes at the HBM rate and\n"
    "its FLOPs at the dense rate, each operand read and each result written once. The default rates\n"
    "were measured on an H100 SXM (700 W).\n";

struct ExplainMoeOptions {
  MoeOptions moe;
  double hbm_tb_s = moe::DeviceRates{}.hbm_bytes_per_second / 1e12;
  double dense_tflops = moe::DeviceRates{}.dense_flops_per_second / 1e12;
  double plan_us = moe::DeviceRates{}.plan_seconds * 1e6;
  int32_t num_multiprocessors = moe::DeviceRates{}.num_multiprocessors;
  std::string svg;
  std::string html;
  std::string trace;
  std::string json;
};

struct NamedKernel {
  const char* name;
  const moe::KernelWork& work;
};

std::vector<NamedKernel> kernels_of(const moe::Explanation& plan) {
  return {{"plan", plan.plan}, {"GEMM 1", plan.gate_up}, {"GEMM 2", plan.down}, {"combine", plan.combine}};
}

moe::DeviceRates device_rates(const ExplainMoeOptions& options) {
  moe::DeviceRates rates;
  // L2 feeds the multiprocessors of a device with faster or slower memory in proportion.
  rates.cta_bytes_per_second *= options.hbm_tb_s * 1e12 / rates.hbm_bytes_per_second;
  rates.num_multiprocessors = options.num_multiprocessors;
  rates.hbm_bytes_per_second = options.hbm_tb_s * 1e12;
  rates.dense_flops_per_second = options.dense_tflops * 1e12;
  rates.plan_seconds = options.plan_us * 1e-6;
  return rates;
}

/// What limits a kernel's floor; the plan's prediction is a measurement.
const char* binding(const NamedKernel& kernel) {
  if (kernel.work.predicted_seconds > 0.0 && std::string(kernel.name) == "plan") return "latency";
  return kernel.work.memory_binds() ? "memory" : "tensor cores";
}

std::string gemm_text(std::string_view name, const moe::GemmExplanation& gemm, int32_t cluster_size) {
  const std::string unit = cluster_size == 1 ? "CTAs" : "clusters";
  std::string text = labelled(
      name, format_text("%zu tiles = %.2f waves of %d %s; the last wave leaves %.1f %% of them idle; in all %.1f %% "
                        "of their time is idle",
                        gemm.tiles.size(), gemm.waves(), gemm.num_lanes, unit.c_str(), gemm.last_wave_idle() * 100,
                        gemm.idle() * 100));
  return text + labelled("", format_text("%.1f %% of what is multiplied is padding", gemm.padding() * 100));
}

std::string kernel_table(const moe::Explanation& plan) {
  std::string text = "kernel       GFLOP        MB  tensor us  memory us   floor us  predicted us    share  bound by\n";
  const double total = plan.predicted_seconds();
  for (const NamedKernel& kernel : kernels_of(plan)) {
    const moe::KernelWork& work = kernel.work;
    text +=
        format_text("%-8s %9.1f %9.1f %10.1f %10.1f %10.1f %13.1f %6.1f %%  %s\n", kernel.name, work.flops / 1e9,
                    work.bytes / 1e6, work.flops_seconds * 1e6, work.bytes_seconds * 1e6, work.floor_seconds() * 1e6,
                    work.predicted_seconds * 1e6, 100.0 * work.predicted_seconds / total, binding(kernel));
  }
  const double flops = plan.gate_up.flops + plan.down.flops;
  text += format_text("%-8s %9.1f %42.1f %13.1f           %.0f TFLOP/s\n", "layer", flops / 1e9,
                      plan.floor_seconds() * 1e6, total * 1e6, flops / total / 1e12);
  return text;
}

std::string plan_text(const moe::Preset& shape, const MoeCase& moe_case, const moe::LaunchPolicy& policy,
                      const moe::DeviceRates& rates, const moe::Explanation& plan) {
  const moe::ResolvedLaunch& launch = plan.launch;
  std::string text = labelled(
      "layer", str_cat(describe(shape), "; ", moe_case.num_tokens, " tokens, ", moe::routing_name(moe_case.routing)));
  text += labelled("rows", format_text("%d on %d of %d experts; %d to %d an expert, median %d; %d experts empty",
                                       plan.num_rows, plan.num_tasks, shape.config.num_experts, plan.fewest_rows,
                                       plan.most_rows, plan.median_rows, shape.config.num_experts - plan.num_tasks));
  const char* label = "kernels";
  for (const std::string& line : moe::describe_choice(
           moe::select_kernel(shape.config, moe_case.num_tokens, rates.launch_device(), policy.kernel))) {
    text += labelled(label, line);
    label = "";
  }
  for (const auto& [name, words] : moe::describe_launch(shape.config, launch)) {
    const moe::GemmExplanation* gemm = name == "GEMM 1" ? &plan.gate_up : name == "GEMM 2" ? &plan.down : nullptr;
    if (gemm != nullptr) text += gemm_text(name, *gemm, launch.cluster_size);
    text += labelled(gemm != nullptr ? "" : name, words);
  }
  text +=
      labelled("device", format_text("%d multiprocessors, HBM %.2f TB/s, dense %.0f TFLOP/s", rates.num_multiprocessors,
                                     rates.hbm_bytes_per_second / 1e12, plan.dense_flops_per_second / 1e12));
  return text + "\n" + kernel_table(plan);
}

nlohmann::ordered_json work_json(const moe::KernelWork& work) {
  return {{"flops", work.flops},
          {"bytes", work.bytes},
          {"floor_us", work.floor_seconds() * 1e6},
          {"predicted_us", work.predicted_seconds * 1e6},
          {"memory_binds", work.memory_binds()}};
}

nlohmann::ordered_json gemm_json(const moe::GemmExplanation& gemm) {
  nlohmann::ordered_json json = work_json(gemm);
  json["tiles"] = gemm.tiles.size();
  json["lanes"] = gemm.num_lanes;
  json["waves"] = gemm.waves();
  json["last_wave_idle"] = gemm.last_wave_idle();
  json["idle"] = gemm.idle();
  json["padding"] = gemm.padding();
  return json;
}

nlohmann::ordered_json plan_json(const MoeCase& moe_case, const moe::Explanation& plan) {
  return {{"tokens", moe_case.num_tokens},
          {"routing", std::string(moe::routing_name(moe_case.routing))},
          {"rows", plan.num_rows},
          {"experts_with_rows", plan.num_tasks},
          {"rows_an_expert", {{"min", plan.fewest_rows}, {"median", plan.median_rows}, {"max", plan.most_rows}}},
          {"ctas", plan.launch.num_ctas},
          {"cluster_size", plan.launch.cluster_size},
          {"kernel", std::string(plan.launch.kernel->name)},
          {"floor_us", plan.floor_seconds() * 1e6},
          {"predicted_us", plan.predicted_seconds() * 1e6},
          {"plan", work_json(plan.plan)},
          {"gemm1", gemm_json(plan.gate_up)},
          {"gemm2", gemm_json(plan.down)},
          {"combine", work_json(plan.combine)}};
}

int explain(const ExplainMoeOptions& options) {
  const moe::Preset shape = moe_shape(options.moe);
  const std::vector<MoeCase> cases = moe_cases(options.moe, shape);
  const moe::LaunchPolicy policy = launch_policy(options.moe);
  const moe::DeviceRates rates = device_rates(options);
  for (const auto& [name, path] : {std::pair("--svg", &options.svg), std::pair("--trace", &options.trace)}) {
    if (path->empty() || cases.size() == 1) continue;
    throw Error(name, str_cat(cases.size(), " plans"), "one token count and one routing with it");
  }
  require_own_extension("--svg", options.svg, ".svg");
  require_own_extension("--html", options.html, ".html");
  require_own_extension("--trace", options.trace, ".json");
  FileRoles roles;
  roles.writes("--svg", options.svg);
  roles.writes("--html", options.html);
  roles.writes("--trace", options.trace);
  roles.writes("--json", options.json);
  SideFile svg("--svg", options.svg), html("--html", options.html), trace("--trace", options.trace);
  std::vector<TitledPlan> pictures;
  SideFile file("--json", options.json);
  Output output("-");
  auto json = nlohmann::ordered_json{{"shape", shape_json(shape)},
                                     {"format", std::string(moe::weight_format_name(shape.config.weight_format))},
                                     {"order", std::string(batching::task_order_name(policy.order))},
                                     {"cases", nlohmann::ordered_json::array()}};
  for (const MoeCase& moe_case : cases) {
    const moe::Explanation plan = moe::explain_layer(
        shape.config, policy, moe::count_rows(shape.config, moe_case.topk_ids), moe_case.num_tokens, rates);
    output.write((&moe_case == cases.data() ? "" : "\n") + plan_text(shape, moe_case, policy, rates, plan));
    json["cases"].push_back(plan_json(moe_case, plan));
    const std::string title =
        str_cat(describe(shape), "; ", moe_case.num_tokens, " tokens, ", moe::routing_name(moe_case.routing), ", ",
                batching::task_order_name(policy.order));
    if (svg) svg.write(tile_map_svg(title, plan));
    if (trace) trace.write(tile_trace(title, plan));
    if (html) pictures.push_back({title, plan});
  }
  if (html) html.write(tile_map_page(pictures));
  output.commit();
  file.write(json.dump(1) + "\n");
  return kAllOk;
}

}  // namespace

Command add_explain_moe(CLI::App& app) {
  auto options = std::make_shared<ExplainMoeOptions>();
  add_moe_options(app, options->moe);
  app.add_option("--hbm-tb-s", options->hbm_tb_s, "Rate of the memory, TB/s")
      ->type_name("NUMBER")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  app.add_option("--dense-tflops", options->dense_tflops, "Rate of dense products of 16 bits, TFLOP/s; fp8: twice")
      ->type_name("NUMBER")
      ->check(CLI::PositiveNumber.description(""))
      ->capture_default_str();
  app.add_option("--plan-us", options->plan_us, "What the plan kernels take, microseconds")
      ->type_name("NUMBER")
      ->check(CLI::NonNegativeNumber.description(""))
      ->capture_default_str();
  add_integer(app, "--multiprocessors", options->num_multiprocessors, "Of the device", 2, 4096);
  app.add_option("--svg", options->svg, "Draw which cluster computes which tile when")->type_name("FILE");
  app.add_option("--html", options->html, "The same as a page to look into, with a slider over the plans")
      ->type_name("FILE");
  app.add_option("--trace", options->trace, "Write the tiles for Perfetto or chrome://tracing")->type_name("FILE");
  app.add_option("--json", options->json, "Write the figures as JSON to this file")->type_name("FILE");
  app.footer(kExplainMoeFooter + preset_list());
  return [options] { return explain(*options); };
}

}  // namespace tessera::cli
