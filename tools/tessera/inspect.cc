// tessera inspect: what a checkpoint on disk holds, and whether and how each of its layers would run here.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "output.h"
#include "tessera/checkpoint/checkpoint.h"
#include "tessera/core/check.h"

namespace tessera::cli {
namespace {

using nlohmann::json;

constexpr const char* kInspectFooter =
    "Examples:\n"
    "  tessera inspect Qwen3-30B-A3B\n"
    "  tessera inspect --json gpt-oss-20b\n"
    "Reads config.json, the index and the headers of all safetensors files of PATH, no weight. Layers that are alike "
    "are\n"
    "one row. The exit code is 0 if every layer with experts can be loaded here, on the CPU or on a GPU, else 1.";

std::string gigabytes(const json& bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", bytes.get<double>() / 1e9);
  return text;
}

/// "CPU: dense BF16, 1.21 GB" or why not.
std::string runs_text(const char* device, const json& runs) {
  if (!runs.at("runs").get<bool>()) return str_cat(device, ": cannot run: ", runs.at("problem").get<std::string>());
  std::string text =
      str_cat(device, ": ", runs.at("weight_format").get<std::string>(), ", ", runs.at("dtype").get<std::string>(),
              " tokens, ", gigabytes(runs.at("weight_bytes")), " a layer");
  if (!runs.contains("kernels")) return text;
  const char* separator = "; ";
  for (const json& kernel : runs.at("kernels")) {
    text += str_cat(separator, kernel.at("kernel").get<std::string>(), " from ", kernel.at("from_tokens").get<int>(),
                    " tokens");
    separator = ", ";
  }
  return text;
}

/// What a layer is, its number left out.
std::string layer_text(const json& layer) {
  std::string text;
  if (!layer.at("stored").get<std::string>().empty())
    text += layer.at("stored").get<std::string>() + ", " + gigabytes(layer.at("stored_bytes")) + " on disk\n";
  if (layer.contains("note")) text += "            " + layer.at("note").get<std::string>() + "\n";
  const json& cpu = layer.at("cpu");
  const json& gpu = layer.at("hopper_gpu");
  if (cpu.at("problem") == gpu.at("problem") && !cpu.at("runs").get<bool>()) {
    return text + (text.empty() ? "" : "            ") + "cannot run: " + cpu.at("problem").get<std::string>() + "\n";
  }
  return text + "            " + runs_text("CPU", cpu) + "\n            " + runs_text("Hopper GPU", gpu) + "\n";
}

struct LayerRows {
  int first, last;
  std::string text;
};

std::vector<LayerRows> rows_of(const json& layers) {
  std::vector<LayerRows> rows;
  for (const json& layer : layers) {
    const int number = layer.at("layer").get<int>();
    std::string text = layer_text(layer);
    if (!rows.empty() && rows.back().last + 1 == number && rows.back().text == text) {
      rows.back().last = number;
    } else {
      rows.push_back({number, number, std::move(text)});
    }
  }
  return rows;
}

std::string devices_text(const json& found) {
  double weight_bytes = 0;
  for (const json& layer : found.at("layers")) weight_bytes += layer.at("hopper_gpu").value("weight_bytes", 0.0);
  std::string text;
  for (const json& device : found.at("devices")) {
    if (device.at("device") == "cpu") continue;
    text += "GPU         ";
    if (!device.at("usable").get<bool>()) {
      text += (device.at("name") == "" ? "none: " : device.at("name").get<std::string>() + ": ") +
              device.at("why_not").get<std::string>() + "\n";
      continue;
    }
    const double memory = device.at("memory_bytes").get<double>();
    text += device.at("name").get<std::string>() + ", " + gigabytes(memory) + ": the experts of all layers, " +
            gigabytes(weight_bytes) + (weight_bytes < memory ? ", fit\n" : ", do not fit: load a shard of them\n");
  }
  return text;
}

std::string report(const json& found) {
  std::string text = str_cat(found.at("family").get<std::string>(), ", ", found.at("num_layers").get<int>(),
                             " layers, hidden size ", found.at("hidden_size").get<int>(), "\n");
  const int shared = found.at("shared_intermediate_size").get<int>();
  text += str_cat("experts     ", found.at("num_experts").get<int>(), ", ", found.at("top_k").get<int>(),
                  " a token, intermediate size ", found.at("intermediate_size").get<int>(),
                  shared == 0 ? "" : str_cat(", a shared one of ", shared), "\n");
  text +=
      "router      " +
      (found.at("router").is_null() ? "of no kind that route has" : found.at("router").at("kind").get<std::string>()) +
      "\n";
  text += str_cat("files       ", found.at("num_files").get<int>(), ", ", found.at("num_tensors").get<int>(),
                  " tensors, ", gigabytes(found.at("num_bytes")), "\n");
  const std::string quantization = found.at("quantization").get<std::string>();
  if (!quantization.empty()) text += "quantized   " + quantization + "\n";
  for (const LayerRows& rows : rows_of(found.at("layers"))) {
    const std::string numbers = rows.first == rows.last ? str_cat(rows.first) : str_cat(rows.first, "-", rows.last);
    text += "layer " + numbers + std::string(numbers.size() < 6 ? 6 - numbers.size() : 1, ' ') + rows.text;
  }
  return text + devices_text(found);
}

int inspect(const std::string& path, bool as_json) {
  const std::string description = checkpoint::Checkpoint(path).describe();
  const json found = json::parse(description);
  Output output("-");
  output.write(as_json ? description : report(found));
  output.commit();
  const json& layers = found.at("layers");
  const bool all_run = !layers.empty() && std::all_of(layers.begin(), layers.end(), [](const json& layer) {
    return layer.at("cpu").at("runs").get<bool>() || layer.at("hopper_gpu").at("runs").get<bool>();
  });
  return all_run ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_inspect(CLI::App& app) {
  app.footer(kInspectFooter);
  struct InspectOptions {
    std::string path;
    bool as_json = false;
  };
  const auto options = std::make_shared<InspectOptions>();
  app.add_option("PATH", options->path, "Folder with config.json and safetensors files")->required();
  app.add_flag("--json", options->as_json, "A JSON object instead, with all that is known of every layer");
  return [options] { return inspect(options->path, options->as_json); };
}

}  // namespace tessera::cli
