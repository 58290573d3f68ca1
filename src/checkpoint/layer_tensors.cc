#include "checkpoint/layer_tensors.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <span>

#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/dtype.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::checkpoint {
namespace {

using io::StoredTensor;
using Shape = std::vector<int64_t>;

constexpr int64_t kMxGroup = 32, kMxGroupBytes = 16;

// Names that other formats give their tensors: known to be of a format that this library does not load.
constexpr std::array<std::string_view, 11> kForeign = {
    "weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx",        "qweight",           "qzeros",
    "scales",        "g_idx",        "weight_scale_2",    "weight_global_scale", "input_global_scale"};
// Scales that x was to be quantised by: found before, not with every token.
constexpr std::array<std::string_view, 2> kStaticScales = {"input_scale", "activation_scale"};

bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += str_cat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

/// A number as names have it: no sign, no zeros before it. -1: it is none.
int32_t parse_index(std::string_view text) {
  int32_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_number = error == std::errc() && end == text.data() + text.size() && value >= 0;
  return is_number && (text.size() == 1 || text.front() != '0') ? value : -1;
}

/// "a.b.c" -> "a", and "b.c" stays.
std::string_view take_part(std::string_view& rest) {
  const size_t dot = rest.find('.');
  const std::string_view part = rest.substr(0, dot);
  rest = dot == std::string_view::npos ? std::string_view() : rest.substr(dot + 1);
  return part;
}

class Finder {
 public:
  Finder(const CheckpointParts& parts, int32_t layer)
      : folder_(parts.folder), model_(parts.model), facts_(parts.model.facts), family_(*parts.model.family) {
    found_.index = layer;
    prefix_ = str_cat(kLayersPrefix, layer, ".");
    experts_ = str_cat(prefix_, family_.experts, ".");
  }

  LayerTensors run() {
    found_.experts.resize(static_cast<size_t>(facts_.num_experts));
    for (const StoredTensor& tensor : folder_.tensors_under(experts_)) place(tensor);
    require_one_layout();
    if (!is_fused_) found_.layout = Layout::per_expert;
    if (found_.format == StoredFormat::other) return std::move(found_);
    is_fused_ ? check_fused() : check_experts();
    if (facts_.shared_intermediate_size != 0) find_shared();
    check_formats();
    return std::move(found_);
  }

 private:
  [[noreturn]] void refuse_name(const StoredTensor& tensor) const {
    throw Error(folder_.place(tensor), "a name that no tensor of " + std::string(family_.name) + " experts has",
                str_cat(experts_, "0.", family_.projections[0], ".weight and the like, or ", experts_, "gate_up_proj"));
  }

  void count(const StoredTensor& tensor) { found_.num_bytes += tensor.num_bytes(); }

  void be_foreign(const StoredTensor& tensor, std::string_view kind) {
    found_.format = StoredFormat::other;
    const std::string method =
        model_.quant_method.empty() ? "no quantization_config" : "quant_method " + io::quote(model_.quant_method);
    if (found_.problem.empty()) {
      found_.problem = Error(folder_.place(tensor), str_cat("tensors of kind ", kind, " (", method, ")"),
                             "BF16, F16, F32, e4m3 with scales each 128 x 128 or each row, or MXFP4")
                           .what();
    }
  }

  void place(const StoredTensor& tensor) {
    std::string_view rest = std::string_view(tensor.info.name).substr(experts_.size());
    count(tensor);
    const std::string_view first = take_part(rest);
    if (rest.empty()) return place_fused(tensor, first);
    const int32_t expert = parse_index(first);
    const std::string_view projection = take_part(rest);
    const auto known = std::find(family_.projections.begin(), family_.projections.end(), projection);
    if (expert < 0 || known == family_.projections.end()) refuse_name(tensor);
    if (expert >= facts_.num_experts) {
      throw Error(folder_.place(tensor), str_cat("expert ", expert), str_cat("experts 0 to ", facts_.num_experts - 1));
    }
    StoredMatrix& matrix =
        found_.experts[static_cast<size_t>(expert)][static_cast<size_t>(known - family_.projections.begin())];
    place_part(tensor, rest, matrix);
    one_expert_tensor_ = &tensor;
  }

