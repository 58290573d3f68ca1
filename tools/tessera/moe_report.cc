#include "moe_report.h"

#include <algorithm>
#include <cmath>

#include "bench_report.h"
#include "tessera/core/check.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

/// A timer that steps by more hides the gap between two kernels that overlap.
constexpr double kFineStepSeconds = 100e-9;

/// TFLOP/s of a GPU, GFLOP/s of a processor.
struct Unit {
  const char* name;
  double flops;
};

Unit unit_of(bool on_gpu) { return on_gpu ? Unit{"TFLOP/s", 1e12} : Unit{"GFLOP/s", 1e9}; }

std::string rate_text(double amount, double seconds, double unit) {
  return amount > 0.0 && seconds > 0.0
             ? format_text("%.*f", amount / seconds / unit < 10.0 ? 2 : 0, amount / seconds / unit)
             : "-";
}

std::string line(const std::string& what, double seconds, double flops, double bytes, const Unit& unit,
                 const std::string& ratio, const std::string& dense) {
  return format_text("  %-16s %11.1f %9s %8s  %-20s %8s", what.c_str(), seconds * 1e6,
                     rate_text(flops, seconds, unit.flops).c_str(), rate_text(bytes, seconds, 1e9).c_str(),
                     ratio.c_str(), dense.c_str());
}

std::string state_text(const std::optional<DeviceState>& state) {
  return state ? format_text("%5.0f MHz %4.0f W", state->sm_mhz, state->watts) : "";
}

std::string duel_line(const std::string& what, const Duel& duel, const MoeResult& result, const Unit& unit) {
  const std::string ratio =
      duel.ratio ? format_text("%.3f (%.3f..%.3f)", duel.ratio->median, duel.ratio->low, duel.ratio->high) : "-";
  const std::string dense = duel.dense_seconds ? rate_text(result.flops, duel.dense_seconds->median, unit.flops) : "-";
  return line(what, duel.layer_seconds.median, result.flops, result.bytes, unit, ratio, dense) +
         state_text(duel.layer_state) + "\n";
}

std::string shown_name(const std::string& kernel) {
  return kernel == "gemm1"        ? "GEMM 1"
         : kernel == "gemm2"      ? "GEMM 2"
         : kernel == "plan_count" ? "plan, count"
         : kernel == "plan_place" ? "plan, place"
                                  : kernel;
}

std::string check_line(const CheckResult& check, int32_t num_tokens) {
  if (check.num_tokens == 0) return "  no token was checked: FAILED\n";
  return format_text("  result of the timed run: %.3f of the error that is allowed, on %d of %d tokens: %s\n",
                     check.largest_error_of_bound, check.num_tokens, num_tokens, check.passed() ? "ok" : "FAILED");
}

nlohmann::ordered_json spread_json(const Spread& spread, double unit) {
  return {{"median", spread.median / unit}, {"min", spread.low / unit}, {"max", spread.high / unit}};
}

nlohmann::ordered_json state_json(const DeviceState& state) {
  return {{"sm_mhz", state.sm_mhz}, {"watts", state.watts}};
}

nlohmann::ordered_json duel_json(const Duel& duel, const MoeResult& result) {
  nlohmann::ordered_json json = {{"blocks", duel.num_blocks},
                                 {"runs_a_block", duel.runs_a_block},
                                 {"seconds_a_block", duel.seconds_a_block},
                                 {"layer_us", spread_json(duel.layer_seconds, 1e-6)},
                                 {"layer_tflops", result.flops / duel.layer_seconds.median / 1e12},
                                 {"layer_gb_per_s", result.bytes / duel.layer_seconds.median / 1e9}};
  if (duel.dense_seconds) {
    json["dense_us"] = spread_json(*duel.dense_seconds, 1e-6);
    json["dense_tflops"] = result.flops / duel.dense_seconds->median / 1e12;
  }
  if (duel.ratio) json["r"] = spread_json(*duel.ratio, 1.0);
  if (duel.layer_state) json["layer_state"] = state_json(*duel.layer_state);
  if (duel.dense_state) json["dense_state"] = state_json(*duel.dense_state);
  return json;
}

nlohmann::ordered_json kernel_json(const KernelTime& kernel) {
  nlohmann::ordered_json json = {{"us", kernel.seconds * 1e6}};
  if (kernel.seconds > 0.0) {
    if (kernel.flops > 0.0) json["tflops"] = kernel.flops / kernel.seconds / 1e12;
    json["gb_per_s"] = kernel.bytes / kernel.seconds / 1e9;
  }
  if (kernel.dense_seconds) {
    json["dense_tflops"] = kernel.flops / *kernel.dense_seconds / 1e12;
    json["of_dense"] = *kernel.dense_seconds / kernel.seconds;
  }
  return json;
}

std::string range_text(const moe::TimelineRange& range) {
  return format_text("%6.1f..%-7.1f", range.first * 1e6, range.last * 1e6);
}

