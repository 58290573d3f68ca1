// What a CPU layer's experts multiply, panel by panel.
//
//   const LayerProducts products(config);            // once a layer: products are made ready and tried out
//   for (int32_t task = 0; task < products.num_tasks(); ++task) products.of(task).gate_up ...
//
// A panel is the width of one product: its weights lie in memory as they are multiplied. Where the columns of the last
// panel, or of the first where columns begin inside a block of scales, are fewer, others are computed twice, so that
// there is one shape of product; only its new columns are stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "cpu/plain_gemm.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// Columns of one product; of the intermediate, also those that share a scale where it is quantised. Twice as many gain
/// nothing (oneDNN rearranges 64 at a time), and half the panel's results, 256 rows of fp32, share the second-level
/// cache with the rows.
inline constexpr int64_t kPanelColumns = 128;

/// A matrix of weights [columns, depth], multiplied panel by panel.
class PanelProduct {
 public:
  /// `front`: how far inside a panel column 0 lies.
  PanelProduct(int64_t columns, int64_t depth, DType dtype, int64_t front = 0);

  int64_t num_panels() const;
  int64_t width() const { return gemm_.spec().out_features; }
  int64_t begin(int64_t panel) const;      ///< first column that is computed
  int64_t new_begin(int64_t panel) const;  ///< first column that is the panel's own
  int64_t num_new(int64_t panel) const;    ///< columns from there on that are
  const cpu::PlainGemm& gemm() const { return gemm_; }

 private:
  int64_t columns_, front_;
  cpu::PlainGemm gemm_;
};

/// The products of experts of one intermediate size.
struct ExpertProducts {
  int64_t intermediate_size;
  PanelProduct gate_up;  ///< columns of the intermediate; a gated expert has two products a panel
  PanelProduct down;
};

/// Of all tasks of a layer: the experts of the shard and, last, the shared expert where there is one.
class LayerProducts {
 public:
  explicit LayerProducts(const LayerConfig& config);

  int32_t num_tasks() const { return num_experts_ + (shared_ ? 1 : 0); }
  bool is_shared(int32_t task) const { return task == num_experts_; }
  const ExpertProducts& of(int32_t task) const { return is_shared(task) ? *shared_ : routed_; }
  const ExpertProducts& routed() const { return routed_; }
  const ExpertProducts* shared() const { return shared_ ? &*shared_ : nullptr; }

  /// What the intermediate is kept as: the layer's type, or f32 where it was quantised.
  DType intermediate_dtype() const { return intermediate_dtype_; }

  /// Scratch memory of a thread: a tile of tokens or of the intermediate as an operand, the results of the products of
  /// one panel, its weights where they are decoded, then the library's. Each is a multiple of kHostAlignment.
  size_t a_bytes() const { return a_bytes_; }
  size_t c_bytes() const { return c_bytes_; }
  size_t decoded_bytes() const { return decoded_bytes_; }
  size_t scratch_bytes() const { return scratch_bytes_; }

 private:
  int32_t num_experts_;
  DType intermediate_dtype_;
  ExpertProducts routed_;
  std::optional<ExpertProducts> shared_;
  size_t a_bytes_ = 0;
  size_t c_bytes_ = 0;
  size_t decoded_bytes_ = 0;
  size_t scratch_bytes_ = 0;
};

}  // namespace tessera::moe
