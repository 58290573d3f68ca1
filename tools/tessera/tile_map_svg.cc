#include "tile_map_svg.h"

#include <algorithm>
#include <cmath>

#include "html.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

constexpr double kLeft = 84.0, kTop = 64.0, kMapWidth = 1200.0, kBottom = 96.0, kRight = 30.0;
constexpr double kMapHeight = 560.0;  // of all rows; a row is as high as that allows, up to kLaneHeight
constexpr double kLaneHeight = 24.0;
constexpr double kGoldenAngle = 137.50776405;  // neighbours in expert number differ most in colour
constexpr int kMostTicks = 8;
constexpr double kShownPadding = 0.02;  // of a tile's rows; less is no line of the hatching
constexpr int kSample = 210;            // hue of the legend's tiles

struct Frame {
  double seconds;  // that the width stands for
  double lane_height;
  int32_t num_lanes;

  double x(double time) const { return kLeft + (seconds > 0.0 ? time / seconds : 0.0) * kMapWidth; }
  double y(int32_t lane) const { return kTop + lane * lane_height; }
  double bottom() const { return y(num_lanes); }
};

/// Channel `n` (0 red, 8 green, 4 blue) of a colour of the HSL space, 0 to 255.
int hsl_channel(double hue, double saturation, double lightness, int n) {
  const double k = std::fmod(n + hue / 30.0, 12.0);
  const double a = saturation * std::min(lightness, 1.0 - lightness);
  const double value = lightness - a * std::max(-1.0, std::min({k - 3.0, 9.0 - k, 1.0}));
  return static_cast<int>(std::lround(value * 255.0));
}

std::string hex_color(double hue, bool is_second, bool is_pale) {
  const double saturation = is_pale ? 0.38 : 0.72;
  const double lightness = is_pale ? (is_second ? 0.66 : 0.82) : (is_second ? 0.38 : 0.58);
  return format_text("#%02x%02x%02x", hsl_channel(hue, saturation, lightness, 0),
                     hsl_channel(hue, saturation, lightness, 8), hsl_channel(hue, saturation, lightness, 4));
}

std::string text_at(double x, double y, const char* anchor, int size, const std::string& content) {
  return format_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" fill=\"#222222\">", x, y, anchor,
                     size) +
         content + "</text>\n";
}

std::string vertical_line(double x, double y1, double y2, const char* color, const char* dashes = "none") {
  return format_text("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-dasharray=\"%s\"/>\n",
                     x, y1, x, y2, color, dashes);
}

/// A box that is no tile.
std::string box(double x, double y, double width, double height, const std::string& fill) {
  return format_text("<path d=\"M%.2f %.2fh%.2fv%.2fh%.2fz\" fill=\"%s\"/>\n", x, y, width, height, -width,
                     fill.c_str());
}

std::string tile_rectangle(const Frame& frame, const moe::ExplainedTile& tile, const moe::TileRun& run, double begin,
                           bool is_second) {
  const double left = frame.x(begin + run.begin);
  const double width = frame.x(begin + run.end) - left;
  const double height = frame.lane_height * 0.9;
  const bool waits = waits_for_memory(tile, run);
  std::string svg = format_text("<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\">", left,
                                frame.y(run.lane), width, height, tile_color(tile.expert, is_second, waits).c_str()) +
                    format_text("<title>expert %d, tile %d: %.1f to %.1f us, %s, %.0f %% padding</title></rect>\n",
                                tile.expert, tile.tile_idx, (begin + run.begin) * 1e6, (begin + run.end) * 1e6,
                                waits ? "waits for memory" : "tensor cores", tile.padding * 100);
  if (tile.padding > kShownPadding) {
    const double padded = height * tile.padding;
    svg += box(left, frame.y(run.lane) + height - padded, width, padded, "url(#padding)");
  }
  return svg;
}

std::string gemm_tiles(const Frame& frame, const moe::GemmExplanation& gemm, double begin, bool is_second) {
  std::string svg;
  for (size_t i = 0; i < gemm.tiles.size(); ++i) {
    svg += tile_rectangle(frame, gemm.tiles[i], gemm.runs[i], begin, is_second);
  }
  return svg;
}

/// The least of 1, 2, 5, 10, 20, ... that divides `microseconds` into few enough parts.
double tick_step(double microseconds) {
  double step = std::pow(10.0, std::floor(std::log10(std::max(microseconds, 1e-3) / kMostTicks)));
  for (const double factor : {2.0, 2.5, 2.0}) {
    if (microseconds / step <= kMostTicks) break;
    step *= factor;
  }
  return step;
}

std::string axis(const Frame& frame) {
  std::string svg;
  const double end = frame.seconds * 1e6, step = tick_step(end);
  for (int tick = 0; tick * step <= end; ++tick) {
    const double x = frame.x(tick * step * 1e-6);
    svg += vertical_line(x, frame.bottom(), frame.bottom() + 5, "#333333");
    svg += text_at(x, frame.bottom() + 20, "middle", 12, format_text("%g us", tick * step));
  }
  return svg;
}

