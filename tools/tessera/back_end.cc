#include "back_end.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "option_text.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

using classifier::Form;
using classifier::LayerPrecision;
using classifier::Precision;
using cuda::DeviceFacts;

namespace {

/// --form, refused in the option's name.
Form parse_form(const std::string& name) {
  return with_options_named({"form"}, [&] { return classifier::parse_form(name); });
}

std::string in_quotes(std::string_view text) { return "'" + escaped(text) + "'"; }

/// Why no GPU can be used although there are some.
std::string why_none_usable(const std::vector<DeviceFacts>& gpus) {
  std::string reasons;
  for (const DeviceFacts& gpu : gpus)
    reasons += (reasons.empty() ? "" : "; ") + gpu_name(gpu) + ": " + cuda::why_unusable(gpu);
  return reasons;
}

std::string list_names(const std::vector<DeviceFacts>& gpus) {
  std::string names;
  for (const DeviceFacts& gpu : gpus) names += (names.empty() ? "" : ", ") + gpu_name(gpu);
  return names;
}

/// The GPU that a number of --device cuda:... names.
const DeviceFacts& find_gpu(const std::string& device, std::string_view number, const Devices& devices) {
  int index = -1;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
  if (error != std::errc() || end != number.data() + number.size() || index < 0) {
    throw Error("--device", in_quotes(device), "numbers of GPUs between commas, as in cuda:0,2");
  }
  for (const DeviceFacts& gpu : devices.gpus) {
    if (gpu.index != index) continue;
    if (const std::string why = cuda::why_unusable(gpu); !why.empty())
      throw Error("--device", gpu_name(gpu), "one that can be used: " + why);
    return gpu;
  }
  throw Error("--device", in_quotes(device), "what this machine has: " + list_names(devices.gpus));
}

std::vector<DeviceFacts> usable_gpus(const Devices& devices) {
  std::vector<DeviceFacts> usable;
  for (const DeviceFacts& gpu : devices.gpus) {
    if (cuda::why_unusable(gpu).empty()) usable.push_back(gpu);
  }
  return usable;
}

/// The GPUs of --device cuda or cuda:0,2.
std::vector<DeviceFacts> named_gpus(const std::string& device, const Devices& devices) {
  static constexpr std::string_view kPrefix = "cuda:";
  const bool lists_numbers = device.starts_with(kPrefix);
  if (devices.gpus.empty()) throw Error("--device", in_quotes(device), "auto or cpu: " + devices.why_none);
  std::vector<DeviceFacts> gpus;
  if (!lists_numbers) {
    gpus = usable_gpus(devices);
    if (gpus.empty()) throw Error("--device", in_quotes(device), "auto or cpu: " + why_none_usable(devices.gpus));
    return gpus;
  }
  for (const std::string_view number : split_list(std::string_view(device).substr(kPrefix.size()))) {
    const DeviceFacts& gpu = find_gpu(device, number, devices);
    if (std::any_of(gpus.begin(), gpus.end(), [&](const DeviceFacts& other) { return other.index == gpu.index; })) {
      throw Error("--device", in_quotes(device) + ", which names GPU " + std::to_string(gpu.index) + " twice",
                  "each GPU once");
    }
    gpus.push_back(gpu);
  }
  return gpus;
}

std::optional<Precision> find_precision(std::string_view name) {
  for (const Precision precision : {Precision::fp16, Precision::bf16, Precision::fp32, Precision::fp64}) {
    if (name == precision_name(precision)) return precision;
  }
  return std::nullopt;
}

/// --layer-precision on top of one precision for all.
LayerPrecision parse_layer_precision(const std::string& list, Precision all_layers) {
  LayerPrecision precision{.convolutions = all_layers, .experts = all_layers, .head = all_layers};
  if (list.empty()) return precision;
  const std::string expected = "LAYER=PRECISION of convolutions, experts, head and fp16, bf16, fp32, between commas";
  const std::pair<std::string_view, Precision*> layers[] = {
      {"convolutions", &precision.convolutions}, {"experts", &precision.experts}, {"head", &precision.head}};
  std::vector<std::string_view> seen;
  for (const std::string_view assignment : split_list(list)) {
    const size_t equals = std::min(assignment.find('='), assignment.size());
    const std::string_view name = assignment.substr(0, equals);
    const auto layer = std::find_if(std::begin(layers), std::end(layers),
                                    [&](const auto& candidate) { return candidate.first == name; });
    const auto value = equals < assignment.size() ? find_precision(assignment.substr(equals + 1)) : std::nullopt;
    if (layer == std::end(layers) || !value || *value == Precision::fp64) {
      throw Error("--layer-precision", in_quotes(assignment), expected);
    }
    if (std::find(seen.begin(), seen.end(), name) != seen.end()) {
      throw Error("--layer-precision", "the layer " + in_quotes(name) + " twice", "it once");
    }
    seen.push_back(name);
    *layer->second = *value;
  }
  return precision;
}

LayerPrecision select_gpu_precision(const BackEndOptions& options) {
  const bool chosen_here = options.precision == "default" || options.precision == "auto";
  const Precision precision = chosen_here ? Precision::fp16 : find_precision(options.precision).value();
  if (precision == Precision::fp64) {
    throw Error("--precision", "'fp64' on a GPU", "fp16, bf16 or fp32, or --device cpu: the oracle runs there");
  }
  return parse_layer_precision(options.layer_precision, precision);
}

/// `why` ends the messages with the reason for the CPU, where that was not the user's choice.
Precision select_cpu_precision(const BackEndOptions& options, bool multiplies_bf16, const std::string& why) {
  if (options.precision == "default") return Precision::fp32;
  if (options.precision == "auto") return multiplies_bf16 ? Precision::bf16 : Precision::fp32;
  const Precision precision = find_precision(options.precision).value();
  if (precision == Precision::fp16) throw Error("--precision", "'fp16' on the CPU", "bf16 or fp32" + why);
  return precision;
}

void refuse_gpu_options(const BackEndOptions& options, const std::string& why) {
  if (options.form != "auto") {
    throw Error("--form", in_quotes(options.form) + " on the CPU", "auto, as forms are chosen on GPUs only" + why);
  }
  if (!options.layer_precision.empty()) {
    throw Error("--layer-precision", in_quotes(options.layer_precision) + " on the CPU",
                "--precision, as layers differ on GPUs only" + why);
  }
  if (options.expert_threshold > 0) {
    throw Error("--expert-threshold", str_cat(options.expert_threshold, " on the CPU"),
                "0, as experts are skipped on GPUs only" + why);
  }
}

void check_words(const BackEndOptions& options) {
  const std::string& device = options.device;
  if (device != "auto" && device != "cpu" && device != "cuda" && !device.starts_with("cuda:")) {
    throw Error("--device", in_quotes(device), "auto, cpu, cuda, or GPUs by number as in cuda:0,2");
  }
  if (options.precision != "default" && options.precision != "auto" && !find_precision(options.precision)) {
    throw Error("--precision", in_quotes(options.precision), "default, auto, fp16, bf16, fp32 or fp64");
  }
  static_cast<void>(parse_form(options.form));
  static_cast<void>(parse_layer_precision(options.layer_precision, Precision::fp16));
  if (!(options.expert_threshold >= 0 && options.expert_threshold < 1)) {
    throw Error("--expert-threshold", str_cat(options.expert_threshold), "a router weight in [0, 1)");
  }
}

}  // namespace