std::string floor_text(const FloorResult& floor) {
  const double seconds = floor.seconds();
  std::string text = format_text("  floor: %.1f MB of weights at %.0f GB/s, read in this run: %.1f us",
                                 floor.weight_bytes / 1e6, floor.read_bytes_per_second / 1e9, seconds * 1e6);
  if (floor.read_seconds) text += format_text("; one launch takes %.1f us", *floor.read_seconds * 1e6);
  text += format_text("\n  layer in a CUDA graph: %.1f us", floor.graph_seconds * 1e6);
  if (seconds > 0.0) text += format_text(" = %.2f of the floor", floor.graph_seconds / seconds);
  text += format_text("; with marks %.1f us\n", floor.marked_graph_seconds * 1e6);
  text += format_text("  marks: medians of %lld replays, us after the layer's begin; the timer's step is %.0f ns%s\n",
                      static_cast<long long>(floor.num_replays), floor.timer_step_seconds * 1e9,
                      floor.timer_step_seconds > kFineStepSeconds ? " (coarse)" : "");
  text += format_text("  %-11s %-15s %-15s %-15s %7s %7s %7s\n", "first..last", "begins", "may work", "ends", "gap",
                      "works", "early");
  for (const moe::KernelTimeline& kernel : floor.timeline.kernels) {
    text +=
        format_text("  %-11s %s %s %s %7.1f %7.1f %7.1f\n", shown_name(kernel.name).c_str(),
                    range_text(kernel.begin).c_str(), range_text(kernel.work).c_str(), range_text(kernel.end).c_str(),
                    kernel.gap_seconds * 1e6, kernel.work_seconds * 1e6, kernel.early_seconds * 1e6);
  }
  return text;
}

nlohmann::ordered_json range_json(const moe::TimelineRange& range) {
  return {{"first", range.first * 1e6}, {"last", range.last * 1e6}};
}

nlohmann::ordered_json floor_json(const FloorResult& floor, const MoeResult& result) {
  const double seconds = floor.seconds();
  nlohmann::ordered_json json = {{"read_gb_per_s", floor.read_bytes_per_second / 1e9},
                                 {"weight_bytes", floor.weight_bytes},
                                 {"floor_us", seconds * 1e6}};
  if (floor.read_seconds) json["one_read_us"] = *floor.read_seconds * 1e6;
  json["graph_us"] = floor.graph_seconds * 1e6;
  json["marked_graph_us"] = floor.marked_graph_seconds * 1e6;
  if (seconds > 0.0) {
    json["graph_over_floor"] = floor.graph_seconds / seconds;
    json["burst_over_floor"] = result.burst.layer_seconds.median / seconds;
  }
  json["timer_step_ns"] = floor.timer_step_seconds * 1e9;
  json["replays"] = floor.num_replays;
  json["marked_layer_us"] = floor.timeline.seconds() * 1e6;
  for (const moe::KernelTimeline& kernel : floor.timeline.kernels) {
    json["marks"][kernel.name] = {{"begin_us", range_json(kernel.begin)},  {"work_us", range_json(kernel.work)},
                                  {"end_us", range_json(kernel.end)},      {"gap_us", kernel.gap_seconds * 1e6},
                                  {"works_us", kernel.work_seconds * 1e6}, {"early_us", kernel.early_seconds * 1e6}};
  }
  return json;
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  TESSERA_CHECK(!values.empty(), values.size());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
  return {median, values.front(), values.back()};
}

std::string moe_result_text(const MoeCase& moe_case, const MoeResult& result, bool on_gpu) {
  const Unit unit = unit_of(on_gpu);
  const std::string sets = result.num_sets > 1 ? format_text("; %d sets of buffers in turn", result.num_sets) : "";
  std::string text = format_text("T = %d, %s: %lld rows on %d experts%s\n", moe_case.num_tokens,
                                 std::string(moe::routing_name(moe_case.routing)).c_str(),
                                 static_cast<long long>(result.num_rows), result.num_tasks, sets.c_str());
  for (const auto& [name, words] : result.launch) text += labelled(name, words);
  text += format_text("  %-16s %11s %9s %8s  %-20s %8s\n", "", "us", unit.name, "GB/s", "r = dense / this", "dense");
  text += duel_line("layer, burst", result.burst, result, unit);
  if (result.sustained) text += duel_line("layer, sustained", *result.sustained, result, unit);
  for (const KernelTime& kernel : result.kernels) {
    const std::string ratio = kernel.dense_seconds ? format_text("%.3f", *kernel.dense_seconds / kernel.seconds) : "-";
    const std::string dense = kernel.dense_seconds ? rate_text(kernel.flops, *kernel.dense_seconds, unit.flops) : "-";
    text += line(shown_name(kernel.name), kernel.seconds, kernel.flops, kernel.bytes, unit, ratio, dense) + "\n";
  }
  if (result.floor) text += floor_text(*result.floor);
  return text + check_line(result.check, moe_case.num_tokens);
}

nlohmann::ordered_json moe_result_json(const MoeCase& moe_case, const MoeResult& result) {
  nlohmann::ordered_json json = {
      {"tokens", moe_case.num_tokens},  {"routing", std::string(moe::routing_name(moe_case.routing))},
      {"rows", result.num_rows},        {"experts_with_rows", result.num_tasks},
      {"flops", result.flops},          {"bytes", result.bytes},
      {"buffer_sets", result.num_sets}, {"burst", duel_json(result.burst, result)}};
  for (const auto& [name, words] : result.launch) json["launch"][name] = words;
  if (result.sustained) json["sustained"] = duel_json(*result.sustained, result);
  for (const KernelTime& kernel : result.kernels) json["kernels"][kernel.name] = kernel_json(kernel);
  if (result.floor) json["floor"] = floor_json(*result.floor, result);
  json["check"] = {{"tokens", result.check.num_tokens},
                   {"largest_error_of_bound", finite_json(result.check.largest_error_of_bound)},
                   {"passed", result.check.passed()}};
  return json;
}

}  // namespace tessera::cli
