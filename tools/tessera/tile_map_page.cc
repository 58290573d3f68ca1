#include "tile_map_page.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "tile_map_svg.h"

namespace tessera::cli {

namespace {

using nlohmann::ordered_json;

constexpr const char* kMapHead = R"html(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The tiles of an MoE layer</title>
<style>
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --frame: #d9d9d9; --floor: #c00000; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181818; --frame: #444; --floor: #ff6060; } }
body { font: 14px sans-serif; color: var(--ink); background: var(--paper); margin: 1.5em; }
h1 { font-size: 1.2em; } canvas { width: 100%; display: block; } input { width: 30em; max-width: 60%; }
#tip { position: fixed; pointer-events: none; background: var(--paper); border: 1px solid var(--ink);
  padding: .3em .5em; display: none; white-space: pre; }
</style></head><body>
<h1 id="title"></h1>
<p id="choice"><label>Plan <input id="slider" type="range" min="0" value="0"></label> <span id="which"></span></p>
<p id="figures"></p>
<canvas id="map"></canvas>
<p>A colour an expert, a row a <span id="lane"></span>, a box a tile: GEMM 1 light, GEMM 2 dark; pale boxes wait for
memory, the hatched part of a box is padding, grey is the plan and the weighted sum, the dashed line is the floor of the
time.</p>
<div id="tip"></div>
<script>
const plans = )html";

constexpr const char* kScript = R"html(;
const map = document.getElementById("map"), tip = document.getElementById("tip");
const slider = document.getElementById("slider"), left = 80, top_ = 8, bottom = 28;
let plan = plans[0], boxes = [];
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name);
const x = us => left + us / plan.end * (map.clientWidth - left - 10);
function step(end) {
  let size = 10 ** Math.floor(Math.log10(end / 8));
  for (const factor of [2, 2.5, 2]) if (end / size > 8) size *= factor;
  return size;
}
function draw() {
  const height = Math.min(24, 560 / plan.lanes), scale = devicePixelRatio || 1;
  map.height = (top_ + plan.lanes * height + bottom) * scale;
  map.width = map.clientWidth * scale;
  map.style.height = map.height / scale + "px";
  const draw = map.getContext("2d");
  draw.scale(scale, scale);
  draw.font = "12px sans-serif";
  const end = top_ + plan.lanes * height;
  draw.fillStyle = css("--frame");
  draw.fillRect(x(0), top_, x(plan.first) - x(0), end - top_);
  draw.fillRect(x(plan.combine), top_, x(plan.end) - x(plan.combine), end - top_);
  boxes = plan.tiles.map(([kernel, expert, tile, lane, begin, finish, waits, padding, color]) =>
    ({kernel, expert, tile, lane, begin, finish, waits, padding, color, x: x(begin), y: top_ + lane * height,
      width: x(finish) - x(begin), height: height * 0.9}));
  for (const box of boxes) {
    draw.fillStyle = box.color;
    draw.fillRect(box.x, box.y, box.width, box.height);
    const padded = box.height * box.padding / 100;
    if (padded < 0.5) continue;
    draw.save();
    draw.beginPath();
    draw.rect(box.x, box.y + box.height - padded, box.width, padded);
    draw.clip();
    draw.strokeStyle = "#ffffff";
    draw.beginPath();
    for (let at = box.x - padded; at < box.x + box.width; at += 4) {
      draw.moveTo(at, box.y + box.height);
      draw.lineTo(at + padded, box.y + box.height - padded);
    }
    draw.stroke();
    draw.restore();
  }
  draw.fillStyle = draw.strokeStyle = css("--ink");
  draw.textAlign = "end";
  draw.fillText(plan.lane + " 0", left - 6, top_ + 10);
  draw.fillText(plan.lane + " " + (plan.lanes - 1), left - 6, end - 2);
  draw.textAlign = "center";
  for (let at = 0; at <= plan.end; at += step(plan.end)) {
    draw.fillRect(x(at), end, 1, 5);
    draw.fillText(+at.toPrecision(6) + " us", x(at), end + 20);
  }
  draw.strokeStyle = css("--floor");
  draw.setLineDash([6, 3]);
  draw.beginPath();
  draw.moveTo(x(plan.floor), top_);
  draw.lineTo(x(plan.floor), end + 5);
  draw.stroke();
}
function choose(index) {
  plan = plans[index];
  document.getElementById("title").textContent = plan.title;
  document.getElementById("which").textContent = (+index + 1) + " of " + plans.length;
  document.getElementById("lane").textContent = plan.lane;
  document.getElementById("figures").textContent = plan.figures;
  draw();
}
map.addEventListener("mousemove", event => {
  const place = map.getBoundingClientRect(), px = event.clientX - place.left, py = event.clientY - place.top;
  const box = boxes.find(b => px >= b.x && px <= b.x + b.width && py >= b.y && py <= b.y + b.height);
  tip.style.display = box ? "block" : "none";
  if (!box) return;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - 260) + "px";
  tip.style.top = event.clientY + 14 + "px";
  tip.textContent = `${box.kernel}, expert ${box.expert}, tile ${box.tile}\n${plan.lane} ${box.lane}, ` +
    `${box.begin.toFixed(1)} to ${box.finish.toFixed(1)} us\n` +
    `${box.waits ? "waits for memory" : "bound by the tensor cores"}, ${box.padding} % padding`;
});
map.addEventListener("mouseleave", () => { tip.style.display = "none"; });
slider.max = plans.length - 1;
slider.addEventListener("input", () => choose(slider.value));
document.getElementById("choice").hidden = plans.length < 2;
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
choose(0);
</script></body></html>
)html";

