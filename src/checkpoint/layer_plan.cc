#include "checkpoint/plan_parts.h"
#include "checkpoint/target.h"
#include "core/stop.h"
#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::checkpoint {
namespace {

void count_nothing(uint64_t) {}

size_t at(LayerArray array) { return static_cast<size_t>(array); }

// Lists the pieces of a plan, array by array, expert by expert.
class Planner {
 public:
  Planner(PlanParts& plan, const LayerTensors& tensors)
      : plan_(plan), tensors_(tensors), folder_(plan.checkpoint.parts().folder), config_(plan.config) {}

  void run() {
    if (tensors_.format == StoredFormat::mxfp4) find_mxfp4_scales();
    plan_.bytes = array_bytes(config_, tensors_.gate_up_bias != nullptr);
    for (int32_t i = 0; i < config_.num_experts; ++i) {
      tensors_.layout == Layout::per_expert ? add_expert(i) : add_fused(i);
    }
    if (tensors_.gate_up_bias != nullptr) {
      add_bias(LayerArray::gate_up_bias, *tensors_.gate_up_bias);
      add_bias(LayerArray::down_bias, *tensors_.down_bias);
    }
    if (config_.shared_intermediate_size != 0) add_shared();
    for (const Piece& piece : plan_.pieces) plan_.report.read_bytes += piece.read_bytes;
  }

 private:
  int64_t hidden() const { return config_.hidden_size; }
  int64_t width() const { return config_.intermediate_size; }
  bool is_dense() const { return config_.weight_format == moe::WeightFormat::dense; }
  size_t element_bytes() const { return is_dense() ? dtype_size(config_.dtype) : 1; }
  bool has_row_scales() const {
    return tensors_.format == StoredFormat::fp8_channel || tensors_.format == StoredFormat::fp8_tensor;
  }

  template <class Fill>
  void add(LayerArray array, size_t offset, size_t bytes, uint64_t read_bytes, Fill fill) {
    plan_.pieces.push_back({array, offset, bytes, read_bytes, std::move(fill)});
  }

  /// A weight, or part of one, as rows: [rows, columns] at row `row` of its array.
  void add_weight(LayerArray array, int64_t row, const Slice& slice, int64_t rows, int64_t columns) {
    const size_t row_bytes = static_cast<size_t>(columns) * element_bytes();
    const size_t offset = static_cast<size_t>(row) * row_bytes, bytes = static_cast<size_t>(rows) * row_bytes;
    const auto add_it = [&](auto fill) { add(array, offset, bytes, slice.bytes, std::move(fill)); };
    if (!is_dense()) return add_it([slice](std::span<std::byte> w, const CountBytes& n) { slice.read(w, n); });
    const DType from = read_dtype(folder_, *slice.tensor), to = config_.dtype;
    if (tensors_.layout == Layout::transposed) {
      return add_it(
          [=](std::span<std::byte> w, const CountBytes& n) { fill_turned(slice, from, to, rows, columns, w, n); });
    }
    add_it([=](std::span<std::byte> w, const CountBytes& n) { fill_elements(slice, from, to, w, n); });
  }

  /// `part` of `parts` of one matrix's scales, those of matrix `index` of its array.
  void add_scales(LayerArray array, int64_t index, int64_t parts, int64_t part, const StoredMatrix& matrix,
                  int64_t rows, int64_t columns) {
    const Slice slice = Slice::whole(folder_, *matrix.scale);
    if (has_row_scales()) {
      const size_t bytes = static_cast<size_t>(rows) * sizeof(float);
      return add(array, static_cast<size_t>(index * parts + part) * bytes, bytes, slice.bytes,
                 [=](std::span<std::byte> w, const CountBytes& n) { fill_row_scales(slice, rows, w, n); });
    }
    const size_t bytes = static_cast<size_t>(scale_groups(rows) * scale_groups(columns)) * sizeof(float);
    const moe::WeightShape shape{1, rows, columns};
    add(array, static_cast<size_t>(index * parts + part) * bytes, bytes, slice.bytes,
        [=](std::span<std::byte> w, const CountBytes& n) {
          fill_block_scales(slice, moe::ScaleGrid::per_projection, shape, 0, w, n);
        });
  }

  void add_expert(int32_t i) {
    add_projections(tensors_.experts[static_cast<size_t>(config_.first_expert) + static_cast<size_t>(i)], i, width(),
                    {LayerArray::gate_up, LayerArray::down, LayerArray::gate_up_scale, LayerArray::down_scale});
  }

