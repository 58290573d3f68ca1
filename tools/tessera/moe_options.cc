#include "moe_options.h"
#include "option_text.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "integer_option.h"
#include "moe/formats.h"
#include "moe/kernels.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

constexpr int32_t kMaxTokens = 1 << 20;
constexpr int32_t kMaxWidth = 1 << 20;
constexpr int32_t kMaxCtas = 4096;

int32_t parse_tokens(std::string_view text) {
  int32_t tokens = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, tokens);
  if (error != std::errc() || stop != end || tokens < 1 || tokens > kMaxTokens)
    throw Error("--tokens", "'" + escaped(text) + "'",
                str_cat("numbers from 1 to ", kMaxTokens, ", with commas between"));
  return tokens;
}

void require_width(const char* option, int32_t value, const moe::FormatRow& format) {
  const int32_t multiple = moe::width_multiple(format);
  if (value <= 0 || value > kMaxWidth || value % multiple != 0)
    throw Error(option, str_cat(value), str_cat("a multiple of ", multiple, " up to ", kMaxWidth));
}

batching::TaskOrder parse_order(const std::string& name) {
  for (const auto order :
       {batching::TaskOrder::natural, batching::TaskOrder::heavy_first, batching::TaskOrder::interleaved}) {
    if (batching::task_order_name(order) == name) return order;
  }
  throw Error("--order", "'" + escaped(name) + "'", "natural, heavy-first or interleaved");
}

std::string_view activation_name(const moe::LayerConfig& config) {
  switch (config.activation.kind) {
    case ActivationKind::silu: return config.gated ? "SwiGLU" : "SiLU";
    case ActivationKind::gelu_tanh: return config.gated ? "GeGLU (tanh)" : "GELU (tanh)";
    case ActivationKind::gelu_erf: return config.gated ? "GeGLU" : "GELU";
    case ActivationKind::clamped_swiglu: return "clamped SwiGLU";
    case ActivationKind::relu: return config.gated ? "gated ReLU" : "ReLU";
    case ActivationKind::relu_squared: return "ReLU^2";
    case ActivationKind::identity: return "identity";
  }
  return "unknown";
}

}  // namespace

void add_moe_options(CLI::App& app, MoeOptions& options) {
  app.add_option("--preset", options.preset, "Sizes of a published model, listed below")->type_name("NAME");
  constexpr int32_t kAnySize = std::numeric_limits<int32_t>::max();
  add_integer(app, "--hidden", options.hidden, "Or sizes one by one: H, a multiple of 8; fp8: of 16", 0, kAnySize,
              false);
  add_integer(app, "--intermediate", options.intermediate, "I, a multiple of the same", 0, kAnySize, false);
  add_integer(app, "--experts", options.experts, "E, 1 to 1024", 0, kAnySize, false);
  add_integer(app, "--top-k", options.top_k, "Experts a token, 1 to 32", 0, kAnySize, false);
  app.add_option("--format", options.format, "Of the weights: dense (of the layer's type), fp8-block or fp8-channel")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "Tokens of a run; each with every routing")
      ->type_name("N[,N...]")
      ->required();
  app.add_option("--routing", options.routings, "balanced, best, worst, random, zipf, one")
      ->type_name("NAME[,NAME...]")
      ->capture_default_str();
  add_integer(app, "--seed", options.seed, "Of random and zipf", uint64_t{0});
  app.add_option("--order", options.order, "Of the experts on a GPU: natural, heavy-first, interleaved")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--kernel", options.kernel,
                 "Of both products on a GPU, by its name in `explain moe`; else by the load")
      ->type_name("NAME");
  add_integer(app, "--back-every", options.back_every, "1 of this many clusters takes light experts first, 0 = none",
              0);
  add_integer(app, "--cluster", options.cluster_size, "CTAs that share weights", 1, 2);
  add_integer(app, "--ctas", options.num_ctas, "CTAs of a launch, 0 = as many as work at a time", 0, kMaxCtas);
}

std::string preset_list() {
  std::string names;
  for (const moe::Preset& preset : moe::presets()) names += (names.empty() ? "" : ", ") + std::string(preset.name);
  return labelled("Presets:", names);
}

