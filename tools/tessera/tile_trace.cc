#include "tile_trace.h"

#include <nlohmann/json.hpp>

#include "text_format.h"
#include "tile_map_svg.h"

namespace tessera::cli {

namespace {

using nlohmann::ordered_json;

ordered_json slice(const std::string& name, const char* category, double begin, double end, int32_t track) {
  return {{"name", name}, {"cat", category}, {"ph", "X"},      {"ts", begin * 1e6}, {"dur", (end - begin) * 1e6},
          {"pid", 0},     {"tid", track},    {"args", nullptr}};
}

ordered_json name_of_track(int32_t track, const std::string& name) {
  return {{"name", "thread_name"}, {"ph", "M"}, {"pid", 0}, {"tid", track}, {"args", {{"name", name}}}};
}

void add_gemm(const char* category, const moe::GemmExplanation& gemm, double begin, ordered_json& events) {
  for (size_t i = 0; i < gemm.tiles.size(); ++i) {
    const moe::ExplainedTile& tile = gemm.tiles[i];
    const moe::TileRun& run = gemm.runs[i];
    ordered_json event = slice(format_text("expert %d, tile %d", tile.expert, tile.tile_idx), category,
                               begin + run.begin, begin + run.end, run.lane + 1);
    event["args"] = {{"kernel", category},
                     {"expert", tile.expert},
                     {"tile", tile.tile_idx},
                     {"padding", tile.padding},
                     {"bytes", tile.cost.bytes},
                     {"products_us", tile.cost.compute_seconds * 1e6},
                     {"bound_by", waits_for_memory(tile, run) ? "memory" : "tensor cores"}};
    events.push_back(std::move(event));
  }
}

}  // namespace

std::string tile_trace(const std::string& title, const moe::Explanation& plan) {
  const double first = plan.plan.predicted_seconds;
  const double second = first + plan.gate_up.predicted_seconds;
  const double combine = second + plan.down.predicted_seconds;
  ordered_json events = ordered_json::array();
  events.push_back({{"name", "process_name"}, {"ph", "M"}, {"pid", 0}, {"args", {{"name", title}}}});
  events.push_back(name_of_track(0, "kernels"));
  for (int32_t lane = 0; lane < plan.gate_up.num_lanes; ++lane) {
    events.push_back(name_of_track(lane + 1, format_text("%s %d", lane_name(plan).c_str(), lane)));
  }
  events.push_back(slice("plan", "kernel", 0, first, 0));
  events.push_back(slice("GEMM 1", "kernel", first, second, 0));
  events.push_back(slice("GEMM 2", "kernel", second, combine, 0));
  events.push_back(slice("combine", "kernel", combine, combine + plan.combine.predicted_seconds, 0));
  add_gemm("GEMM 1", plan.gate_up, first, events);
  add_gemm("GEMM 2", plan.down, second, events);
  const ordered_json trace = {{"displayTimeUnit", "ns"},
                              {"otherData", {{"floor_us", plan.floor_seconds() * 1e6}, {"predicted", true}}},
                              {"traceEvents", std::move(events)}};
  return trace.dump() + "\n";
}

}  // namespace tessera::cli