  void place_part(const StoredTensor& tensor, std::string_view kind, StoredMatrix& matrix) {
    if (kind == "weight") {
      matrix.weight = &tensor;
    } else if (kind == "weight_scale_inv" || kind == "weight_scale") {
      if (matrix.scale != nullptr)
        throw Error(folder_.place(tensor), "a second scale beside " + io::quote(matrix.scale->info.name), "one");
      matrix.scale = &tensor;
    } else if (is_one_of(kStaticScales, kind)) {
      if (found_.problem.empty())
        found_.problem =
            Error(folder_.place(tensor), "a static scale of activations", "none: they are quantised with every token")
                .what();
    } else if (is_one_of(kForeign, kind)) {
      be_foreign(tensor, kind);
    } else {
      refuse_name(tensor);
    }
  }

  void place_fused(const StoredTensor& tensor, std::string_view name) {
    const std::array<std::pair<std::string_view, const StoredTensor**>, 10> known = {{
        {"gate_up_proj", &found_.gate_up.weight},
        {"gate_up_proj_blocks", &found_.gate_up.weight},
        {"gate_up_proj_scale_inv", &found_.gate_up.scale},
        {"gate_up_proj_scales", &found_.gate_up.scale},
        {"gate_up_proj_bias", &found_.gate_up_bias},
        {"down_proj", &found_.down.weight},
        {"down_proj_blocks", &found_.down.weight},
        {"down_proj_scale_inv", &found_.down.scale},
        {"down_proj_scales", &found_.down.scale},
        {"down_proj_bias", &found_.down_bias},
    }};
    for (const auto& [known_name, slot] : known) {
      if (known_name != name) continue;
      if (name.ends_with("_bias") && !family_.is_gpt_oss) refuse_name(tensor);
      if (*slot != nullptr)
        throw Error(folder_.place(tensor), "a second form beside " + io::quote((*slot)->info.name), "one of them");
      *slot = &tensor;
      if (name.ends_with("_blocks")) found_.layout = Layout::blocks;
      is_fused_ = true;
      one_fused_tensor_ = &tensor;
      return;
    }
    if (name.ends_with("_activation_scale")) {
      found_.problem =
          Error(folder_.place(tensor), "a static scale of activations", "none: they are quantised with every token")
              .what();
      return;
    }
    refuse_name(tensor);
  }

  void require_one_layout() const {
    if (is_fused_ && one_expert_tensor_ != nullptr) {
      throw Error(folder_.place(*one_expert_tensor_),
                  "a tensor of one expert beside " + io::quote(one_fused_tensor_->info.name), "the experts once");
    }
    if (!is_fused_ && one_expert_tensor_ == nullptr) {
      throw Error(folder_.name() + ": layer " + str_cat(found_.index), "no tensor under " + io::quote(experts_),
                  str_cat(facts_.num_experts, " experts, as config.json says"));
    }
  }

  [[noreturn]] void refuse_missing(const std::string& name, const Shape& shape) const {
    throw Error(folder_.name() + ": tensor " + io::quote(name), "no such tensor", "shape " + shape_text(shape));
  }

  void require_shape(const StoredTensor& tensor, const Shape& shape) const {
    if (tensor.info.shape != shape)
      throw Error(folder_.place(tensor), "shape " + shape_text(tensor.info.shape), "shape " + shape_text(shape));
  }

  Shape matrix_shape(size_t projection, int64_t width) const {
    return projection == kDown ? Shape{facts_.hidden_size, width} : Shape{width, facts_.hidden_size};
  }

  void check_matrices(const std::string& prefix, std::span<const std::string_view> names,
                      const std::array<StoredMatrix, kNumProjections>& matrices, int64_t width) const {
    for (size_t projection = 0; projection < kNumProjections; ++projection) {
      const Shape shape = matrix_shape(projection, width);
      const StoredMatrix& matrix = matrices[projection];
      if (matrix.weight == nullptr) refuse_missing(str_cat(prefix, names[projection], ".weight"), shape);
      require_shape(*matrix.weight, shape);
    }
  }

