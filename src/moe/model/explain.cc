#include "moe/model/explain.h"

#include <algorithm>
#include <cmath>

#include "moe/formats.h"
#include "moe/kernels.h"
#include "moe/layer_layout.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

/// One GEMM as the cost model sees it.
struct Gemm {
  const ResolvedLaunch& launch;
  grouped::Role role;
  int32_t k, n;              // n: output columns
  double expert_bytes;       // of an expert's weights and scales
  double a_bytes_per_row;    // of a routed row of A, from memory: tokens that several experts read come once
  double out_bytes_per_row;  // of a routed row of the result
  double flops_per_second;   // of the device's dense products of such operands

  grouped::Tiling tiling() const { return launch.tiling(role, n); }
};

double expert_bytes(const LayerConfig& config, int64_t rows, int64_t columns) {
  const FormatRow& format = format_row(config.weight_format);
  return static_cast<double>(weight_bytes(format, config.dtype, rows, columns) + scale_bytes(format, rows, columns));
}

int32_t num_first_matrices(const LayerConfig& config) { return config.gated ? 2 : 1; }

// Blocks of gate and of up rows are apart.
double first_weight_bytes(const LayerConfig& config) {
  return num_first_matrices(config) * expert_bytes(config, config.intermediate_size, config.hidden_size);
}

/// Of a row of tokens or of the intermediate as the products read it: quantised, codes and their scales.
double operand_row_bytes(const LayerConfig& config, int32_t columns) {
  const FormatRow& format = format_row(config.weight_format);
  if (!format.quantizes_rows()) return static_cast<double>(dtype_size(config.dtype)) * columns;
  const int32_t groups = (columns + format.row_group - 1) / format.row_group;
  return columns + static_cast<double>(sizeof(float)) * groups;
}

/// Tensor cores multiply 8-bit operands twice as fast as those of 16 bits, of which the rate is.
double dense_flops_per_second(const LayerConfig& config, const DeviceRates& rates) {
  return rates.dense_flops_per_second * (format_row(config.weight_format).quantizes_rows() ? 2.0 : 1.0);
}

/// The cost of every tile of an expert, which is to say of its CTAs together: all take as long as the slowest. Bytes
/// are shared out: a column block's weights over its row blocks, a row over its column blocks. Returns the FLOPs that
/// are really multiplied.
double add_tiles(const Gemm& gemm, int32_t expert, int32_t rows, double cta_flops_per_second,
                 std::vector<ExplainedTile>& tiles) {
  const grouped::Tiling tiling = gemm.tiling();
  const auto columns_and_k = gemm.launch.kernel->tile_columns_and_k(gemm.role, gemm.launch.cluster_size);
  const int32_t tile_columns = columns_and_k.first, tile_k = columns_and_k.second;
  const double padded_k = std::ceil(static_cast<double>(gemm.k) / tile_k) * tile_k;
  const int32_t num_tiles = tiling.num_tiles(rows);
  std::vector<int32_t> row_blocks(static_cast<size_t>(tiling.num_n_blocks), 0);
  const auto for_each_cta = [&](int32_t tile_idx, const auto& body) {
    for (int32_t rank = 0; rank < gemm.launch.cluster_size; ++rank) {
      const grouped::CtaTile tile = tiling.cta_tile(rows, tile_idx, rank);
      if (tile.n_block < tiling.num_n_blocks) body(tile);
    }
  };
  for (int32_t tile_idx = 0; tile_idx < num_tiles; ++tile_idx) {
    for_each_cta(tile_idx, [&](const grouped::CtaTile& tile) { ++row_blocks[static_cast<size_t>(tile.n_block)]; });
  }
  const double row_bytes = gemm.a_bytes_per_row + gemm.out_bytes_per_row;
  double computed_flops = 0.0;
  for (int32_t tile_idx = 0; tile_idx < num_tiles; ++tile_idx) {
    ExplainedTile explained{expert, tile_idx, {}};
    double all_rows = 0.0, rows_with_tokens = 0.0;
    for_each_cta(tile_idx, [&](const grouped::CtaTile& tile) {
      const double granule = gemm.launch.kernel->row_granule;
      const double computed_rows = std::ceil(tile.num_rows / granule) * granule;
      const double flops = 2.0 * computed_rows * tile_columns * padded_k;
      computed_flops += flops;
      all_rows += computed_rows;
      rows_with_tokens += tile.num_rows;
      explained.cost.compute_seconds = std::max(explained.cost.compute_seconds, flops / cta_flops_per_second);
      explained.cost.bytes +=
          (gemm.expert_bytes / row_blocks[static_cast<size_t>(tile.n_block)] + row_bytes * tile.num_rows) /
          tiling.num_n_blocks;
    });
    if (all_rows > 0.0) explained.padding = 1.0 - rows_with_tokens / all_rows;
    tiles.push_back(explained);
  }
  return computed_flops;
}

