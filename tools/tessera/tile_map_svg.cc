#include "tile_map_svg.h"

#include <algorithm>
#include <cmath>

#include "text_format.h"

namespace tessera::cli {
namespace {

constexpr double kLeft = 70.0, kTop = 60.0, kMapWidth = 1200.0, kBottom = 60.0, kRight = 30.0;
constexpr double kMapHeight = 560.0;  // of all lanes; a lane is as high as that allows, up to kLaneHeight
constexpr double kLaneHeight = 24.0;
constexpr double kGoldenAngle = 137.50776405;  // neighbours in expert number differ most in colour
constexpr int kNumTicks = 6;

struct Frame {
  double seconds;  // that the width stands for
  double lane_height;
  int32_t num_lanes;

  double x(double time) const { return kLeft + (seconds > 0.0 ? time / seconds : 0.0) * kMapWidth; }
  double y(int32_t lane) const { return kTop + lane * lane_height; }
  double bottom() const { return y(num_lanes); }
};

std::string text_at(double x, double y, const char* anchor, int size, const std::string& content) {
  return format_text("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\">", x, y, anchor, size) + content +
         "</text>\n";
}

std::string vertical_line(double x, double y1, double y2, const char* color) {
  return format_text("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x, y1, x, y2, color);
}

// Hue by expert; GEMM 2 darker, so that the two can be told apart where they meet.
std::string tile_rectangle(const Frame& frame, const moe::ExplainedTile& tile, const moe::TileRun& run, double begin,
                           int lightness) {
  const double left = frame.x(begin + run.begin);
  const double width = frame.x(begin + run.end) - left;
  const double hue = std::fmod(tile.expert * kGoldenAngle, 360.0);
  return format_text("<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"hsl(%.0f,60%%,%d%%)\">", left,
                     frame.y(run.lane), width, frame.lane_height * 0.9, hue, lightness) +
         format_text("<title>expert %d, tile %d: %.1f to %.1f us</title></rect>\n", tile.expert, tile.tile_idx,
                     (begin + run.begin) * 1e6, (begin + run.end) * 1e6);
}

std::string gemm_tiles(const Frame& frame, const moe::GemmExplanation& gemm, double begin, int lightness) {
  std::string svg;
  for (size_t i = 0; i < gemm.tiles.size(); ++i)
    svg += tile_rectangle(frame, gemm.tiles[i], gemm.runs[i], begin, lightness);
  return svg;
}

std::string axis(const Frame& frame) {
  std::string svg;
  for (int tick = 0; tick <= kNumTicks; ++tick) {
    const double time = frame.seconds * tick / kNumTicks;
    svg += vertical_line(frame.x(time), frame.bottom(), frame.bottom() + 5, "#333");
    svg += text_at(frame.x(time), frame.bottom() + 20, "middle", 12, format_text("%.0f us", time * 1e6));
  }
  return svg;
}

/// For XML text.
std::string xml_escaped(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '&') {
      safe += "&amp;";
    } else if (c == '<') {
      safe += "&lt;";
    } else {
      safe += c;
    }
  }
  return safe;
}

}  // namespace

std::string tile_map_svg(const std::string& title, const moe::Explanation& plan) {
  const double gate_up_seconds = plan.gate_up.predicted_seconds;
  const int32_t lanes = plan.gate_up.num_lanes;
  const Frame frame{gate_up_seconds + plan.down.predicted_seconds, std::min(kLaneHeight, kMapHeight / lanes), lanes};
  std::string svg = format_text(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" font-family=\"sans-serif\" "
      "style=\"background:#fff\">\n",
      kLeft + kMapWidth + kRight, frame.bottom() + kBottom);
  svg += text_at(kLeft, 24, "start", 16, xml_escaped(title));
  svg += text_at(kLeft - 6, kTop + 10, "end", 11, "lane 0");
  svg += text_at(kLeft - 6, frame.bottom() - 2, "end", 11, format_text("lane %d", lanes - 1));
  svg += gemm_tiles(frame, plan.gate_up, 0.0, 62);
  svg += gemm_tiles(frame, plan.down, gate_up_seconds, 45);
  const double middle = frame.x(gate_up_seconds);
  svg += vertical_line(middle, kTop - 12, frame.bottom(), "#000");
  svg += text_at(middle - 6, kTop - 8, "end", 13,
                 format_text("GEMM 1: %zu tiles, %.1f %% idle", plan.gate_up.tiles.size(), plan.gate_up.idle() * 100));
  svg += text_at(middle + 6, kTop - 8, "start", 13,
                 format_text("GEMM 2: %zu tiles, %.1f %% idle", plan.down.tiles.size(), plan.down.idle() * 100));
  return svg + axis(frame) + "</svg>\n";
}

}  // namespace tessera::cli