  void check_experts() const {
    for (size_t expert = 0; expert < found_.experts.size(); ++expert) {
      check_matrices(str_cat(experts_, expert, "."), family_.projections, found_.experts[expert],
                     facts_.intermediate_size);
    }
  }

  void check_fused() {
    const int64_t experts = facts_.num_experts, hidden = facts_.hidden_size, width = facts_.intermediate_size;
    Shape gate_up = {experts, 2 * width, hidden}, down = {experts, hidden, width};
    std::string ending;
    if (found_.layout == Layout::blocks) {
      ending = "_blocks";
      check_blocks(gate_up, down);
    } else if (family_.is_gpt_oss) {
      found_.layout = Layout::transposed;
      std::swap(gate_up[1], gate_up[2]);
      std::swap(down[1], down[2]);
    } else {
      found_.layout = Layout::fused;
    }
    if (found_.gate_up.weight == nullptr) refuse_missing(experts_ + "gate_up_proj" + ending, gate_up);
    if (found_.down.weight == nullptr) refuse_missing(experts_ + "down_proj" + ending, down);
    require_shape(*found_.gate_up.weight, gate_up);
    require_shape(*found_.down.weight, down);
    if (!family_.is_gpt_oss) return;
    if (found_.gate_up_bias == nullptr) refuse_missing(experts_ + "gate_up_proj_bias", {experts, 2 * width});
    if (found_.down_bias == nullptr) refuse_missing(experts_ + "down_proj_bias", {experts, hidden});
    require_shape(*found_.gate_up_bias, {experts, 2 * width});
    require_shape(*found_.down_bias, {experts, hidden});
    for (const StoredTensor* bias : {found_.gate_up_bias, found_.down_bias}) require_dense(*bias);
  }

  /// From the shapes of weights to those of their blocks; scales have all but the last dimension.
  void check_blocks(Shape& gate_up, Shape& down) const {
    const auto check = [&](Shape& shape, const StoredTensor* scale, const char* name) {
      if (shape[2] % kMxGroup != 0) {
        throw Error(folder_.name() + ": config.json", str_cat("a width of ", shape[2]),
                    str_cat("a multiple of ", kMxGroup, " for MXFP4"));
      }
      shape = {shape[0], shape[1], shape[2] / kMxGroup};
      if (scale == nullptr) refuse_missing(experts_ + name, shape);
      require_shape(*scale, shape);
      if (scale->info.dtype != "U8") throw Error(folder_.place(*scale), "dtype " + scale->info.dtype, "dtype U8");
      shape.push_back(kMxGroupBytes);
    };
    check(gate_up, found_.gate_up.scale, "gate_up_proj_scales");
    check(down, found_.down.scale, "down_proj_scales");
  }

  void require_dense(const StoredTensor& tensor) const {
    if (tensor.info.dtype != "BF16" && tensor.info.dtype != "F16" && tensor.info.dtype != "F32")
      throw Error(folder_.place(tensor), "dtype " + tensor.info.dtype, "dtype BF16, F16 or F32");
  }

  void find_shared() {
    const std::string prefix = str_cat(prefix_, family_.shared, ".");
    constexpr std::array<std::string_view, kNumProjections> kNames = {"gate_proj", "up_proj", "down_proj"};
    for (const StoredTensor& tensor : folder_.tensors_under(prefix)) {
      std::string_view rest = std::string_view(tensor.info.name).substr(prefix.size());
      const auto known = std::find(kNames.begin(), kNames.end(), take_part(rest));
      if (known == kNames.end()) {
        throw Error(folder_.place(tensor), "a name that no tensor of a shared expert has",
                    prefix + "gate_proj.weight and the like");
      }
      place_part(tensor, rest, found_.shared[static_cast<size_t>(known - kNames.begin())]);
      count(tensor);
    }
    if (found_.format == StoredFormat::other) return;
    check_matrices(prefix, kNames, found_.shared, facts_.shared_intermediate_size);
  }