KernelWork timed(const Work& necessary, const DeviceRates& rates, double flops_per_second) {
  KernelWork work;
  static_cast<Work&>(work) = necessary;
  work.flops_seconds = work.flops / flops_per_second;
  work.bytes_seconds = work.bytes / rates.hbm_bytes_per_second;
  work.predicted_seconds = work.floor_seconds();
  return work;
}

GemmExplanation explain_gemm(const Gemm& gemm, const Work& work, std::span<const int32_t> expert_counts,
                             const DeviceRates& rates) {
  std::vector<int32_t> tiles_per_expert;
  std::vector<double> cost_per_expert;
  for (const int32_t count : expert_counts) {
    tiles_per_expert.push_back(gemm.tiling().num_tiles(count));
    cost_per_expert.push_back(count);  // the device's plan orders by rows
  }
  GemmExplanation result;
  static_cast<KernelWork&>(result) = timed(work, rates, gemm.flops_per_second);
  const int32_t ctas_together = gemm.launch.kernel->ctas_per_multiprocessor;  // share a multiprocessor's rates
  const double cta_flops_per_second = gemm.flops_per_second / rates.num_multiprocessors / ctas_together;
  for (const int32_t expert : batching::task_order(tiles_per_expert, gemm.launch.order, cost_per_expert)) {
    result.computed_flops +=
        add_tiles(gemm, expert, expert_counts[static_cast<size_t>(expert)], cta_flops_per_second, result.tiles);
  }
  std::vector<TileCost> costs;
  for (const ExplainedTile& tile : result.tiles) costs.push_back(tile.cost);
  result.num_lanes = gemm.launch.num_ctas / gemm.launch.cluster_size;
  result.runs = simulate_queue(
      costs, {result.num_lanes, rates.hbm_bytes_per_second,
              rates.cta_bytes_per_second / ctas_together * gemm.launch.cluster_size, gemm.launch.back_every});
  result.predicted_seconds = 0.0;
  for (const TileRun& run : result.runs) result.predicted_seconds = std::max(result.predicted_seconds, run.end);
  return result;
}

// The model has as many CTAs as are resident together.
ResolvedLaunch explained_launch(const LayerConfig& config, const LaunchPolicy& policy, int64_t num_tokens,
                                const DeviceRates& rates) {
  if (policy.num_ctas < 0 || policy.num_ctas > rates.num_multiprocessors) {
    throw Error("ctas", str_cat(policy.num_ctas), str_cat("1..", rates.num_multiprocessors, ", one a multiprocessor"));
  }
  return resolve_launch(config, static_cast<int32_t>(num_tokens), rates.launch_device(), policy);
}

}  // namespace

double GemmExplanation::last_wave_idle() const {
  const auto rest = static_cast<int32_t>(tiles.size() % static_cast<size_t>(num_lanes));
  return rest == 0 ? 0.0 : 1.0 - static_cast<double>(rest) / num_lanes;
}

double GemmExplanation::idle() const {
  if (predicted_seconds <= 0.0) return 0.0;
  double busy = 0.0;
  for (const TileRun& run : runs) busy += run.end - run.begin;
  return 1.0 - busy / (predicted_seconds * num_lanes);
}

double Explanation::floor_seconds() const {
  return plan.floor_seconds() + gate_up.floor_seconds() + down.floor_seconds() + combine.floor_seconds();
}

double Explanation::predicted_seconds() const {
  return plan.predicted_seconds + gate_up.predicted_seconds + down.predicted_seconds + combine.predicted_seconds;
}

