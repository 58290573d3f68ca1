// The case of an MoE layer that every test of every back end is told, and the battery: the cases that all of them run.
//
//   for (const LayerCase& c : battery()) { ... }         // or, by name: find_case("tokens_127_bf16")
//   LayerCase c{.hidden = 72, .tokens = 65, .dtype = DType::f16};
//
// A case says what a layer is, layer_data.h fills it with numbers, judge.h judges what a back end makes of it, and
// battery.h brings the three together. cases.cc says of each entry why it is there; cases.json is the same list for
// tests in Python: the program `moe_cases` prints it, and a test compares it.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/moe/layer_config.h"

namespace tessera::testing {

inline constexpr int32_t kEachExpert = -1;

struct LayerCase {
  int32_t hidden = 64;
  int32_t intermediate = 64;
  int32_t experts = 8;
  int32_t top_k = 2;
  int32_t tokens = 65;
  std::string routing = "random";  ///< a kind of routing.h
  DType dtype = DType::bf16;
  bool gated = true;
  Activation activation{};
  bool bias = false;
  bool ids_are_64_bit = false;
  int32_t first_expert = 0;
  int32_t mapped = 0;  ///< entries of an expert map with holes; 0: none
  int32_t shared_intermediate = 0;
  bool shared_weight = false;
  moe::GateUpOrder order = moe::GateUpOrder::gate_first;
  bool integers = false;  ///< ternary data whose every intermediate result is exact
  DType topk_weights_dtype = DType::f32;
  moe::WeightFormat format = moe::WeightFormat::dense;
  bool dead_experts = false;  ///< scales of all but expert 0 are 1e-8, 1e-23, 1e-38 and 0 in turn
  /// Static scales of x and of the intermediate: 0, then they are made of the rows; 1; or, kEachExpert, one an expert.
  int32_t x_scales = 0, h_scales = 0;
  bool round_like_engines = false;
  std::string name{};  ///< of an entry of the battery: letters, digits, underscores
  std::string why{};   ///< it is there

  friend std::ostream& operator<<(std::ostream& out, const LayerCase& c);
};

moe::LayerConfig config_of(const LayerCase& c);

/// Of pointers to all that a layer may have, those that the case's layer has.
moe::LayerWeights weights_of(const LayerCase& c, moe::LayerWeights all);

/// How many of such scales there are.
int32_t num_input_scales(const LayerCase& c, int32_t scales);

/// [mapped]: every third global id is nobody's, the others go to the experts from the last to the first, and around.
std::vector<int32_t> expert_map_of(const LayerCase& c);

/// Whether it is a layer for GPUs: 16-bit elements, and a shared expert that slices of the others' width make up, each
/// of whole blocks of scales if there are several.
bool is_for_gpu(const LayerCase& c);

/// Whether a GPU takes it: of those, the ones whose format has a kernel.
bool runs_on_gpu(const LayerCase& c);

/// Whether the exact judge (src/moe/judge) computes its bits without a device.
bool is_exact_on_host(const LayerCase& c);

/// An entry of the list: one case for each of its types.
struct BatteryEntry {
  LayerCase c;  ///< without a type; its name lacks the type's
  std::vector<DType> dtypes;
};
const std::vector<BatteryEntry>& battery_entries();

/// Every entry in each of its types; names end in _f32, _bf16 or _f16 and are unique.
const std::vector<LayerCase>& battery();

/// Of `cases` enough to be run where each takes long, under sanitizers say: every size and every option that a case has
/// anywhere, on the cheapest layer that has it, options with each type; one of each family in each type; and every
/// twelfth case, for what fields do together.
std::vector<LayerCase> spread_of(const std::vector<LayerCase>& cases);

/// Error for a name that is not in the battery.
const LayerCase& find_case(std::string_view name);

/// The entries as JSON, with their ids and expert maps: what cases.json must hold.
std::string battery_json();

}  // namespace tessera::testing
