// The three launches of a CPU layer: gate and up with the activation, down, combine. Beside the routed experts, the
// shared one is one more task.
//
//   tile of a product = (up to a product's tallest tile of rows of one expert) x (a run of column panels)
//
// A panel is the width of one product: its weights lie in memory as they are multiplied. The last panel of a width that
// is no multiple starts early and computes a few columns twice, so that there is one shape of product; only its new
// columns are stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "cpu/plain_gemm.h"
#include "moe/plan/arrays.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// A matrix of weights [columns, depth], multiplied panel by panel.
class PanelProduct {
 public:
  PanelProduct(int64_t columns, int64_t depth, DType dtype);

  int64_t num_panels() const;
  int64_t width() const { return gemm_.spec().out_features; }
  int64_t begin(int64_t panel) const;      ///< first column that is computed
  int64_t new_begin(int64_t panel) const;  ///< first column that no panel before has
  const cpu::PlainGemm& gemm() const { return gemm_; }

 private:
  int64_t columns_;
  cpu::PlainGemm gemm_;
};

/// The products of experts of one intermediate size.
struct ExpertProducts {
  int64_t intermediate_size;
  PanelProduct gate_up;  ///< columns of the intermediate; a gated expert has two products a panel
  PanelProduct down;
};

/// Where everything lies in the workspace.
struct CpuWorkspace {
  RoutingPlanArrays plan;
  std::byte* intermediate;         // [T * k, I], and rows to read beyond the last
  std::byte* rows;                 // [T * k, H]
  std::byte* shared_intermediate;  // [T, I_s], and rows to read beyond the last
  std::byte* shared_rows;          // [T, H]
  std::byte* scratch;              // [threads, scratch_bytes]
  size_t bytes;
};

class CpuExperts {
 public:
  CpuExperts(const LayerConfig& config, const LayerWeights& weights, int num_threads);

  /// `base` may be null when only `bytes` is wanted.
  CpuWorkspace lay_out(int32_t num_tokens, void* base) const;
  void run(const LayerInputs& inputs, void* workspace);
  int num_threads() const { return pool_.num_threads(); }
  const LayerWeights& weights() const { return weights_; }

 private:
  struct Run;
  struct Products;
  struct Combine;
  struct RowTile;

  const ExpertProducts& products(int32_t task) const;
  int32_t num_tasks() const;
  int64_t column_groups(const Run& run, bool down) const;
  RowTile locate(const Run& run, bool down, int32_t task, int32_t tile_idx) const;
  const void* load_tokens(const Run& run, const RowTile& tile, std::byte* a) const;
  void gate_up_tile(const Run& run, const RowTile& tile, std::byte* scratch) const;
  void store_activated(const Run& run, const RowTile& tile, int64_t panel, const float* c) const;
  void down_tile(const Run& run, const RowTile& tile, std::byte* scratch) const;
  void combine_token(const Run& run, int32_t token) const;
  void plan(const Run& run) const;
  int32_t expert_of_id(int64_t id) const;

  LayerConfig config_;
  LayerWeights weights_;
  size_t element_bytes_;
  ExpertProducts routed_;
  std::optional<ExpertProducts> shared_;
  size_t a_bytes_;        // a tile of tokens or of the intermediate, as an operand
  size_t c_bytes_;        // results of the products of one panel
  size_t scratch_bytes_;  // of a thread: a, c, the library's
  ThreadPool pool_;
};

}  // namespace tessera::moe