  void add_shared() {
    add_projections(tensors_.shared, 0, config_.shared_intermediate_size,
                    {LayerArray::shared_gate_up, LayerArray::shared_down, LayerArray::shared_gate_up_scale,
                     LayerArray::shared_down_scale});
  }

  /// Gate's rows, up's behind them, and down's, of matrix `index` of the arrays.
  void add_projections(const std::array<StoredMatrix, kNumProjections>& matrices, int64_t index, int64_t width,
                       const std::array<LayerArray, 4>& arrays) {
    for (const Projection projection : {kGate, kUp, kDown}) {
      const StoredMatrix& matrix = matrices[projection];
      const bool is_down = projection == kDown;
      const int64_t rows = is_down ? hidden() : width, columns = is_down ? width : hidden();
      const int64_t parts = is_down ? 1 : 2, part = projection == kUp ? 1 : 0;
      const Slice slice = Slice::whole(folder_, *matrix.weight);
      add_weight(arrays[is_down ? 1 : 0], (index * parts + part) * rows, slice, rows, columns);
      if (matrix.scale != nullptr) add_scales(arrays[is_down ? 3 : 2], index, parts, part, matrix, rows, columns);
    }
  }

  void add_fused(int32_t i) {
    add_fused_matrix(i, tensors_.gate_up, LayerArray::gate_up, LayerArray::gate_up_scale, 2 * width(), hidden(), true);
    add_fused_matrix(i, tensors_.down, LayerArray::down, LayerArray::down_scale, hidden(), width(), false);
  }

  void add_fused_matrix(int32_t i, const StoredMatrix& matrix, LayerArray weights, LayerArray scales, int64_t rows,
                        int64_t columns, bool gate_and_up) {
    const int64_t expert = config_.first_expert + i;
    const Slice slice = Slice::of_expert(folder_, *matrix.weight, expert);
    if (tensors_.format == StoredFormat::mxfp4)
      return add_mxfp4(i, matrix, weights, scales, rows, columns, gate_and_up);
    add_weight(weights, i * rows, slice, rows, columns);
    if (matrix.scale == nullptr) return;
    const Slice scale = Slice::of_expert(folder_, *matrix.scale, expert);
    const size_t bytes = plan_.bytes[at(scales)] / static_cast<size_t>(config_.num_experts);
    const size_t offset = static_cast<size_t>(i) * bytes;
    if (has_row_scales()) {
      return add(scales, offset, bytes, scale.bytes,
                 [=](std::span<std::byte> w, const CountBytes& n) { fill_row_scales(scale, rows, w, n); });
    }
    const bool counts_through = gate_and_up && matrix.scale->info.shape[1] == scale_groups(rows);
    const auto grid = counts_through ? moe::ScaleGrid::concatenated : moe::ScaleGrid::per_projection;
    const moe::WeightShape shape{1, rows, columns, gate_and_up};
    const int32_t up_offset = gate_and_up ? config_.scale_offsets.up : 0;
    add(scales, offset, bytes, scale.bytes,
        [=](std::span<std::byte> w, const CountBytes& n) { fill_block_scales(scale, grid, shape, up_offset, w, n); });
  }

  void add_bias(LayerArray array, const io::StoredTensor& tensor) {
    const auto experts = static_cast<uint64_t>(config_.num_experts);
    Slice slice = Slice::of_expert(folder_, tensor, config_.first_expert);
    slice.bytes *= experts;
    const DType from = read_dtype(folder_, tensor), to = config_.dtype;
    add(array, 0, plan_.bytes[at(array)], slice.bytes,
        [=](std::span<std::byte> w, const CountBytes& n) { fill_elements(slice, from, to, w, n); });
  }

  // --- MXFP4 ---

  struct Mxfp4Source {
    Slice codes, exponents;
    int64_t rows, columns;
    bool gate_and_up;

    std::string place() const { return codes.place(); }
    ReadMxfp4 read(const CountBytes& count) const {
      return read_mxfp4(codes, exponents, rows, columns, gate_and_up, count);
    }
  };

