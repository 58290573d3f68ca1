// GEMM 1 of the experts: h[r] = act(gate[e] * x[token of r], up[e] * x[token of r]), rounded once to the layer's type
// or, by the format of the weights, quantised as x is. Rows are gathered by the plan; gate and up of a panel are two
// products, whose results never leave the cache.
#include <algorithm>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/e4m3_rows.h"
#include "cpu/expert_ops.h"
#include "cpu/row_ops.h"
#include "moe/cpu/expert_tiles.h"
#include "moe/cpu/weight_panel.h"
#include "moe/formats.h"
#include "moe/layer_layout.h"

namespace tessera::moe::cpu_steps {
namespace {

bool is_interleaved(const LayerConfig& config) {
  return config.gated && config.gate_up_order == GateUpOrder::interleaved;
}

int64_t matrix_rows(const CpuRun& run, const RowTile& tile) {
  return tile.expert.intermediate_size * (run.config.gated ? 2 : 1);
}

// What quantising leaves of values that share a scale each `group` columns, or have the static one of the tile's
// expert.
void round_by_codes(float* values, int64_t size, int64_t group, const float* fixed) {
  if (fixed != nullptr) return cpu::round_by_e4m3(values, size, *fixed);
  cpu::round_row_by_e4m3(values, size, group);
}

// To the layer's type and back, in place.
void round_to(DType dtype, float* values, int64_t size) {
  uint16_t bits[kPanelColumns];
  if (dtype == DType::f32) return;
  cpu::from_f32(values, size, dtype, bits);
  cpu::to_f32(bits, dtype, size, values);
}

// A token that came quantised, as the numbers that its codes and scales stand for.
void load_codes(const CpuRun& run, size_t token, float* values) {
  const FormatRow& format = format_row(run.config.weight_format);
  const int64_t hidden = run.config.hidden_size, group = format.token_group;
  const auto row = static_cast<int64_t>(token);
  const uint8_t* codes = static_cast<const uint8_t*>(run.inputs.x) + row * hidden;
  const float* scale = run.inputs.x_scale + row * num_token_groups(format, hidden);
  for (int64_t begin = 0; begin < hidden; begin += group)
    cpu::decode_e4m3(codes + begin, std::min(group, hidden - begin), *scale++, values + begin);
}

// The tokens of the tile's rows as an operand: where they lie if that will do, else gathered into `a`. What stands
// below the last row does not matter.
const void* load_tokens(const CpuRun& run, const RowTile& tile, std::byte* a) {
  const cpu::PlainGemm& gemm = tile.expert.gate_up.gemm();
  const DType dtype = run.config.dtype;
  const auto* x = static_cast<const std::byte*>(run.inputs.x);
  const auto hidden = static_cast<size_t>(run.config.hidden_size);
  const size_t row_bytes = hidden * run.element_bytes();
  const FormatRow& format = format_row(run.config.weight_format);
  const bool quantizes = format.quantizes_rows();
  const float* const fixed =
      input_scale(run.weights.gate_up_input_scale, run.config.num_gate_up_input_scales, tile.task);
  const bool converts = gemm.operand() != dtype || quantizes;
  if (tile.is_shared && !converts && gemm.height_for(tile.num_rows) == tile.num_rows)
    return x + static_cast<size_t>(tile.first_row) * row_bytes;
  for (int64_t row = 0; row < tile.num_rows; ++row) {
    const auto place = static_cast<size_t>(tile.first_row + row);
    const size_t token = tile.is_shared ? place : static_cast<size_t>(run.workspace.plan.row_token[place]);
    const std::byte* source = x + token * row_bytes;
    std::byte* target = a + static_cast<size_t>(row) * hidden * dtype_size(gemm.operand());
    if (run.inputs.x_scale != nullptr) {
      load_codes(run, token, reinterpret_cast<float*>(target));
    } else if (converts) {
      auto* values = reinterpret_cast<float*>(target);
      cpu::to_f32(source, dtype, run.config.hidden_size, values);
      if (quantizes) round_by_codes(values, run.config.hidden_size, format.token_group, fixed);
    } else {
      std::memcpy(target, source, row_bytes);
    }
  }
  return a;
}

// Of the panel's columns from `begin`: [width] of gate or of x, and of a gated expert [width] of up after it.
void load_bias(const CpuRun& run, const RowTile& tile, int64_t begin, float* bias) {
  const LayerConfig& config = run.config;
  const int64_t width = tile.expert.gate_up.width();
  const auto* values = static_cast<const std::byte*>(run.weights.gate_up_bias) +
                       static_cast<size_t>(tile.task * matrix_rows(run, tile)) * run.element_bytes();
  const auto load = [&](int64_t row, int64_t count, float* out) {
    cpu::to_f32(values + static_cast<size_t>(row) * run.element_bytes(), config.dtype, count, out);
  };
  if (!config.gated) return load(begin, width, bias);
  if (is_interleaved(config)) {
    float pairs[2 * kPanelColumns];
    load(2 * begin, 2 * width, pairs);
    return cpu::split_pairs(pairs, width, bias, bias + width);
  }
  load(gate_begin(config.gate_up_order, tile.expert.intermediate_size) + begin, width, bias);
  load(up_begin(config.gate_up_order, tile.expert.intermediate_size) + begin, width, bias + width);
}

// c holds one [height, width] result, or two: gate and up, or the first and second half of the interleaved columns.
void store_activated(const CpuRun& run, const RowTile& tile, int64_t panel, const float* c) {
  const LayerConfig& config = run.config;
  const PanelProduct& product = tile.expert.gate_up;
  const int64_t width = product.width();
  const int64_t begin = product.begin(panel);
  const int64_t skipped = product.new_begin(panel) - begin;
  const int64_t num_new = product.num_new(panel);
  const float* second_c = c + product.gemm().height_for(tile.num_rows) * width;
  const bool has_bias = run.weights.gate_up_bias != nullptr && !tile.is_shared;
  float bias[2 * kPanelColumns] = {};
  if (has_bias) load_bias(run, tile, begin, bias);
  float first[kPanelColumns];  // gate, or x of a non-gated expert
  float second[kPanelColumns];
  float h[kPanelColumns];
  std::byte* out = tile.is_shared ? run.workspace.shared_intermediate : run.workspace.intermediate;
  const DType out_dtype = run.products.intermediate_dtype();
  const FormatRow& format = format_row(config.weight_format);
  const float* const fixed = input_scale(run.weights.down_input_scale, config.num_down_input_scales, tile.task);
  for (int64_t row = 0; row < tile.num_rows; ++row) {
    if (is_interleaved(config)) {
      cpu::split_pairs(c + row * width, width / 2, first, second);
      cpu::split_pairs(second_c + row * width, width / 2, first + width / 2, second + width / 2);
    } else {
      std::copy_n(c + row * width, width, first);
      if (config.gated) std::copy_n(second_c + row * width, width, second);
    }
    if (has_bias) cpu::add_bias(bias, width, first);
    if (has_bias && config.gated) cpu::add_bias(bias + width, width, second);
    if (config.round_like_engines) {
      round_to(config.dtype, first, width);
      if (config.gated) round_to(config.dtype, second, width);
    }
    if (config.gated) {
      cpu::apply_gated(config.activation, first, second, width, h);
    } else {
      cpu::apply_plain(config.activation, first, width, h);
    }
    const int64_t place = (tile.first_row + row) * tile.expert.intermediate_size + begin + skipped;
    if (config.round_like_engines) round_to(config.dtype, h, width);
    if (format.quantizes_rows()) round_by_codes(h + skipped, num_new, format.row_group, fixed);
    cpu::from_f32(h + skipped, num_new, out_dtype, out + static_cast<size_t>(place) * dtype_size(out_dtype));
  }
}

void gate_up_tile(const CpuRun& run, const RowTile& tile, const TileScratch& scratch) {
  const LayerConfig& config = run.config;
  const PanelProduct& product = tile.expert.gate_up;
  const int64_t height = product.gemm().height_for(tile.num_rows);
  const int64_t width = product.width();
  const void* a = load_tokens(run, tile, scratch.a);
  float* const first = scratch.c;
  float* const second = scratch.c + height * width;

  const int64_t intermediate_size = tile.expert.intermediate_size;
  const ScaleOffsets offsets = tile.is_shared ? ScaleOffsets{} : config.scale_offsets;
  ExpertWeight first_weight{
      .elements = tile.is_shared ? run.weights.shared_gate_up : run.weights.gate_up,
      .scales = tile.is_shared ? run.weights.shared_gate_up_scale : run.weights.gate_up_scale,
      .first_row = tile.is_shared ? 0 : tile.task * matrix_rows(run, tile),
      .matrix = tile.is_shared ? 0 : tile.task * (config.gated ? 2 : 1),
      .depth = config.hidden_size,
      .pairs_of_rows = is_interleaved(config),
      .row_offsets = {offsets.gate, offsets.up},
      .column_offset = 0,
      .scale_extent = tile.is_shared ? shared_gate_up_scale_extent(config) : gate_up_scale_extent(config)};
  ExpertWeight second_weight = first_weight;  // up, whose scales stand behind those of gate
  if (config.gated && !is_interleaved(config)) {
    first_weight.first_row += gate_begin(config.gate_up_order, intermediate_size);
    second_weight.first_row += up_begin(config.gate_up_order, intermediate_size);
    second_weight.matrix += 1;
    second_weight.row_offsets[0] = offsets.up;
  }
  const auto multiply = [&](const ExpertWeight& weight, int64_t row, float* out) {
    product.gemm().run(height, a, load_panel(run, weight, row, width, scratch.decoded), out, scratch.library);
  };
  for (int64_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const int64_t begin = product.begin(panel);
    if (!config.gated) {
      multiply(first_weight, begin, first);
    } else if (is_interleaved(config)) {
      multiply(first_weight, 2 * begin, first);
      multiply(first_weight, 2 * begin + width, second);
    } else {
      multiply(first_weight, begin, first);
      multiply(second_weight, begin, second);
    }
    store_activated(run, tile, panel, scratch.c);
  }
}

}  // namespace

void gate_up(const CpuRun& run) { launch_expert_tiles(run, &ExpertProducts::gate_up, gate_up_tile); }

}  // namespace tessera::moe::cpu_steps