  std::vector<const StoredMatrix*> all_matrices() const {
    std::vector<const StoredMatrix*> all;
    if (is_fused_) {
      all = {&found_.gate_up, &found_.down};
    } else {
      for (const auto& expert : found_.experts) {
        for (const StoredMatrix& matrix : expert) all.push_back(&matrix);
      }
    }
    return all;
  }

  void check_formats() {
    if (found_.format == StoredFormat::other) return;
    const std::vector<const StoredMatrix*> all = all_matrices();
    const StoredTensor& first = *all.front()->weight;
    found_.dtype = first.info.dtype;
    found_.format = format_of(*all.front());
    for (const StoredMatrix* matrix : all) require_same(*matrix, first);
    for (const StoredMatrix& matrix : found_.shared) {
      if (matrix.weight == nullptr) continue;
      shared_differs_ =
          shared_differs_ || matrix.weight->info.dtype != found_.dtype || format_of(matrix) != found_.format;
    }
    if (shared_differs_) {
      const StoredTensor& shared = *found_.shared[kGate].weight;
      found_.shared_problem = Error(folder_.place(shared), "a shared expert of dtype " + shared.info.dtype,
                                    found_.dtype + ", as the others, or shared_expert = false")
                                  .what();
    }
    require_known_blocks();
  }

  void require_same(const StoredMatrix& matrix, const StoredTensor& first) const {
    if (matrix.weight->info.dtype != found_.dtype) {
      throw Error(folder_.place(*matrix.weight), "dtype " + matrix.weight->info.dtype,
                  str_cat("dtype ", found_.dtype, ", as ", io::quote(first.info.name)));
    }
    if (format_of(matrix) == found_.format) return;
    throw Error(folder_.place(*matrix.scale), "shape " + shape_text(matrix.scale->info.shape),
                str_cat("scales of ", stored_format_name(found_.format), ", as ", io::quote(first.info.name)));
  }

  /// By the weight's type, and of e4m3 by the shape of its scales.
  StoredFormat format_of(const StoredMatrix& matrix) const {
    const io::TensorInfo& weight = matrix.weight->info;
    if (found_.layout == Layout::blocks) {
      if (weight.dtype != "U8") throw Error(folder_.place(*matrix.weight), "dtype " + weight.dtype, "dtype U8");
      return StoredFormat::mxfp4;
    }
    if (weight.dtype != "F8_E4M3") {
      require_dense(*matrix.weight);
      if (matrix.scale != nullptr)
        throw Error(folder_.place(*matrix.scale), "scales of weights of dtype " + weight.dtype,
                    "none, or weights of dtype F8_E4M3");
      return StoredFormat::dense;
    }
    if (matrix.scale == nullptr) {
      throw Error(folder_.place(*matrix.weight), "dtype F8_E4M3 without scales",
                  "weight_scale_inv or weight_scale beside it");
    }
    const io::TensorInfo& scale = matrix.scale->info;
    if (scale.dtype != "F32" && scale.dtype != "BF16" && scale.dtype != "F8_E8M0")
      throw Error(folder_.place(*matrix.scale), "dtype " + scale.dtype, "dtype F32, BF16 or F8_E8M0");
    return scale_format(weight.shape, matrix);
  }

  StoredFormat scale_format(const Shape& weight, const StoredMatrix& matrix) const {
    const Shape& scale = matrix.scale->info.shape;
    const size_t experts = weight.size() - 2;  // dimensions before the matrix
    const int64_t rows = weight[experts], columns = weight[experts + 1];
    const auto with_experts = [&](Shape shape) {
      if (experts != 0) shape.insert(shape.begin(), weight.front());
      return shape;
    };
    if (scale == with_experts({scale_groups(rows), scale_groups(columns)})) return StoredFormat::fp8_block;
    // Gate and up in blocks of their own, where all rows together are in one block.
    if (experts != 0 && &matrix == &found_.gate_up &&
        scale == with_experts({2 * scale_groups(rows / 2), scale_groups(columns)})) {
      return StoredFormat::fp8_block;
    }
    if (scale == with_experts({rows, 1}) || scale == with_experts({rows})) return StoredFormat::fp8_channel;
    if (experts == 0 && (scale.empty() || scale == Shape{1})) return StoredFormat::fp8_tensor;
    throw Error(folder_.place(*matrix.scale), "shape " + shape_text(scale),
                str_cat("shape ", shape_text(with_experts({scale_groups(rows), scale_groups(columns)})), ", ",
                        shape_text(with_experts({rows, 1})), " or [1]"));
  }