  Mxfp4Source source(int32_t i, const StoredMatrix& matrix, int64_t rows, int64_t columns, bool gate_and_up) const {
    const int64_t expert = config_.first_expert + i;
    return {Slice::of_expert(folder_, *matrix.weight, expert), Slice::of_expert(folder_, *matrix.scale, expert), rows,
            columns, gate_and_up};
  }

  static std::string expert_place(const Mxfp4Source& from, int64_t expert) {
    return str_cat(from.place(), ", expert ", expert);
  }

  /// Scales of all blocks; a layer with one that e4m3 does not hold becomes dense.
  void find_mxfp4_scales() {
    if (is_dense()) return;
    const bool is_asked_for = plan_.options.weight_format == moe::WeightFormat::fp8_block;
    for (int32_t i = 0; i < config_.num_experts; ++i) {
      gate_up_scales_.push_back(find_scales_of(i, source(i, tensors_.gate_up, 2 * width(), hidden(), true)));
      down_scales_.push_back(find_scales_of(i, source(i, tensors_.down, hidden(), width(), false)));
    }
    const int64_t inexact = plan_.report.num_blocks - plan_.report.num_exact_blocks;
    if (inexact == 0) return;
    if (is_asked_for) {
      throw Error(folder_.place(*tensors_.gate_up.weight),
                  str_cat(inexact, " of ", plan_.report.num_blocks, " blocks whose numbers lie too far apart for e4m3"),
                  "none for weight_format fp8-block; dense holds them");
    }
    config_.weight_format = moe::WeightFormat::dense;
    require_runs(config_, plan_.options.placement.device);
  }

  std::vector<float> find_scales_of(int32_t i, const Mxfp4Source& from) {
    throw_if_stopped();
    const std::string where = expert_place(from, config_.first_expert + i);
    std::vector<uint8_t> exponents(from.exponents.bytes);
    from.exponents.read(std::as_writable_bytes(std::span(exponents)), count_nothing);
    Mxfp4Matrix matrix{nullptr, exponents.data(), from.rows, from.columns, from.gate_and_up};
    std::vector<float> scales(
        static_cast<size_t>(matrix.parts() * scale_groups(from.rows / matrix.parts()) * scale_groups(from.columns)));
    ExactBlocks found = find_scales(matrix, scales.data(), where.c_str());
    if (found.num_exact != found.num_blocks) {  // which numbers are there decides
      const ReadMxfp4 read = from.read(count_nothing);
      found = find_scales(read.matrix, scales.data(), where.c_str());
    }
    plan_.report.num_blocks += found.num_blocks;
    plan_.report.num_exact_blocks += found.num_exact;
    return scales;
  }

  void add_mxfp4(int32_t i, const StoredMatrix& matrix, LayerArray weights, LayerArray scales, int64_t rows,
                 int64_t columns, bool gate_and_up) {
    const Mxfp4Source from = source(i, matrix, rows, columns, gate_and_up);
    const size_t bytes = static_cast<size_t>(rows * columns) * element_bytes();
    const size_t offset = static_cast<size_t>(i) * bytes;
    const uint64_t read_bytes = from.codes.bytes + from.exponents.bytes;
    if (is_dense()) {
      const std::string where = expert_place(from, config_.first_expert + i);
      return add(weights, offset, bytes, read_bytes,
                 [from, where, dtype = config_.dtype](std::span<std::byte> w, const CountBytes& n) {
                   to_dense(from.read(n).matrix, dtype, w.data(), where.c_str());
                 });
    }
    const std::vector<float>& found = (gate_and_up ? gate_up_scales_ : down_scales_)[static_cast<size_t>(i)];
    add(weights, offset, bytes, read_bytes, [from, found](std::span<std::byte> w, const CountBytes& n) {
      to_e4m3(from.read(n).matrix, found.data(), reinterpret_cast<uint8_t*>(w.data()));
    });
    const size_t scale_bytes = found.size() * sizeof(float);
    add(scales, static_cast<size_t>(i) * scale_bytes, scale_bytes, 0,
        [found](std::span<std::byte> w, const CountBytes&) {
          std::copy_n(reinterpret_cast<const std::byte*>(found.data()), w.size(), w.data());
        });
  }

