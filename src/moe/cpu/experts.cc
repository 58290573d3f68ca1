#include "moe/cpu/experts.h"

#include <algorithm>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/expert_ops.h"
#include "cpu/row_ops.h"
#include "cpu/scratch.h"
#include "moe/array_layout.h"
#include "moe/layer_layout.h"
#include "tessera/batching/launch.h"
#include "tessera/core/buffer.h"

namespace tessera::moe {

using batching::ceil_div;
using batching::TileCoord;

namespace {

// Columns of one product. Twice as many gain nothing (oneDNN rearranges 64 at a time), and half the panel's results,
// 256 rows of fp32, share the second-level cache with the rows.
constexpr int64_t kPanelColumns = 128;

// Tiles a thread should find in a launch, so that none waits long for the last.
constexpr int64_t kTilesPerThread = 4;

}  // namespace

PanelProduct::PanelProduct(int64_t columns, int64_t depth, DType dtype)
    : columns_(columns), gemm_({std::min(kPanelColumns, columns), depth, dtype}) {}

int64_t PanelProduct::num_panels() const { return ceil_div(columns_, width()); }
int64_t PanelProduct::begin(int64_t panel) const { return std::min(panel * width(), columns_ - width()); }
int64_t PanelProduct::new_begin(int64_t panel) const { return panel * width(); }

/// One call of run: what the launches share.
struct CpuExperts::Run {
  const LayerInputs& inputs;
  CpuWorkspace workspace;
  int64_t num_row_tiles = 0;
};

/// Rows [first_row, first_row + num_rows) of one task, panels [panel_begin, panel_end).
struct CpuExperts::RowTile {
  int32_t task;
  int64_t first_row;
  int64_t num_rows;
  int64_t panel_begin;
  int64_t panel_end;
};

CpuExperts::CpuExperts(const LayerConfig& config, const LayerWeights& weights, int num_threads)
    : config_(config),
      weights_(weights),
      element_bytes_(dtype_size(config.dtype)),
      routed_{config.intermediate_size,
              {config.intermediate_size, config.hidden_size, config.dtype},
              {config.hidden_size, config.intermediate_size, config.dtype}},
      pool_(num_threads) {
  if (const int32_t width = config.shared_intermediate_size; width != 0) {
    shared_ =
        ExpertProducts{width, {width, config.hidden_size, config.dtype}, {config.hidden_size, width, config.dtype}};
  }
  a_bytes_ = c_bytes_ = 0;
  size_t library_bytes = 0;
  for (int32_t task = 0; task < num_tasks(); ++task) {
    const ExpertProducts& expert = products(task);
    for (const PanelProduct* product : {&expert.gate_up, &expert.down}) {
      const cpu::PlainGemm& gemm = product->gemm();
      const auto height = static_cast<size_t>(gemm.max_height());
      const auto depth = static_cast<size_t>(gemm.spec().in_features);
      a_bytes_ = std::max(a_bytes_, cpu::aligned_bytes(height * depth * dtype_size(gemm.operand())));
      c_bytes_ =
          std::max(c_bytes_, cpu::aligned_bytes(2 * height * static_cast<size_t>(product->width()) * sizeof(float)));
      library_bytes = std::max(library_bytes, gemm.scratch_bytes());
    }
  }
  scratch_bytes_ = a_bytes_ + c_bytes_ + cpu::aligned_bytes(library_bytes);
}

// Tasks are the experts of the shard and, last, the shared expert.
int32_t CpuExperts::num_tasks() const { return config_.num_experts + (shared_ ? 1 : 0); }

const ExpertProducts& CpuExperts::products(int32_t task) const {
  return task < config_.num_experts ? routed_ : *shared_;
}

CpuWorkspace CpuExperts::lay_out(int32_t num_tokens, void* base) const {
  const auto experts = static_cast<size_t>(config_.num_experts);
  const auto tokens = static_cast<size_t>(num_tokens);
  const size_t pairs = tokens * static_cast<size_t>(config_.top_k);
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  // The caller promises 16 bytes.
  const size_t misalignment = reinterpret_cast<uintptr_t>(base) % kHostAlignment;
  const size_t skipped = misalignment == 0 ? 0 : kHostAlignment - misalignment;
  ArrayLayout layout(base == nullptr ? nullptr : static_cast<std::byte*>(base) + skipped, kHostAlignment);
  const auto integers = [&](size_t count) { return std::span<int32_t>(layout.take<int32_t>(count), count); };
  const auto padded = [](const ExpertProducts& expert, size_t rows) {
    return rows + static_cast<size_t>(expert.down.gemm().max_height());
  };
  CpuWorkspace workspace{};
  workspace.plan = {integers(experts), integers(experts + 1), integers(pairs), integers(pairs)};
  workspace.intermediate =
      layout.take<std::byte>(padded(routed_, pairs) * static_cast<size_t>(routed_.intermediate_size) * element_bytes_);
  workspace.rows = layout.take<std::byte>(pairs * hidden * element_bytes_);
  if (shared_) {
    workspace.shared_intermediate = layout.take<std::byte>(
        padded(*shared_, tokens) * static_cast<size_t>(shared_->intermediate_size) * element_bytes_);
    workspace.shared_rows = layout.take<std::byte>(tokens * hidden * element_bytes_);
  }
  workspace.scratch = layout.take<std::byte>(scratch_bytes_ * static_cast<size_t>(pool_.num_threads()));
  workspace.bytes = layout.used() + kHostAlignment;
  return workspace;
}

int32_t CpuExperts::expert_of_id(int64_t id) const {
  if (config_.num_mapped_experts != 0) {
    if (id < 0 || id >= config_.num_mapped_experts) return -1;
    const int32_t expert = weights_.expert_map[id];
    return expert < config_.num_experts ? expert : -1;
  }
  // Compared, not subtracted: an id may be the least int64.
  if (id < config_.first_expert || id >= int64_t{config_.first_expert} + config_.num_experts) return -1;
  return static_cast<int32_t>(id - config_.first_expert);
}

void CpuExperts::plan(const Run& run) const {
  const void* ids = run.inputs.topk_ids;
  const bool wide = run.inputs.ids_are_64_bit;
  const auto expert_of = [&](int64_t i) {
    const int32_t expert =
        expert_of_id(wide ? static_cast<const int64_t*>(ids)[i] : static_cast<const int32_t*>(ids)[i]);
    return std::max(expert, -1);
  };
  fill_routing_plan(expert_of, config_.top_k, run.workspace.plan);
}

// Where there are few row tiles, each is cut into several runs of panels, so that every thread has work.
int64_t CpuExperts::column_groups(const Run& run, bool down) const {
  const int64_t wanted = kTilesPerThread * pool_.num_threads();
  const int64_t panels = (down ? routed_.down : routed_.gate_up).num_panels();
  return std::clamp<int64_t>(ceil_div(wanted, std::max<int64_t>(run.num_row_tiles, 1)), 1, panels);
}

CpuExperts::RowTile CpuExperts::locate(const Run& run, bool down, int32_t task, int32_t tile_idx) const {
  const bool is_shared = task == config_.num_experts;
  const PanelProduct& product = down ? products(task).down : products(task).gate_up;
  const int64_t height = product.gemm().max_height();
  const int64_t groups = std::min(column_groups(run, down), product.num_panels());
  const int64_t row_tile = tile_idx / groups;
  const int64_t group = tile_idx % groups;
  const int64_t count = is_shared ? run.inputs.num_tokens : run.workspace.plan.expert_counts[static_cast<size_t>(task)];
  const int64_t base = is_shared ? 0 : run.workspace.plan.expert_offsets[static_cast<size_t>(task)];
  return {task, base + row_tile * height, std::min(height, count - row_tile * height),
          product.num_panels() * group / groups, product.num_panels() * (group + 1) / groups};
}

// The tokens of the tile's rows as an operand: where they lie if that will do, else gathered into `a`. What stands
// below the last row does not matter.
const void* CpuExperts::load_tokens(const Run& run, const RowTile& tile, std::byte* a) const {
  const bool is_shared = tile.task == config_.num_experts;
  const cpu::PlainGemm& gemm = products(tile.task).gate_up.gemm();
  const auto* x = static_cast<const std::byte*>(run.inputs.x);
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  const bool converts = gemm.operand() != config_.dtype;
  if (is_shared && !converts && gemm.height_for(tile.num_rows) == tile.num_rows)
    return x + static_cast<size_t>(tile.first_row) * hidden * element_bytes_;
  for (int64_t row = 0; row < tile.num_rows; ++row) {
    const auto place = static_cast<size_t>(tile.first_row + row);
    const size_t token = is_shared ? place : static_cast<size_t>(run.workspace.plan.row_token[place]);
    const std::byte* source = x + token * hidden * element_bytes_;
    std::byte* target = a + static_cast<size_t>(row) * hidden * dtype_size(gemm.operand());
    if (converts) {
      cpu::to_f32(source, config_.dtype, config_.hidden_size, reinterpret_cast<float*>(target));
    } else {
      std::memcpy(target, source, hidden * element_bytes_);
    }
  }
  return a;
}

void CpuExperts::gate_up_tile(const Run& run, const RowTile& tile, std::byte* scratch) const {
  const ExpertProducts& expert = products(tile.task);
  const PanelProduct& product = expert.gate_up;
  const int64_t height = product.gemm().height_for(tile.num_rows);
  const void* a = load_tokens(run, tile, scratch);
  auto* c = reinterpret_cast<float*>(scratch + a_bytes_);
  std::byte* library = scratch + a_bytes_ + c_bytes_;

  const int64_t hidden = config_.hidden_size;
  const int64_t width = product.width();
  const int64_t matrix_rows = expert.intermediate_size * (config_.gated ? 2 : 1);
  const bool is_shared = tile.task == config_.num_experts;
  const auto* weights = static_cast<const std::byte*>(is_shared ? weights_.shared_gate_up : weights_.gate_up);
  const int64_t matrix_begin = is_shared ? 0 : tile.task * matrix_rows;
  const auto multiply = [&](int64_t matrix_row, float* out) {
    const auto offset = static_cast<size_t>((matrix_begin + matrix_row) * hidden) * element_bytes_;
    product.gemm().run(height, a, weights + offset, out, library);
  };
  for (int64_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const int64_t begin = product.begin(panel);
    if (!config_.gated) {
      multiply(begin, c);
    } else if (config_.gate_up_order == GateUpOrder::interleaved) {
      multiply(2 * begin, c);
      multiply(2 * begin + width, c + height * width);
    } else {
      multiply(gate_begin(config_.gate_up_order, expert.intermediate_size) + begin, c);
      multiply(up_begin(config_.gate_up_order, expert.intermediate_size) + begin, c + height * width);
    }
    store_activated(run, tile, panel, c);
  }
}

// c holds one [height, width] result, or two: gate and up, or the first and second half of the interleaved columns.
void CpuExperts::store_activated(const Run& run, const RowTile& tile, int64_t panel, const float* c) const {
  const ExpertProducts& expert = products(tile.task);
  const bool is_shared = tile.task == config_.num_experts;
  const int64_t width = expert.gate_up.width();
  const int64_t begin = expert.gate_up.begin(panel);
  const int64_t skipped = expert.gate_up.new_begin(panel) - begin;
  const float* second_c = c + expert.gate_up.gemm().height_for(tile.num_rows) * width;
  const bool interleaved = config_.gated && config_.gate_up_order == GateUpOrder::interleaved;
  float first[kPanelColumns];  // gate, or x of a non-gated expert
  float second[kPanelColumns];
  float bias[2 * kPanelColumns] = {};
  const bool has_bias = weights_.gate_up_bias != nullptr && !is_shared;
  if (has_bias) {
    const int64_t matrix_rows = expert.intermediate_size * (config_.gated ? 2 : 1);
    const auto* values = static_cast<const std::byte*>(weights_.gate_up_bias) +
                         static_cast<size_t>(tile.task * matrix_rows) * element_bytes_;
    const auto load = [&](int64_t row, int64_t count, float* out) {
      cpu::to_f32(values + static_cast<size_t>(row) * element_bytes_, config_.dtype, count, out);
    };
    if (interleaved) {
      load(2 * begin, 2 * width, bias);
      cpu::split_pairs(bias, width, first, second);
      std::copy_n(second, width, std::copy_n(first, width, bias));
    } else {
      const int64_t gate = config_.gated ? gate_begin(config_.gate_up_order, expert.intermediate_size) : 0;
      load(gate + begin, width, bias);
      if (config_.gated) load(up_begin(config_.gate_up_order, expert.intermediate_size) + begin, width, bias + width);
    }
  }
  std::byte* out = is_shared ? run.workspace.shared_intermediate : run.workspace.intermediate;
  float h[kPanelColumns];
  for (int64_t row = 0; row < tile.num_rows; ++row) {
    if (interleaved) {
      cpu::split_pairs(c + row * width, width / 2, first, second);
      cpu::split_pairs(second_c + row * width, width / 2, first + width / 2, second + width / 2);
    } else {
      std::copy_n(c + row * width, width, first);
      if (config_.gated) std::copy_n(second_c + row * width, width, second);
    }
    if (has_bias) cpu::add_bias(bias, width, first);
    if (has_bias && config_.gated) cpu::add_bias(bias + width, width, second);
    if (config_.gated) {
      cpu::apply_gated(config_.activation, first, second, width, h);
    } else {
      cpu::apply_plain(config_.activation, first, width, h);
    }
    const int64_t place = (tile.first_row + row) * expert.intermediate_size + begin + skipped;
    cpu::from_f32(h + skipped, width - skipped, config_.dtype, out + static_cast<size_t>(place) * element_bytes_);
  }
}

void CpuExperts::down_tile(const Run& run, const RowTile& tile, std::byte* scratch) const {
  const ExpertProducts& expert = products(tile.task);
  const PanelProduct& product = expert.down;
  const cpu::PlainGemm& gemm = product.gemm();
  const bool is_shared = tile.task == config_.num_experts;
  const int64_t hidden = config_.hidden_size;
  const int64_t depth = expert.intermediate_size;
  const int64_t width = product.width();
  // Rows of an expert stand one after the other; those read beyond its last are another's or nobody's.
  const std::byte* intermediate = is_shared ? run.workspace.shared_intermediate : run.workspace.intermediate;
  const void* a = intermediate + static_cast<size_t>(tile.first_row * depth) * element_bytes_;
  if (gemm.operand() != config_.dtype) {
    cpu::to_f32(a, config_.dtype, tile.num_rows * depth, reinterpret_cast<float*>(scratch));
    a = scratch;
  }
  auto* c = reinterpret_cast<float*>(scratch + a_bytes_);
  const auto* weights = static_cast<const std::byte*>(is_shared ? weights_.shared_down : weights_.down);
  const int64_t matrix_begin = is_shared ? 0 : tile.task * hidden;
  const bool has_bias = weights_.down_bias != nullptr && !is_shared;
  std::byte* out = is_shared ? run.workspace.shared_rows : run.workspace.rows;
  for (int64_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
    const int64_t begin = product.begin(panel);
    const int64_t skipped = product.new_begin(panel) - begin;
    const auto offset = static_cast<size_t>((matrix_begin + begin) * depth) * element_bytes_;
    gemm.run(gemm.height_for(tile.num_rows), a, weights + offset, c, scratch + a_bytes_ + c_bytes_);
    float bias[kPanelColumns];
    if (has_bias) {
      const auto* values = static_cast<const std::byte*>(weights_.down_bias);
      cpu::to_f32(values + static_cast<size_t>(matrix_begin + begin) * element_bytes_, config_.dtype, width, bias);
    }
    for (int64_t row = 0; row < tile.num_rows; ++row) {
      if (has_bias) cpu::add_bias(bias, width, c + row * width);
      const int64_t place = (tile.first_row + row) * hidden + begin + skipped;
      cpu::from_f32(c + row * width + skipped, width - skipped, config_.dtype,
                    out + static_cast<size_t>(place) * element_bytes_);
    }
  }
}

void CpuExperts::combine_token(const Run& run, int32_t token) const {
  constexpr int64_t kColumns = 512;  // sums and a row's values stay in the first-level cache
  const int64_t hidden = config_.hidden_size;
  const int64_t first_slot = int64_t{token} * config_.top_k;
  float sum[kColumns];
  float values[kColumns];
  for (int64_t begin = 0; begin < hidden; begin += kColumns) {
    const int64_t columns = std::min(kColumns, hidden - begin);
    std::fill_n(sum, columns, 0.0f);
    const auto add = [&](const std::byte* rows, int64_t row, float weight) {
      const auto place = static_cast<size_t>(row * hidden + begin);
      cpu::to_f32(rows + place * element_bytes_, config_.dtype, columns, values);
      cpu::add_weighted(values, weight, columns, sum);
    };
    for (int64_t slot = first_slot; slot < first_slot + config_.top_k; ++slot) {
      const int32_t row = run.workspace.plan.token_row[static_cast<size_t>(slot)];
      if (row >= 0) add(run.workspace.rows, row, topk_weight(run.inputs, slot));
    }
    if (shared_) {
      const float weight = run.inputs.shared_weight == nullptr ? 1.0f : run.inputs.shared_weight[token];
      add(run.workspace.shared_rows, token, weight);
    }
    const auto place = static_cast<size_t>(token * hidden + begin);
    cpu::from_f32(sum, columns, config_.dtype, static_cast<std::byte*>(run.inputs.out) + place * element_bytes_);
  }
}

// The two products of all experts differ in their tile only.
struct CpuExperts::Products {
  struct Params {
    const CpuExperts& self;
    const Run& run;
    bool down;
  };
  static int32_t num_tasks(const Params& params) { return params.self.num_tasks(); }
  static int64_t num_rows(const Params& params, int32_t task) {
    return task == params.self.config_.num_experts ? params.run.inputs.num_tokens
                                                   : params.run.workspace.plan.expert_counts[static_cast<size_t>(task)];
  }
  static int32_t num_tiles(const Params& params, int32_t task) {
    const ExpertProducts& expert = params.self.products(task);
    const PanelProduct& product = params.down ? expert.down : expert.gate_up;
    const int64_t groups = std::min(params.self.column_groups(params.run, params.down), product.num_panels());
    return ceil_div(num_rows(params, task), product.gemm().max_height()) * static_cast<int32_t>(groups);
  }
  static double task_cost(const Params& params, int32_t task) {
    return static_cast<double>(num_rows(params, task)) *
           static_cast<double>(params.self.products(task).intermediate_size);
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    std::byte* scratch = params.run.workspace.scratch + static_cast<size_t>(worker) * params.self.scratch_bytes_;
    const RowTile rows = params.self.locate(params.run, params.down, tile.task_idx, tile.tile_idx);
    if (params.down) {
      params.self.down_tile(params.run, rows, scratch);
    } else {
      params.self.gate_up_tile(params.run, rows, scratch);
    }
  }
};

struct CpuExperts::Combine {
  static constexpr int32_t kTokens = 8;  // few, so that a small batch occupies every thread
  struct Params {
    const CpuExperts& self;
    const Run& run;
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return ceil_div(params.run.inputs.num_tokens, kTokens); }
  static void run_tile(const Params& params, TileCoord tile, int) {
    const int32_t end = std::min(params.run.inputs.num_tokens, (tile.tile_idx + 1) * kTokens);
    for (int32_t token = tile.tile_idx * kTokens; token < end; ++token) params.self.combine_token(params.run, token);
  }
};

void CpuExperts::run(const LayerInputs& inputs, void* workspace) {
  Run run{inputs, lay_out(inputs.num_tokens, workspace)};
  plan(run);
  const int64_t height = routed_.gate_up.gemm().max_height();
  for (const int32_t count : run.workspace.plan.expert_counts) run.num_row_tiles += ceil_div(count, height);
  if (shared_) run.num_row_tiles += ceil_div(inputs.num_tokens, height);
  batching::launch<Products>({*this, run, false}, pool_);
  batching::launch<Products>({*this, run, true}, pool_);
  batching::launch<Combine>({*this, run}, pool_);
}

}  // namespace tessera::moe