double rounded(double value, double steps) { return std::round(value * steps) / steps; }

void add_tiles(const char* kernel, const moe::GemmExplanation& gemm, double begin, bool is_second,
               ordered_json& tiles) {
  for (size_t i = 0; i < gemm.tiles.size(); ++i) {
    const moe::ExplainedTile& tile = gemm.tiles[i];
    const moe::TileRun& run = gemm.runs[i];
    const bool waits = waits_for_memory(tile, run);
    tiles.push_back({kernel, tile.expert, tile.tile_idx, run.lane, rounded((begin + run.begin) * 1e6, 100),
                     rounded((begin + run.end) * 1e6, 100), waits ? 1 : 0, std::lround(tile.padding * 100),
                     tile_color(tile.expert, is_second, waits)});
  }
}

ordered_json plan_json(const TitledPlan& titled) {
  const moe::Explanation& plan = titled.plan;
  const double first = plan.plan.predicted_seconds;
  const double second = first + plan.gate_up.predicted_seconds;
  const double combine = second + plan.down.predicted_seconds;
  const double end = combine + plan.combine.predicted_seconds;
  ordered_json tiles = ordered_json::array();
  add_tiles("GEMM 1", plan.gate_up, first, false, tiles);
  add_tiles("GEMM 2", plan.down, second, true, tiles);
  char figures[200];
  std::snprintf(figures, sizeof(figures),
                "predicted %.0f us, floor %.0f us; GEMM 1 %.1f %% idle, %.1f %% padding; GEMM 2 %.1f %% idle, %.1f %% "
                "padding",
                end * 1e6, plan.floor_seconds() * 1e6, plan.gate_up.idle() * 100, plan.gate_up.padding() * 100,
                plan.down.idle() * 100, plan.down.padding() * 100);
  return {{"title", titled.title},    {"figures", figures},
          {"lane", lane_name(plan)},  {"lanes", plan.gate_up.num_lanes},
          {"first", first * 1e6},     {"combine", combine * 1e6},
          {"end", end * 1e6},         {"floor", plan.floor_seconds() * 1e6},
          {"tiles", std::move(tiles)}};
}

}  // namespace

std::string tile_map_page(const std::vector<TitledPlan>& plans) {
  ordered_json json = ordered_json::array();
  for (const TitledPlan& plan : plans) json.push_back(plan_json(plan));
  std::string data = json.dump();
  for (size_t at = 0; (at = data.find('<', at)) != std::string::npos;) data.replace(at, 1, "\\u003c");  // "</script>"
  return kMapHead + data + kScript;
}

}  // namespace tessera::cli