moe::Preset moe_shape(const MoeOptions& options) {
  const bool has_sizes = options.hidden != 0 || options.intermediate != 0 || options.experts != 0 || options.top_k != 0;
  if (!options.preset.empty() && has_sizes) throw Error("sizes of the layer", "--preset and sizes", "one of the two");
  const moe::WeightFormat format = moe::parse_weight_format(options.format, "--format");
  if (!options.preset.empty()) {
    moe::Preset shape = moe::find_preset(options.preset);
    shape.config.weight_format = format;
    return shape;
  }
  if (!has_sizes) {
    throw Error("sizes of the layer", "none", "--preset, or --hidden, --intermediate, --experts and --top-k");
  }
  require_width("--hidden", options.hidden, moe::format_row(format));
  require_width("--intermediate", options.intermediate, moe::format_row(format));
  if (options.experts < 1 || options.experts > moe::kMaxExperts)
    throw Error("--experts", str_cat(options.experts), str_cat("1..", moe::kMaxExperts));
  const int32_t most = std::min(options.experts, moe::kMaxTopK);
  if (options.top_k < 1 || options.top_k > most) {
    throw Error("--top-k", str_cat(options.top_k),
                str_cat("1..", most, " (", options.experts, " experts, at most ", moe::kMaxTopK, ")"));
  }
  moe::Preset shape{"custom", "sizes from options", {}, options.experts};
  shape.config.hidden_size = options.hidden;
  shape.config.intermediate_size = options.intermediate;
  shape.config.num_experts = options.experts;
  shape.config.top_k = options.top_k;
  shape.config.weight_format = format;
  return shape;
}

std::vector<MoeCase> moe_cases(const MoeOptions& options, const moe::Preset& shape) {
  std::vector<MoeCase> cases;
  for (const std::string_view tokens : split_list(options.tokens)) {
    for (const std::string_view routing : split_list(options.routings)) {
      MoeCase moe_case{parse_tokens(tokens), moe::parse_routing(routing, "--routing"), {}};
      moe_case.topk_ids = moe::make_topk_ids(shape, moe_case.routing, moe_case.num_tokens, options.seed);
      cases.push_back(std::move(moe_case));
    }
  }
  return cases;
}

moe::LaunchPolicy launch_policy(const MoeOptions& options) {
  moe::LaunchPolicy policy{parse_order(options.order), options.num_ctas, options.cluster_size, options.back_every};
  if (options.kernel.empty()) return policy;
  std::string names;
  for (const moe::KernelRow& row : moe::kernel_rows()) {
    names += (names.empty() ? "" : ", ") + std::string(row.name);
    if (row.name == options.kernel) policy.kernel = options.kernel.c_str();
  }
  if (policy.kernel == nullptr) throw Error("--kernel", "'" + escaped(options.kernel) + "'", names);
  return policy;
}

std::string describe(const moe::Preset& shape) {
  const moe::LayerConfig& config = shape.config;
  std::string text = str_cat(shape.name, ": H ", config.hidden_size, ", I ", config.intermediate_size, ", ",
                             config.num_experts, " experts, top ", config.top_k, ", ", activation_name(config));
  if (shape.num_global_experts > config.num_experts) {
    text += str_cat(", experts ", config.first_expert, "..", config.first_expert + config.num_experts - 1, " of ",
                    shape.num_global_experts);
  }
  if (config.weight_format != moe::WeightFormat::dense)
    text += str_cat(", ", moe::weight_format_name(config.weight_format), " weights");
  return text;
}

nlohmann::ordered_json shape_json(const moe::Preset& shape) {
  const moe::LayerConfig& config = shape.config;
  return {{"name", std::string(shape.name)},
          {"hidden", config.hidden_size},
          {"intermediate", config.intermediate_size},
          {"experts", config.num_experts},
          {"top_k", config.top_k},
          {"activation", std::string(activation_name(config))},
          {"first_expert", config.first_expert},
          {"global_experts", shape.num_global_experts}};
}

}  // namespace tessera::cli
