#include "moe/cpu/expert_tiles.h"

#include <algorithm>

#include "tessera/batching/launch.h"

namespace tessera::moe::cpu_steps {
namespace {

using batching::ceil_div;
using batching::TileCoord;

// Tiles a thread should find in a launch, so that none waits long for the last.
constexpr int64_t kTilesPerThread = 4;

// Of a task: the shared expert has every token.
int64_t num_rows(const CpuRun& run, int32_t task) {
  return run.products.is_shared(task) ? run.inputs.num_tokens
                                      : run.workspace.plan.expert_counts[static_cast<size_t>(task)];
}

// Where there are few row tiles, each is cut into several runs of panels, so that every thread has work.
int64_t column_groups(const CpuRun& run, int64_t num_panels) {
  const int64_t height = run.products.routed().gate_up.gemm().max_height();
  int64_t row_tiles = 0;
  for (int32_t task = 0; task < run.products.num_tasks(); ++task) row_tiles += ceil_div(num_rows(run, task), height);
  const int64_t wanted = kTilesPerThread * run.pool.num_threads();
  return std::clamp<int64_t>(ceil_div(wanted, std::max<int64_t>(row_tiles, 1)), 1, num_panels);
}

struct ExpertTiles {
  struct Params {
    const CpuRun& run;
    PanelProduct ExpertProducts::*product;
    ComputeTile* compute;
    int64_t column_groups;

    const PanelProduct& product_of(int32_t task) const { return run.products.of(task).*product; }
    int64_t groups_of(int32_t task) const { return std::min(column_groups, product_of(task).num_panels()); }
  };

  static int32_t num_tasks(const Params& params) { return params.run.products.num_tasks(); }
  static int32_t num_tiles(const Params& params, int32_t task) {
    return ceil_div(num_rows(params.run, task), params.product_of(task).gemm().max_height()) *
           static_cast<int32_t>(params.groups_of(task));
  }
  static double task_cost(const Params& params, int32_t task) {
    return static_cast<double>(num_rows(params.run, task)) *
           static_cast<double>(params.run.products.of(task).intermediate_size);
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    const LayerProducts& products = params.run.products;
    std::byte* scratch = params.run.workspace.scratch + static_cast<size_t>(worker) * products.scratch_bytes();
    std::byte* c = scratch + products.a_bytes();
    std::byte* decoded = c + products.c_bytes();
    params.compute(
        params.run, locate(params, tile),
        {scratch, reinterpret_cast<float*>(c), reinterpret_cast<float*>(decoded), decoded + products.decoded_bytes()});
  }

 private:
  static RowTile locate(const Params& params, TileCoord tile) {
    const int32_t task = tile.task_idx;
    const bool is_shared = params.run.products.is_shared(task);
    const PanelProduct& product = params.product_of(task);
    const int64_t height = product.gemm().max_height();
    const int64_t groups = params.groups_of(task);
    const int64_t row_tile = tile.tile_idx / groups;
    const int64_t group = tile.tile_idx % groups;
    const int64_t base = is_shared ? 0 : params.run.workspace.plan.expert_offsets[static_cast<size_t>(task)];
    return {task,
            is_shared,
            params.run.products.of(task),
            base + row_tile * height,
            std::min(height, num_rows(params.run, task) - row_tile * height),
            product.num_panels() * group / groups,
            product.num_panels() * (group + 1) / groups};
  }
};

}  // namespace

void launch_expert_tiles(const CpuRun& run, PanelProduct ExpertProducts::*product, ComputeTile* compute) {
  const int64_t groups = column_groups(run, (run.products.routed().*product).num_panels());
  batching::launch<ExpertTiles>({run, product, compute, groups}, run.pool);
}

}  // namespace tessera::moe::cpu_steps