  PlanParts& plan_;
  const LayerTensors& tensors_;
  const io::SafetensorsFolder& folder_;
  moe::LayerConfig& config_;
  std::vector<std::vector<float>> gate_up_scales_, down_scales_;  // of MXFP4, by expert
};

void require_arrays(const PlanParts& plan, const std::array<void*, kNumLayerArrays>& arrays) {
  for (size_t i = 0; i < kNumLayerArrays; ++i) {
    const std::string where = str_cat("array ", i);
    if (plan.bytes[i] == 0 && arrays[i] != nullptr) throw Error(where, "an address", "null: this layer has none");
    if (plan.bytes[i] == 0) continue;
    if (arrays[i] == nullptr) throw Error(where, "a null pointer", str_cat("memory of ", plan.bytes[i], " bytes"));
    if (reinterpret_cast<uintptr_t>(arrays[i]) % moe::kAlignment != 0)
      throw Error(where, "misaligned memory", str_cat(moe::kAlignment, "-byte alignment"));
  }
}

std::unique_ptr<Target> make_target(const LoadOptions& options) {
  return options.placement.device == moe::Device::cuda ? make_cuda_target() : make_host_target();
}

void read_into(const PlanParts& plan, const std::array<void*, kNumLayerArrays>& arrays, Target& target,
               const Progress& progress) {
  require_arrays(plan, arrays);
  uint64_t done = 0;
  const CountBytes count = [&](uint64_t bytes) {
    done += bytes;
    if (progress) progress(done, plan.report.read_bytes);
  };
  for (const Piece& piece : plan.pieces) {
    throw_if_stopped();
    target.fill(static_cast<std::byte*>(arrays[at(piece.array)]) + piece.offset, piece.bytes,
                [&](std::span<std::byte> window) { piece.fill(window, count); });
  }
  target.finish();
}

}  // namespace

LayerPlan::LayerPlan(const Checkpoint& checkpoint, const LoadOptions& options) {
  const LayerTensors tensors = find_layer_tensors(checkpoint.parts(), options.layer);
  auto parts = std::make_unique<PlanParts>(PlanParts{checkpoint, options, {}, {}, {}, {}});
  parts->config = layer_config(checkpoint.parts(), tensors, options);
  parts->report.stored = tensors.describe();
  Planner(*parts, tensors).run();
  parts_ = std::move(parts);
}

LayerPlan::~LayerPlan() = default;
LayerPlan::LayerPlan(LayerPlan&&) noexcept = default;
LayerPlan& LayerPlan::operator=(LayerPlan&&) noexcept = default;

const moe::LayerConfig& LayerPlan::config() const { return parts_->config; }
const std::array<size_t, kNumLayerArrays>& LayerPlan::bytes() const { return parts_->bytes; }
const LoadReport& LayerPlan::report() const { return parts_->report; }

void LayerPlan::read(const std::array<void*, kNumLayerArrays>& arrays, const Progress& progress) const {
  read_into(*parts_, arrays, *make_target(parts_->options), progress);
}

LoadedLayer::LoadedLayer(const Checkpoint& checkpoint, const LoadOptions& options, const Progress& progress) {
  const LayerPlan plan(checkpoint, options);
  memory_ = make_target(options);
  std::array<void*, kNumLayerArrays> arrays{};
  for (size_t i = 0; i < kNumLayerArrays; ++i)
    arrays[i] = plan.bytes()[i] == 0 ? nullptr : memory_->allocate(plan.bytes()[i]);
  plan.read(arrays, progress);
  const auto array = [&](LayerArray which) { return arrays[at(which)]; };
  weights_.gate_up = array(LayerArray::gate_up);
  weights_.down = array(LayerArray::down);
  weights_.gate_up_bias = array(LayerArray::gate_up_bias);
  weights_.down_bias = array(LayerArray::down_bias);
  weights_.shared_gate_up = array(LayerArray::shared_gate_up);
  weights_.shared_down = array(LayerArray::shared_down);
  weights_.gate_up_scale = array(LayerArray::gate_up_scale);
  weights_.down_scale = array(LayerArray::down_scale);
  weights_.shared_gate_up_scale = array(LayerArray::shared_gate_up_scale);
  weights_.shared_down_scale = array(LayerArray::shared_down_scale);
  report_ = plan.report();
  layer_ = std::make_unique<const moe::Layer>(plan.config(), weights_, options.placement);
}

LoadedLayer::~LoadedLayer() = default;
LoadedLayer::LoadedLayer(LoadedLayer&&) noexcept = default;
LoadedLayer& LoadedLayer::operator=(LoadedLayer&&) noexcept = default;

}  // namespace tessera::checkpoint
