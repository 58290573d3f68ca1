// Which mixture-of-experts layer, under which loads: options that `bench moe` and `explain moe` share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tessera/moe/cuda_layer.h"
#include "tessera/moe/presets.h"

namespace tessera::cli {

struct MoeOptions {
  std::string preset;
  int32_t hidden = 0, intermediate = 0, experts = 0, top_k = 0;
  std::string tokens;  // T[,T...]
  std::string routings = "balanced";
  std::string order = "heavy-first";
  std::string format = "dense";
  std::string kernel;  // empty: the layer chooses
  int32_t num_ctas = 0;
  int32_t cluster_size = moe::LaunchPolicy{}.cluster_size;
  int32_t back_every = moe::LaunchPolicy{}.back_every;
  uint64_t seed = 1;
};

/// One load of the layer.
struct MoeCase {
  int32_t num_tokens = 0;
  moe::Routing routing = moe::Routing::balanced;
  std::vector<int32_t> topk_ids;  ///< [T, k]
};

void add_moe_options(CLI::App& app, MoeOptions& options);

/// "Presets: ...", for the end of a help text.
std::string preset_list();

/// The preset, or one named "custom" of the sizes given, with weights of --format. Errors name the option.
moe::Preset moe_shape(const MoeOptions& options);

/// Every token count with every routing; all are checked before the first is run. Errors name the option.
std::vector<MoeCase> moe_cases(const MoeOptions& options, const moe::Preset& shape);

/// Points into `options`. Errors name the option.
moe::LaunchPolicy launch_policy(const MoeOptions& options);

/// "qwen3-30b: H 2048, I 768, 128 experts, top 8, SwiGLU"; the format of weights behind it where it is not dense
std::string describe(const moe::Preset& shape);

nlohmann::ordered_json shape_json(const moe::Preset& shape);

}  // namespace tessera::cli
