#include "moe/cpu/products.h"

#include <algorithm>

#include "cpu/scratch.h"
#include "moe/formats.h"
#include "tessera/batching/launch.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"

namespace tessera::moe {
namespace {

// The new columns of a panel are whole groups, or what is left of the row.
static_assert(kPanelColumns % kScaleGroup == 0);

// What a layer's products multiply: elements of its type, or what a format's weights and rows are decoded to.
DType product_dtype(const LayerConfig& config) {
  return format_row(config.weight_format).quantizes_rows() ? DType::f32 : config.dtype;
}

}  // namespace

PanelProduct::PanelProduct(int64_t columns, int64_t depth, DType dtype, int64_t front)
    : columns_(columns), front_(front), gemm_({std::min(kPanelColumns, columns), depth, dtype}) {
  TESSERA_CHECK(front >= 0 && front < kPanelColumns, front);
}

int64_t PanelProduct::num_panels() const { return batching::ceil_div(columns_ + front_, kPanelColumns); }
int64_t PanelProduct::begin(int64_t panel) const { return std::min(new_begin(panel), columns_ - width()); }
int64_t PanelProduct::new_begin(int64_t panel) const { return std::max<int64_t>(0, panel * kPanelColumns - front_); }
int64_t PanelProduct::num_new(int64_t panel) const {
  return std::min((panel + 1) * kPanelColumns - front_, columns_) - new_begin(panel);
}

LayerProducts::LayerProducts(const LayerConfig& config)
    : num_experts_(config.num_experts),
      intermediate_dtype_(product_dtype(config)),
      routed_{config.intermediate_size,
              {config.intermediate_size, config.hidden_size, intermediate_dtype_, config.scale_offsets.down},
              {config.hidden_size, config.intermediate_size, intermediate_dtype_}} {
  if (const int32_t width = config.shared_intermediate_size; width != 0) {
    shared_ = ExpertProducts{
        width, {width, config.hidden_size, intermediate_dtype_}, {config.hidden_size, width, intermediate_dtype_}};
  }
  const bool decodes = config.weight_format != WeightFormat::dense;
  size_t library_bytes = 0;
  for (int32_t task = 0; task < num_tasks(); ++task) {
    const ExpertProducts& expert = of(task);
    for (const PanelProduct* product : {&expert.gate_up, &expert.down}) {
      const cpu::PlainGemm& gemm = product->gemm();
      const auto height = static_cast<size_t>(gemm.max_height());
      const auto depth = static_cast<size_t>(gemm.spec().in_features);
      a_bytes_ = std::max(a_bytes_, cpu::aligned_bytes(height * depth * dtype_size(gemm.operand())));
      c_bytes_ =
          std::max(c_bytes_, cpu::aligned_bytes(2 * height * static_cast<size_t>(product->width()) * sizeof(float)));
      const size_t panel_bytes = static_cast<size_t>(product->width()) * depth * sizeof(float);
      if (decodes) decoded_bytes_ = std::max(decoded_bytes_, cpu::aligned_bytes(panel_bytes));
      library_bytes = std::max(library_bytes, gemm.scratch_bytes());
    }
  }
  scratch_bytes_ = a_bytes_ + c_bytes_ + decoded_bytes_ + cpu::aligned_bytes(library_bytes);
}

}  // namespace tessera::moe
