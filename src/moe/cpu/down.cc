// GEMM 2 of the experts: y[r] = down[e] * h[r] + bias, rounded once to the layer's type. Rows of an expert stand one
// after the other, as gate_up left them: where it quantised them, as the fp32 numbers that codes and scales stand for.
#include "cpu/convert.h"
#include "cpu/row_ops.h"
#include "moe/cpu/expert_tiles.h"
#include "moe/cpu/weight_panel.h"

namespace tessera::moe::cpu_steps {
namespace {

// The tile's rows of the intermediate as an operand. Those read beyond an expert's last are another's or nobody's.
const void* load_intermediate(const CpuRun& run, const RowTile& tile, std::byte* a) {
  const std::byte* intermediate = tile.is_shared ? run.workspace.shared_intermediate : run.workspace.intermediate;
  const int64_t depth = tile.expert.intermediate_size;
  const DType dtype = run.products.intermediate_dtype();
  const std::byte* rows = intermediate + static_cast<size_t>(tile.first_row * depth) * dtype_size(dtype);
  if (tile.expert.down.gemm().operand() == dtype) return rows;
  cpu::to_f32(rows, dtype, tile.num_rows * depth, reinterpret_cast<float*>(a));
  return a;
}

void down_tile(const CpuRun& run, const RowTile& tile, const TileScratch& scratch) {
  const PanelProduct& product = tile.expert.down;
  const DType dtype = run.config.dtype;
  const int64_t hidden = run.config.hidden_size;
  const int64_t width = product.width();
  const void* a = load_intermediate(run, tile, scratch.a);
  const int64_t matrix_begin = tile.is_shared ? 0 : tile.task * hidden;
  const ExpertWeight weight{
      .elements = tile.is_shared ? run.weights.shared_down : run.weights.down,
      .scales = tile.is_shared ? run.weights.shared_down_scale : run.weights.down_scale,
      .first_row = matrix_begin,
      .matrix = tile.is_shared ? 0 : tile.task,
      .depth = tile.expert.intermediate_size,
      .pairs_of_rows = false,
      .row_offsets = {0, 0},
      .column_offset = tile.is_shared ? 0 : run.config.scale_offsets.down,
      .scale_extent = tile.is_shared ? shared_down_scale_extent(run.config) : down_scale_extent(run.config)};
  const bool has_bias = run.weights.down_bias != nullptr && !tile.is_shared;
  std::byte* out = tile.is_shared ? run.workspace.shared_rows : run.workspace.rows;
  for (int64_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const int64_t begin = product.begin(panel);
    const int64_t skipped = product.new_begin(panel) - begin;
    const int64_t num_new = product.num_new(panel);
    const void* weights = load_panel(run, weight, begin, width, scratch.decoded);
    product.gemm().run(product.gemm().height_for(tile.num_rows), a, weights, scratch.c, scratch.library);
    float bias[kPanelColumns];
    if (has_bias) {
      const auto* values = static_cast<const std::byte*>(run.weights.down_bias);
      cpu::to_f32(values + static_cast<size_t>(matrix_begin + begin) * run.element_bytes(), dtype, width, bias);
    }
    for (int64_t row = 0; row < tile.num_rows; ++row) {
      float* const results = scratch.c + row * width;
      if (has_bias) cpu::add_bias(bias, width, results);
      const int64_t place = (tile.first_row + row) * hidden + begin + skipped;
      cpu::from_f32(results + skipped, num_new, dtype, out + static_cast<size_t>(place) * run.element_bytes());
    }
  }
}

}  // namespace

void down(const CpuRun& run) { launch_expert_tiles(run, &ExpertProducts::down, down_tile); }

}  // namespace tessera::moe::cpu_steps
