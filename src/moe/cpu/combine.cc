// out[t] = sum_s topk_weights[t, s] * y[row of (t, s)] + shared_weight[t] * (the shared expert's row of t): fp32 sums
// in the order of the slots, the shared expert last, rounded once.
#include <algorithm>

#include "cpu/convert.h"
#include "cpu/expert_ops.h"
#include "moe/cpu/steps.h"
#include "moe/layer_layout.h"
#include "tessera/batching/launch.h"

namespace tessera::moe::cpu_steps {
namespace {

void combine_token(const CpuRun& run, int32_t token) {
  constexpr int64_t kColumns = 512;  // sums and a row's values stay in the first-level cache
  const LayerConfig& config = run.config;
  const int64_t hidden = config.hidden_size;
  const int64_t first_slot = int64_t{token} * config.top_k;
  float sum[kColumns];
  float values[kColumns];
  for (int64_t begin = 0; begin < hidden; begin += kColumns) {
    const int64_t columns = std::min(kColumns, hidden - begin);
    std::fill_n(sum, columns, 0.0f);
    const auto add = [&](const std::byte* rows, int64_t row, float weight) {
      const auto place = static_cast<size_t>(row * hidden + begin);
      cpu::to_f32(rows + place * run.element_bytes(), config.dtype, columns, values);
      cpu::add_weighted(values, weight, columns, sum);
    };
    for (int64_t slot = first_slot; slot < first_slot + config.top_k; ++slot) {
      const int32_t row = run.workspace.plan.token_row[static_cast<size_t>(slot)];
      if (row >= 0) add(run.workspace.rows, row, topk_weight(run.inputs, slot));
    }
    if (run.products.shared() != nullptr) {
      const float weight = run.inputs.shared_weight == nullptr ? 1.0f : run.inputs.shared_weight[token];
      add(run.workspace.shared_rows, token, weight);
    }
    const auto place = static_cast<size_t>(token * hidden + begin);
    cpu::from_f32(sum, columns, config.dtype, static_cast<std::byte*>(run.inputs.out) + place * run.element_bytes());
  }
}

struct TokenTiles {
  static constexpr int32_t kTokens = 8;  // few, so that a small batch occupies every thread
  struct Params {
    const CpuRun& run;
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) {
    return batching::ceil_div(params.run.inputs.num_tokens, kTokens);
  }
  static void run_tile(const Params& params, batching::TileCoord tile, int) {
    const int32_t end = std::min(params.run.inputs.num_tokens, (tile.tile_idx + 1) * kTokens);
    for (int32_t token = tile.tile_idx * kTokens; token < end; ++token) combine_token(params.run, token);
  }
};

}  // namespace

void combine(const CpuRun& run) { batching::launch<TokenTiles>({run}, run.pool); }

}  // namespace tessera::moe::cpu_steps