std::string legend(const Frame& frame, const std::string& lane) {
  struct Entry {
    std::string fill;
    bool is_padded;
    const char* words;
    double width;
  };
  const Entry entries[] = {{hex_color(kSample, false, false), false, "GEMM 1", 95},
                           {hex_color(kSample, true, false), false, "GEMM 2", 95},
                           {hex_color(kSample, false, true), false, "pale: waits for memory", 190},
                           {hex_color(kSample, false, false), true, "hatched: padding", 155},
                           {"#d9d9d9", false, "plan, combine", 130},
                           {"#ffffff", false, "white: idle", 115}};
  const double y = frame.bottom() + 44;
  double x = kLeft;
  std::string svg;
  for (const Entry& entry : entries) {
    svg += box(x, y, 22, 14, entry.fill);
    if (entry.is_padded) svg += box(x, y + 5, 22, 9, "url(#padding)");
    svg += format_text("<path d=\"M%.1f %.1fh22v14h-22z\" fill=\"none\" stroke=\"#888888\"/>\n", x, y);
    svg += text_at(x + 28, y + 12, "start", 12, entry.words);
    x += entry.width;
  }
  svg += text_at(kLeft, y + 36, "start", 12, "a colour an expert; a row a " + lane + "; a box a tile");
  return svg + text_at(x, y + 12, "start", 12, "dashed: the floor of the time");
}

std::string gemm_heading(const Frame& frame, const char* name, const moe::GemmExplanation& gemm, double begin,
                         double y) {
  const std::string words = format_text("%s: %zu tiles, %.1f %% idle, %.1f %% padding", name, gemm.tiles.size(),
                                        gemm.idle() * 100, gemm.padding() * 100);
  return vertical_line(frame.x(begin), y - 8, frame.bottom(), "#000000") +
         text_at(frame.x(begin) + 4, y, "start", 12, words);
}

}  // namespace

std::string tile_color(int32_t expert, bool is_second, bool is_pale) {
  return hex_color(std::fmod(expert * kGoldenAngle, 360.0), is_second, is_pale);
}

bool waits_for_memory(const moe::ExplainedTile& tile, const moe::TileRun& run) {
  constexpr double kRounding = 1.001;
  return run.end - run.begin > tile.cost.compute_seconds * kRounding;
}

std::string lane_name(const moe::Explanation& plan) { return plan.launch.cluster_size == 1 ? "CTA" : "cluster"; }

std::string tile_map_svg(const std::string& title, const moe::Explanation& plan) {
  const double first = plan.plan.predicted_seconds;
  const double second = first + plan.gate_up.predicted_seconds;
  const double combine = second + plan.down.predicted_seconds;
  const double end = combine + plan.combine.predicted_seconds;
  const int32_t lanes = std::max(plan.gate_up.num_lanes, plan.down.num_lanes);
  const Frame frame{end, std::min(kLaneHeight, kMapHeight / lanes), lanes};
  const double height = frame.bottom() + kBottom;
  std::string svg =
      format_text("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\">\n",
                  kLeft + kMapWidth + kRight, height);
  svg +=
      "<defs><pattern id=\"padding\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">"
      "<path d=\"M-1 1l2 -2M0 4l4 -4M3 5l2 -2\" stroke=\"#ffffff\" stroke-width=\"1.2\"/></pattern></defs>\n";
  svg += box(0, 0, kLeft + kMapWidth + kRight, height, "#ffffff");
  svg += text_at(kLeft, 22, "start", 16, markup_escaped(title));
  svg += text_at(kLeft - 6, kTop + 10, "end", 11, lane_name(plan) + " 0");
  svg += text_at(kLeft - 6, frame.bottom() - 2, "end", 11, format_text("%s %d", lane_name(plan).c_str(), lanes - 1));
  svg += box(frame.x(0), kTop, frame.x(first) - frame.x(0), frame.bottom() - kTop, "#d9d9d9");
  svg += box(frame.x(combine), kTop, frame.x(end) - frame.x(combine), frame.bottom() - kTop, "#d9d9d9");
  svg += gemm_tiles(frame, plan.gate_up, first, false);
  svg += gemm_tiles(frame, plan.down, second, true);
  svg += gemm_heading(frame, "GEMM 1", plan.gate_up, first, kTop - 24);
  svg += gemm_heading(frame, "GEMM 2", plan.down, second, kTop - 8);
  svg += vertical_line(frame.x(plan.floor_seconds()), kTop - 4, frame.bottom() + 5, "#c00000", "6 3");
  svg += text_at(frame.x(plan.floor_seconds()), frame.bottom() + 34, "end", 12,
                 format_text("floor %.0f us of %.0f", plan.floor_seconds() * 1e6, end * 1e6));
  return svg + axis(frame) + legend(frame, lane_name(plan)) + "</svg>\n";
}

}  // namespace tessera::cli