  void require_known_blocks() {
    const bool has_other_blocks = model_.weight_block != std::array<int64_t, 2>{} &&
                                  model_.weight_block != std::array<int64_t, 2>{kScaleGroup, kScaleGroup};
    if (found_.format == StoredFormat::fp8_block && has_other_blocks && found_.problem.empty()) {
      found_.problem = Error(folder_.name() + ": config.json: 'weight_block_size'",
                             str_cat(model_.weight_block[0], " x ", model_.weight_block[1]), "128 x 128")
                           .what();
    }
  }

  const io::SafetensorsFolder& folder_;
  const Model& model_;
  const ModelFacts& facts_;
  const FamilyRow& family_;
  std::string prefix_, experts_;
  LayerTensors found_;
  const StoredTensor* one_expert_tensor_ = nullptr;
  const StoredTensor* one_fused_tensor_ = nullptr;
  bool is_fused_ = false;
  bool shared_differs_ = false;
};

}  // namespace

std::string_view stored_format_name(StoredFormat format) {
  switch (format) {
    case StoredFormat::dense: return "dense";
    case StoredFormat::fp8_block: return "fp8-block";
    case StoredFormat::fp8_channel: return "fp8-channel";
    case StoredFormat::fp8_tensor: return "fp8-tensor";
    case StoredFormat::mxfp4: return "mxfp4";
    case StoredFormat::other: return "other";
  }
  return "other";
}

std::string LayerTensors::describe() const {
  const std::string what = format == StoredFormat::dense   ? dtype
                           : format == StoredFormat::other ? "an unknown format"
                                                           : std::string(stored_format_name(format));
  switch (layout) {
    case Layout::per_expert: return what + ", tensors of each expert";
    case Layout::fused: return what + ", tensors of all experts";
    case Layout::transposed: return what + ", tensors of all experts, transposed";
    case Layout::blocks: break;
  }
  return what + ", tensors of all experts";
}

LayerTensors find_layer_tensors(const CheckpointParts& parts, int32_t layer) {
  const int32_t num_layers = parts.model.facts.num_layers + parts.model.num_extra_layers;
  if (!parts.model.has_experts(layer)) {
    const auto extra = parts.folder.tensors_under(str_cat(kLayersPrefix, layer, ".", parts.model.family->experts, "."));
    if (!extra.empty()) {
      throw Error(parts.folder.place(extra.front()), "experts", "none: by config.json this layer has no experts");
    }
    if (layer < 0 || layer >= num_layers) throw Error("layer", str_cat(layer), str_cat("0 to ", num_layers - 1));
    throw Error("layer", str_cat(layer, ", which has no experts"), "a layer with experts");
  }
  return Finder(parts, layer).run();
}

std::vector<int32_t> layers_with_experts(const CheckpointParts& parts) {
  std::set<int32_t> layers;
  for (int32_t layer = 0; layer < parts.model.facts.num_layers; ++layer) {
    if (parts.model.has_experts(layer)) layers.insert(layer);
  }
  const std::string middle = str_cat(".", parts.model.family->experts, ".");
  for (const StoredTensor& tensor : parts.folder.tensors_under(kLayersPrefix)) {
    std::string_view rest = std::string_view(tensor.info.name).substr(kLayersPrefix.size());
    const size_t dot = rest.find('.');
    if (dot == std::string_view::npos || !rest.substr(dot).starts_with(middle)) continue;
    const int32_t layer = parse_index(rest.substr(0, dot));
    if (layer < 0) throw Error(parts.folder.place(tensor), io::quote(rest.substr(0, dot)), "the number of a layer");
    layers.insert(layer);
  }
  return {layers.begin(), layers.end()};
}

}  // namespace tessera::checkpoint
