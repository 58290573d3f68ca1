#include "moe/case.h"

#include <algorithm>
#include <numeric>
#include <ostream>
#include <set>

#include "moe/judge/exact_layer.h"
#include "moe/kernels.h"
#include "moe/routing.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::testing {
namespace {

const char* suffix_of(DType dtype) { return dtype == DType::f32 ? "_f32" : dtype == DType::bf16 ? "_bf16" : "_f16"; }

// As Python's packages name them.
const char* python_name(DType dtype) {
  return dtype == DType::f32 ? "float32" : dtype == DType::bf16 ? "bfloat16" : "float16";
}
const char* python_name(moe::GateUpOrder order) {
  if (order == moe::GateUpOrder::gate_first) return "gate_first";
  return order == moe::GateUpOrder::interleaved ? "interleaved" : "up_first";
}
const char* python_name(ActivationKind kind) {
  switch (kind) {
    case ActivationKind::identity: return "identity";
    case ActivationKind::silu: return "silu";
    case ActivationKind::gelu_tanh: return "gelu_tanh";
    case ActivationKind::gelu_erf: return "gelu_erf";
    case ActivationKind::relu: return "relu";
    case ActivationKind::relu_squared: return "relu_squared";
    case ActivationKind::clamped_swiglu: break;
  }
  return "clamped_swiglu";
}

// Formats with kernels on a GPU.
bool has_kernel(moe::WeightFormat format) {
  const auto rows = moe::kernel_rows();
  return std::any_of(rows.begin(), rows.end(), [&](const moe::KernelRow& row) { return row.format == format; });
}

template <class Items, class Text>
std::string list(const Items& items, const Text& text) {
  std::string joined = "[";
  for (const auto& item : items) joined += (joined.size() == 1 ? "" : ", ") + text(item);
  return joined + "]";
}

std::string numbers(const std::vector<int32_t>& values) {
  return list(values, [](int32_t value) { return std::to_string(value); });
}

std::string json_of(const BatteryEntry& entry) {
  const LayerCase& c = entry.c;
  std::string line = "{";
  const auto field = [&](const char* name, const std::string& value) {
    line += str_cat(line.size() == 1 ? "" : ", ", '"', name, "\": ", value);
  };
  const auto quoted = [](std::string_view text) { return str_cat('"', text, '"'); };
  const auto yes = [](bool value) { return std::string(value ? "true" : "false"); };
  field("name", quoted(c.name));
  field("why", quoted(c.why));
  field("dtypes", list(entry.dtypes, [&](DType dtype) { return quoted(python_name(dtype)); }));
  for (const auto& [name, value] : {std::pair{"hidden", c.hidden},
                                    {"intermediate", c.intermediate},
                                    {"experts", c.experts},
                                    {"top_k", c.top_k},
                                    {"tokens", c.tokens},
                                    {"first_expert", c.first_expert},
                                    {"shared_intermediate", c.shared_intermediate}})
    field(name, std::to_string(value));
  field("activation", quoted(python_name(c.activation.kind)));
  field("alpha", str_cat(c.activation.alpha));
  field("beta", str_cat(c.activation.beta));
  field("limit", str_cat(c.activation.limit));
  field("gated", yes(c.gated));
  field("order", quoted(python_name(c.order)));
  field("biases", yes(c.bias));
  field("shared_weight", yes(c.shared_weight));
  field("wide_ids", yes(c.ids_are_64_bit));
  field("topk_weights_dtype", quoted(python_name(c.topk_weights_dtype)));
  field("integers", yes(c.integers));
  field("format", quoted(moe::weight_format_name(c.format)));
  field("dead_experts", yes(c.dead_experts));
  field("x_scales", std::to_string(num_input_scales(c, c.x_scales)));
  field("h_scales", std::to_string(num_input_scales(c, c.h_scales)));
  field("round_like_engines", yes(c.round_like_engines));
  field("expert_map", c.mapped == 0 ? "null" : numbers(expert_map_of(c)));
  field("ids", numbers(ids_of(c)));
  return line + "}";
}

int64_t cost_of(const LayerCase& c) {
  return (int64_t{c.tokens} * c.top_k + c.experts) * c.hidden * (c.intermediate + c.shared_intermediate);
}

// What a spread has of each field, in words: a size once, an option with each type.
std::vector<std::string> kinds_of(const LayerCase& c) {
  const char* shared = c.shared_intermediate == 0                ? "none"
                       : c.shared_intermediate < c.intermediate  ? "narrower"
                       : c.shared_intermediate == c.intermediate ? "as wide"
                                                                 : "wider";
  const char* gated = c.gated ? "gated " : "plain ";
  const char* biases = c.bias ? " biases" : "";
  std::vector<std::string> kinds = {str_cat("hidden ", c.hidden),   str_cat("intermediate ", c.intermediate),
                                    str_cat("experts ", c.experts), str_cat("top_k ", c.top_k),
                                    str_cat("tokens ", c.tokens),   str_cat("first_expert ", c.first_expert)};
  for (const std::string& option :
       {str_cat("family ", c.name.substr(0, c.name.find('_'))), str_cat("routing ", c.routing),
        str_cat("activation ", gated, python_name(c.activation.kind), biases),
        str_cat("order ", gated, python_name(c.order), biases), str_cat("ids of 64 bits ", c.ids_are_64_bit),
        str_cat("map ", gated, c.mapped != 0), str_cat("shared expert ", shared, c.shared_weight ? " weighted" : ""),
        str_cat("shared order ", python_name(c.order), c.shared_intermediate != 0), str_cat("integers ", c.integers),
        str_cat("topk_weights_dtype ", python_name(c.topk_weights_dtype))})
    kinds.push_back(option + suffix_of(c.dtype));
  return kinds;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const LayerCase& c) {
  return out << c.name << (c.name.empty() ? "" : ": ") << "H " << c.hidden << " I " << c.intermediate << " E "
             << c.experts << " k " << c.top_k << " T " << c.tokens << " " << c.routing << " " << dtype_name(c.dtype)
             << (c.gated ? " gated" : " plain") << " act " << static_cast<int>(c.activation.kind)
             << (c.bias ? " bias" : "") << (c.ids_are_64_bit ? " i64" : "") << " first " << c.first_expert << " mapped "
             << c.mapped << " shared " << c.shared_intermediate << (c.shared_weight ? " weighted" : "") << " order "
             << static_cast<int>(c.order) << (c.integers ? " integers" : "") << " " << moe::weight_format_name(c.format)
             << (c.dead_experts ? " dead experts" : "") << (c.round_like_engines ? " rounded like engines" : "")
             << " static scales " << c.x_scales << " " << c.h_scales;
}

moe::LayerConfig config_of(const LayerCase& c) {
  moe::LayerConfig config;
  config.hidden_size = c.hidden;
  config.intermediate_size = c.intermediate;
  config.num_experts = c.experts;
  config.top_k = c.top_k;
  config.dtype = c.dtype;
  config.gated = c.gated;
  config.activation = c.activation;
  config.first_expert = c.first_expert;
  config.num_mapped_experts = c.mapped;
  config.shared_intermediate_size = c.shared_intermediate;
  config.gate_up_order = c.order;
  config.weight_format = c.format;
  config.num_gate_up_input_scales = num_input_scales(c, c.x_scales);
  config.num_down_input_scales = num_input_scales(c, c.h_scales);
  config.round_like_engines = c.round_like_engines;
  return config;
}

int32_t num_input_scales(const LayerCase& c, int32_t scales) {
  return scales == kEachExpert ? c.experts + (c.shared_intermediate != 0 ? 1 : 0) : scales;
}

moe::LayerWeights weights_of(const LayerCase& c, moe::LayerWeights all) {
  if (!c.bias) all.gate_up_bias = all.down_bias = nullptr;
  if (c.format == moe::WeightFormat::dense) all.gate_up_scale = all.down_scale = nullptr;
  if (c.format == moe::WeightFormat::dense || c.shared_intermediate == 0)
    all.shared_gate_up_scale = all.shared_down_scale = nullptr;
  if (c.shared_intermediate == 0) all.shared_gate_up = all.shared_down = nullptr;
  if (c.mapped == 0) all.expert_map = nullptr;
  if (c.x_scales == 0) all.gate_up_input_scale = nullptr;
  if (c.h_scales == 0) all.down_input_scale = nullptr;
  return all;
}

std::vector<int32_t> expert_map_of(const LayerCase& c) {
  std::vector<int32_t> map;
  int32_t expert = c.experts;
  for (int32_t id = 0; id < c.mapped; ++id) {
    if (id % 3 != 1) expert = expert == 0 ? c.experts - 1 : expert - 1;
    map.push_back(id % 3 == 1 ? -1 - id : expert % c.experts);
  }
  return map;
}

bool is_for_gpu(const LayerCase& c) {
  const bool whole_blocks = c.format == moe::WeightFormat::dense || c.intermediate % kScaleGroup == 0;
  return c.dtype != DType::f32 && c.shared_intermediate % c.intermediate == 0 &&
         (c.shared_intermediate <= c.intermediate || whole_blocks);
}

bool runs_on_gpu(const LayerCase& c) { return is_for_gpu(c) && has_kernel(c.format); }

bool is_exact_on_host(const LayerCase& c) { return is_for_gpu(c) && moe::is_exact_on_host(c.activation.kind); }

const std::vector<LayerCase>& battery() {
  static const std::vector<LayerCase> cases = [] {
    std::vector<LayerCase> all;
    for (const BatteryEntry& entry : battery_entries()) {
      for (const DType dtype : entry.dtypes) {
        LayerCase c = entry.c;
        c.dtype = dtype;
        c.name += suffix_of(dtype);
        all.push_back(std::move(c));
      }
    }
    return all;
  }();
  return cases;
}

std::vector<LayerCase> spread_of(const std::vector<LayerCase>& cases) {
  std::vector<size_t> cheapest_first(cases.size());
  std::iota(cheapest_first.begin(), cheapest_first.end(), size_t{0});
  std::stable_sort(cheapest_first.begin(), cheapest_first.end(),
                   [&](size_t a, size_t b) { return cost_of(cases[a]) < cost_of(cases[b]); });
  std::set<std::string> seen;
  std::set<size_t> taken;
  for (const size_t i : cheapest_first) {
    const std::vector<std::string> kinds = kinds_of(cases[i]);
    const bool is_known =
        std::all_of(kinds.begin(), kinds.end(), [&](const auto& kind) { return seen.contains(kind); });
    if (is_known && i % 12 != 0) continue;
    seen.insert(kinds.begin(), kinds.end());
    taken.insert(i);
  }
  std::vector<LayerCase> spread;
  for (const size_t i : taken) spread.push_back(cases[i]);
  return spread;
}

const LayerCase& find_case(std::string_view name) {
  const auto& cases = battery();
  const auto found = std::find_if(cases.begin(), cases.end(), [&](const LayerCase& c) { return c.name == name; });
  if (found == cases.end()) throw Error("case", str_cat("'", name, "'"), "a name of the battery (tests/moe/cases.cc)");
  return *found;
}

std::string battery_json() {
  std::string text = "[\n";
  const auto& entries = battery_entries();
  for (size_t i = 0; i < entries.size(); ++i) text += json_of(entries[i]) + (i + 1 == entries.size() ? "\n" : ",\n");
  return text + "]\n";
}

}  // namespace tessera::testing
