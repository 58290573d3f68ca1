// tessera report: what this machine is, what the layer does on it and would do on a GPU, on one page.
#include <algorithm>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "file_format.h"
#include "file_roles.h"
#include "html.h"
#include "integer_option.h"
#include "io/file.h"
#include "moe/kernels.h"
#include "moe/model/explain.h"
#include "moe_options.h"
#include "option_text.h"
#include "output.h"
#include "own_program.h"
#include "side_file.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "text_format.h"
#include "tile_map_svg.h"

namespace tessera::cli {

namespace {

using nlohmann::json;

constexpr uint64_t kMaxPeersBytes = uint64_t{64} << 20;

constexpr const char* kReportFooter =
    "Examples:\n"
    "  tessera report --out report.html\n"
    "  tessera report --bench olmoe --tokens 16,256 --seconds 0.5 --out report.html\n"
    "  tessera report --explain qwen3-30b,mixtral-8x7b --peers bench/results/peers_h200.json --out report.html\n"
    "One page that needs nothing else: what `doctor` says; what `bench moe` measures here, for the presets of "
    "--bench;\n"
    "the picture and the table of `explain moe`, for those of --explain; and the comparison with other libraries "
    "whose\n"
    "results --peers names. Measuring takes the memory and the time that `bench moe` takes.";

constexpr const char* kReportHead = R"html(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tessera report</title>
<style>
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ccc; --bar: #1f77b4; --other: #999; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #181818; --line: #444; --bar: #58a6ff; --other: #777; } }
body { font: 14px sans-serif; color: var(--ink); background: var(--paper); margin: 2em auto; max-width: 84em;
  padding: 0 1.5em; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid var(--line); padding: .25em .8em .25em 0;
  text-align: left; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; border: 1px solid var(--line); padding: .8em; }
.picture { background: #fff; border: 1px solid var(--line); } .picture svg { display: block; width: 100%; }
.bar { display: inline-block; height: .8em; background: var(--bar); } .bar.other { background: var(--other); }
</style></head><body>
<h1>Tessera report</h1>
)html";

struct PageOptions {
  std::string output;
  std::string explain = "qwen3-30b,mixtral-8x7b";
  std::string bench;
  std::string tokens = "64,4096";
  std::string device = "auto";
  std::string peers;
  double seconds = 0.5;
};

std::string now() {
  const std::time_t time = std::time(nullptr);
  std::tm parts{};
  char text[64];
  if (gmtime_r(&time, &parts) == nullptr || std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M UTC", &parts) == 0) {
    return "at an unknown time";
  }
  return text;
}

std::string doctor_section() {
  const ProgramRun run = run_own_program({"doctor"});
  return "<h2>This machine</h2>\n<p><code>tessera doctor</code>, exit code " + std::to_string(run.exit_code) +
         (run.exit_code == kAllOk ? "" : ": something is wrong") + "</p>\n<pre>" + markup_escaped(run.output) +
         "</pre>\n";
}

std::string bar(double share, bool is_other) {
  return format_text("<span class=\"bar%s\" style=\"width:%.1fem\"></span>", is_other ? " other" : "",
                     std::max(share, 0.0) * 20);
}

/// One preset's measured cases as rows with a bar for the layer and one for the dense products.
std::string bench_rows(const json& cases) {
  double longest = 0;
  for (const json& one : cases) {
    const json& block = one.contains("sustained") ? one["sustained"] : one["burst"];
    longest = std::max({longest, block["layer_us"]["median"].get<double>(), block["dense_us"]["median"].get<double>()});
  }
  std::string html;
  for (const json& one : cases) {
    const json& block = one.contains("sustained") ? one["sustained"] : one["burst"];
    const double layer = block["layer_us"]["median"], dense = block["dense_us"]["median"], r = block["r"]["median"];
    html += format_text("<tr><td>%lld</td><td>%s</td><td>%.0f us %s<br>%.0f us %s</td><td>%.2f</td><td>%s</td></tr>\n",
                        one["tokens"].get<long long>(), markup_escaped(one["routing"].get<std::string>()).c_str(),
                        layer, bar(layer / longest, false).c_str(), dense, bar(dense / longest, true).c_str(), r,
                        one["check"]["passed"].get<bool>() ? "right" : "WRONG");
  }
  return html;
}

std::string bench_section(const PageOptions& options, bool& all_right) {
  if (options.bench.empty()) return "";
  std::string html =
      "<h2>Measured here</h2>\n<p><code>tessera bench moe</code>: the layer, and under it the dense products of as "
      "many "
      "FLOPs; r is the ratio of the two.</p>\n";
  for (const std::string_view preset : split_list(options.bench)) {
    const ProgramRun run =
        run_own_program({"bench", "moe", "--preset", std::string(preset), "--tokens", options.tokens, "--device",
                         options.device, "--seconds", format_text("%g", options.seconds), "--json", "-"});
    const size_t begin = run.output.find("{\n");
    if ((run.exit_code != kAllOk && run.exit_code != kSomeFailed) || begin == std::string::npos) {
      throw Incomplete(str_cat("tessera bench moe --preset ", preset, " ended with exit code ", run.exit_code));
    }
    all_right = all_right && run.exit_code == kAllOk;
    const json measured = json::parse(run.output.substr(begin));
    html +=
        "<h3>" + markup_escaped(preset) + "</h3>\n<p>" +
        markup_escaped(str_cat(measured["dtype"].get<std::string>(), " on ", measured["device"].get<std::string>())) +
        "</p>\n<table><thead><tr><th>tokens</th><th>routing</th><th>layer, dense</th><th>r</th><th>result</th>"
        "</tr></thead><tbody>\n" +
        bench_rows(measured["cases"]) + "</tbody></table>\n";
  }
  return html;
}

std::string explain_section(const PageOptions& options) {
  if (options.explain.empty()) return "";
  std::string html =
      "<h2>What a GPU would do</h2>\n<p>Predicted without one, by <code>tessera explain moe</code>.</p>\n";
  for (const std::string_view preset : split_list(options.explain)) {
    for (const std::string_view tokens : split_list(options.tokens)) {
      MoeOptions moe;
      moe.preset = preset;
      moe.tokens = tokens;
      const moe::Preset shape = moe_shape(moe);
      const MoeCase moe_case = moe_cases(moe, shape).front();
      const moe::Explanation plan =
          moe::explain_layer(shape.config, launch_policy(moe), moe::count_rows(shape.config, moe_case.topk_ids),
                             moe_case.num_tokens, moe::DeviceRates{});
      const std::string title =
          str_cat(describe(shape), "; ", moe_case.num_tokens, " tokens, ", moe::routing_name(moe_case.routing));
      html += "<h3>" + markup_escaped(title) + "</h3>\n" +
              format_text(
                  "<p>Predicted %.0f us, floor %.0f us, %.1f %% padding, GEMM 1 idle %.1f %%, GEMM 2 %.1f %%.</p>\n",
                  plan.predicted_seconds() * 1e6, plan.floor_seconds() * 1e6, plan.gate_up.padding() * 100,
                  plan.gate_up.idle() * 100, plan.down.idle() * 100) +
              "<div class=\"picture\">" + tile_map_svg(title, plan) + "</div>\n";
    }
  }
  return html;
}

std::string peers_table(const json& table) {
  std::vector<std::string> columns = table.at("columns").get<std::vector<std::string>>();
  std::vector<std::vector<std::string>> rows;
  for (const json& row : table.at("rows")) {
    std::vector<std::string>& cells = rows.emplace_back();
    for (const json& cell : row) cells.push_back(cell.is_string() ? cell.get<std::string>() : cell.dump());
  }
  return html_table(columns, rows);
}

std::string peers_section(const PageOptions& options) {
  if (options.peers.empty()) return "";
  try {
    const json content = json::parse(io::read_text_file(options.peers, kMaxPeersBytes));
    return "<h2>Against other libraries</h2>\n<p>" + markup_escaped(options.peers) +
           ": the best peer's time over Tessera's; above 1 Tessera is faster.</p>\n" +
           peers_table(content.at("ranges_table")) + "<h3>Each peer</h3>\n" + peers_table(content.at("peers_table")) +
           "<h3>Versions</h3>\n" + peers_table(content.at("versions_table"));
  } catch (const json::exception& error) {
    throw Error("--peers " + escaped(options.peers), error.what(), "results that bench/peers/run.py wrote");
  }
}

int report(const PageOptions& options) {
  require_own_extension("--out", options.output, ".html");
  FileRoles roles;
  roles.reads("--peers", options.peers);
  roles.writes("--out", options.output);
  SideFile file("--out", options.output);
  const std::string peers =
      peers_section(options);  // what is wrong with the options is said before anything is measured
  const std::string explained = explain_section(options);
  bool all_right = true;
  std::string page = kReportHead;
  page += "<p>tessera " TESSERA_VERSION ", " + now() + "</p>\n" + doctor_section();
  page += bench_section(options, all_right) + explained + peers + "</body></html>\n";
  file.write(page);
  return all_right ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_report(CLI::App& app) {
  auto options = std::make_shared<PageOptions>();
  app.add_option("-o,--out", options->output, "The page to write")->type_name("FILE")->required();
  app.add_option("--explain", options->explain, "Presets whose plans are drawn")
      ->type_name("NAME[,...]")
      ->capture_default_str();
  app.add_option("--bench", options->bench, "Presets that are measured on this machine; else none")
      ->type_name("NAME[,...]");
  app.add_option("--tokens", options->tokens, "Of both")->type_name("N[,N...]")->capture_default_str();
  app.add_option("--device", options->device, "Of --bench: auto, cpu, cuda or cuda:N")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--seconds", options->seconds, "Of --bench: length of a block")
      ->type_name("NUMBER")
      ->check(CLI::Range(0.0, 600.0).description(""))
      ->capture_default_str();
  app.add_option("--peers", options->peers, "Results of bench/peers/run.py")->type_name("FILE");
  app.footer(kReportFooter);
  return [options] { return report(*options); };
}

}  // namespace tessera::cli