std::vector<int32_t> count_rows(const LayerConfig& config, std::span<const int32_t> topk_ids) {
  std::vector<int32_t> counts(static_cast<size_t>(config.num_experts), 0);
  for (const int32_t id : topk_ids) {
    const int64_t expert = int64_t{id} - config.first_expert;
    if (expert >= 0 && expert < config.num_experts) ++counts[static_cast<size_t>(expert)];
  }
  return counts;
}

LayerWork count_work(const LayerConfig& config, std::span<const int32_t> expert_counts, int64_t num_tokens) {
  TESSERA_CHECK(expert_counts.size() == static_cast<size_t>(config.num_experts), expert_counts.size(),
                config.num_experts);
  LayerWork work;
  for (const int32_t count : expert_counts) {
    work.num_rows += count;
    work.num_tasks += count > 0 ? 1 : 0;
  }
  const double rows = work.num_rows, tasks = work.num_tasks, tokens = static_cast<double>(num_tokens);
  const double row_bytes = static_cast<double>(dtype_size(config.dtype)) * config.hidden_size;
  const double intermediate_bytes = operand_row_bytes(config, config.intermediate_size);
  const double token_bytes = operand_row_bytes(config, config.hidden_size);
  // Of tokens whose slots all lie elsewhere, none is read.
  const double read_tokens = std::min(rows, tokens);
  const double pair_bytes = 4.0 * tokens * config.top_k;  // an int32 or a weight a (token, slot)
  const int32_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  const double matrix_flops = 2.0 * rows * hidden * intermediate;
  work.plan = {0.0, 2.0 * pair_bytes + 4.0 * rows};
  if (format_row(config.weight_format).quantizes_rows()) work.plan.bytes += read_tokens * (row_bytes + token_bytes);
  work.gate_up = {num_first_matrices(config) * matrix_flops,
                  tasks * first_weight_bytes(config) + read_tokens * token_bytes + rows * intermediate_bytes};
  work.down = {matrix_flops,
               tasks * expert_bytes(config, hidden, intermediate) + rows * (intermediate_bytes + row_bytes)};
  work.combine = {0.0, (rows + tokens) * row_bytes + 2.0 * pair_bytes};
  return work;
}

Explanation explain_layer(const LayerConfig& config, const LaunchPolicy& policy, std::span<const int32_t> expert_counts,
                          int64_t num_tokens, const DeviceRates& rates) {
  const LayerWork work = count_work(config, expert_counts, num_tokens);
  Explanation result;
  result.launch = explained_launch(config, policy, num_tokens, rates);
  result.num_rows = work.num_rows;
  result.num_tasks = work.num_tasks;
  std::vector<int32_t> sorted(expert_counts.begin(), expert_counts.end());
  std::sort(sorted.begin(), sorted.end());
  result.fewest_rows = sorted.front();
  result.median_rows = sorted[sorted.size() / 2];
  result.most_rows = sorted.back();

  const double rows = work.num_rows;
  const int32_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  const int32_t columns = padded_intermediate_size(config);  // what tiles cover
  const double read_tokens = std::min(rows, static_cast<double>(num_tokens));
  const double intermediate_bytes = operand_row_bytes(config, intermediate);
  const double flops_per_second = dense_flops_per_second(config, rates);
  result.dense_flops_per_second = flops_per_second;
  result.plan = timed(work.plan, rates, flops_per_second);
  result.plan.predicted_seconds = std::max(rates.plan_seconds, result.plan.bytes_seconds);
  result.gate_up = explain_gemm(
      {result.launch, first_role(config), hidden, columns, first_weight_bytes(config),
       rows > 0 ? operand_row_bytes(config, hidden) * read_tokens / rows : 0.0, intermediate_bytes, flops_per_second},
      work.gate_up, expert_counts, rates);
  result.down =
      explain_gemm({result.launch, grouped::Role::down, columns, hidden, expert_bytes(config, hidden, intermediate),
                    intermediate_bytes, static_cast<double>(dtype_size(config.dtype)) * hidden, flops_per_second},
                   work.down, expert_counts, rates);
  result.combine = timed(work.combine, rates, flops_per_second);
  return result;
}

}  // namespace tessera::moe