Devices find_devices() {
  Devices devices;
  devices.gpus = cuda::devices(devices.why_none);
  devices.cpu_multiplies_bf16 = classifier::cpu_supports_bf16();
  return devices;
}

Precision BackEnd::coarsest_precision() const {
  if (!on_gpu()) return cpu_precision;
  const Precision layers[] = {gpu_precision.convolutions, gpu_precision.experts, gpu_precision.head};
  for (const Precision precision : {Precision::bf16, Precision::fp16}) {
    if (std::find(std::begin(layers), std::end(layers), precision) != std::end(layers)) return precision;
  }
  return Precision::fp32;
}

BackEnd select_back_end(const BackEndOptions& options, const Devices& devices) {
  check_words(options);
  BackEnd back_end;
  if (options.device == "auto") {
    back_end.gpus = usable_gpus(devices);
    if (options.precision == "fp64") {  // what was asked for decides, as --device does
      back_end.gpus.clear();
      back_end.why_cpu = "fp64, the oracle, runs there";
    } else if (back_end.gpus.empty()) {
      back_end.why_cpu = devices.gpus.empty() ? devices.why_none : why_none_usable(devices.gpus);
    }
  } else if (options.device != "cpu") {
    back_end.gpus = named_gpus(options.device, devices);
  }
  if (back_end.on_gpu()) {
    back_end.gpu_precision = select_gpu_precision(options);
    back_end.form = parse_form(options.form);
    back_end.expert_threshold = options.expert_threshold;
    return back_end;
  }
  const std::string why = back_end.why_cpu.empty() ? "" : " (the CPU, because: " + back_end.why_cpu + ")";
  refuse_gpu_options(options, why);
  back_end.cpu_precision = select_cpu_precision(options, devices.cpu_multiplies_bf16, why);
  return back_end;
}

std::string precision_name(Precision precision) {
  switch (precision) {
    case Precision::fp32: return "fp32";
    case Precision::bf16: return "bf16";
    case Precision::fp64: return "fp64";
    case Precision::fp16: return "fp16";
  }
  return "?";
}

std::string precision_name(const LayerPrecision& precision) {
  if (precision.experts == precision.convolutions && precision.head == precision.convolutions) {
    return precision_name(precision.convolutions);
  }
  return "convolutions " + precision_name(precision.convolutions) + ", experts " + precision_name(precision.experts) +
         ", head " + precision_name(precision.head);
}

std::string describe_arithmetic(const BackEnd& back_end) {
  if (!back_end.on_gpu()) return precision_name(back_end.cpu_precision);
  std::string text = precision_name(back_end.gpu_precision) + ", form " + classifier::form_name(back_end.form);
  if (back_end.expert_threshold > 0) text += str_cat(", experts below ", back_end.expert_threshold, " skipped");
  return text;
}

std::string gpu_name(const DeviceFacts& gpu) { return str_cat("GPU ", gpu.index, " (", escaped(gpu.name), ")"); }

}  // namespace tessera::cli
