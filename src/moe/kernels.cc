#include "moe/kernels.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cuda/kernels/combine/policy.h"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/kernels/expert_gemm_fp8/policy.h"
#include "cuda/kernels/expert_gemm_rows/policy.h"
#include "cuda/kernels/moe_plan/policy.h"
#include "moe/formats.h"
#include "moe/layer_layout.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

namespace expert_gemm = kernels::expert_gemm;
namespace expert_gemm_fp8 = kernels::expert_gemm_fp8;
namespace expert_gemm_rows = kernels::expert_gemm_rows;
using grouped::Role;

const char* type_misfit(const LayerConfig& config) {
  return config.dtype == DType::f32 ? "its products are of bf16 or f16" : nullptr;
}

const char* expert_gemm_misfit(const LayerConfig& config, int64_t, const LaunchDevice&) { return type_misfit(config); }

const char* expert_gemm_rows_misfit(const LayerConfig& config, int64_t num_tokens, const LaunchDevice&) {
  if (const char* misfit = type_misfit(config)) return misfit;
  if (std::max(config.hidden_size, config.intermediate_size) > expert_gemm_rows::kMaxWidth)
    return "its weights have more rows than it numbers";
  return num_tokens * num_slots(config) <= expert_gemm_rows::default_policy().max_pairs
             ? nullptr
             : "more (token, slot) pairs than a CTA sorts for itself";
}

// What reads one scale for 128 weight rows, and one for a step of 128 of K.
const char* scales_misfit(const LayerConfig& config) {
  // Its slices of a shared expert begin where the weight's scales do.
  const bool is_sliced = config.shared_intermediate_size > config.intermediate_size;
  return is_sliced && config.intermediate_size % kScaleGroup != 0
             ? "a wider shared expert would be cut inside a block of scales"
             : nullptr;
}

const char* expert_gemm_rows_fp8_misfit(const LayerConfig& config, int64_t num_tokens, const LaunchDevice& device) {
  if (const char* misfit = expert_gemm_rows_misfit(config, num_tokens, device)) return misfit;
  if (config.num_gate_up_input_scales > 1) return "a token is quantised for each of its experts";
  if (config.round_like_engines) return "it does not round where engines do";
  if (config.scale_offsets != ScaleOffsets{}) return "its weights begin inside a block of scales";
  return scales_misfit(config);
}

template <const expert_gemm_rows::FewRows& kFewRows>
const char* expert_gemm_rows_slower(const LayerConfig& config, int64_t num_tokens) {
  const double mean_rows = static_cast<double>(num_tokens) * config.top_k / config.num_experts;
  if (num_tokens <= kFewRows.always_tokens || mean_rows <= kFewRows.most_mean_rows) return nullptr;
  return "experts have more rows than weights are worth reading for once";
}

template <int kElementBytes>
std::pair<int32_t, int32_t> expert_gemm_rows_tile(Role, int32_t) {
  return {16 * expert_gemm_rows::default_policy().unit_slabs, expert_gemm_rows::kStageRowBytes / kElementBytes};
}

std::pair<int32_t, int32_t> expert_gemm_tile(Role role, int32_t cluster_size) {
  const expert_gemm::Policy policy = expert_gemm::default_policy(role, cluster_size);
  return {policy.tile_columns, policy.tile_k};
}

// A tile begins where a block of scales does, of gate, up and down alike: what lies before the weights is 0 there.
const char* offsets_misfit(const LayerConfig& config) {
  const ScaleOffsets offsets = config.scale_offsets;
  if (offsets == ScaleOffsets{}) return nullptr;
  if (offsets.gate != offsets.down || (config.gated && offsets.up != offsets.down))
    return "its weights begin inside a block of scales, gate, up and down at different places";
  if (offsets.down % 16 != 0) return "its weights begin inside a block of scales, at no multiple of 16";
  if (config.shared_intermediate_size > 0)
    return "its weights begin inside a block of scales, those of its shared expert do not";
  return nullptr;
}

const char* expert_gemm_fp8_misfit(const LayerConfig& config, int64_t, const LaunchDevice&) {
  if (const char* misfit = type_misfit(config)) return misfit;
  if (const char* misfit = offsets_misfit(config)) return misfit;
  return scales_misfit(config);
}

std::pair<int32_t, int32_t> expert_gemm_fp8_tile(Role, int32_t cluster_size) {
  const expert_gemm_fp8::Policy policy = expert_gemm_fp8::default_policy(cluster_size);
  return {policy.tile_columns, policy.tile_k};
}

const char* never_slower(const LayerConfig&, int64_t) { return nullptr; }

constexpr bool is_dense(WeightFormat format) { return format == WeightFormat::dense; }

// expert_gemm_rows for a format.
constexpr KernelRow few_rows_kernel(WeightFormat format, std::string_view name, std::string_view why) {
  return {
      .id = KernelId::expert_gemm_rows,
      .name = name,
      .format = format,
      .tile_rows = expert_gemm_rows::default_policy().max_columns,
      .row_granule = 8,
      .makes_plan = true,
      .misfit = is_dense(format) ? expert_gemm_rows_misfit : expert_gemm_rows_fp8_misfit,
      .slower = is_dense(format) ? expert_gemm_rows_slower<expert_gemm_rows::kFewDenseRows>
                                 : expert_gemm_rows_slower<expert_gemm_rows::kFewE4m3Rows>,
      .tiling = expert_gemm_rows::tiling,
      .tile_columns_and_k = is_dense(format) ? expert_gemm_rows_tile<2> : expert_gemm_rows_tile<1>,
      .policy = [](Role, int32_t) { return str_cat(expert_gemm_rows::default_policy()); },
      .ctas_per_multiprocessor = expert_gemm_rows::default_policy().ctas_per_sm,
      .why = why,
  };
}

// expert_gemm_fp8 for a format of e4m3 weights.
constexpr KernelRow fp8_kernel(WeightFormat format, std::string_view name, std::string_view why) {
  return {
      .id = KernelId::expert_gemm_fp8,
      .name = name,
      .format = format,
      .tile_rows = expert_gemm_fp8::kTileRows,
      .row_granule = 64,
      .makes_plan = false,
      .misfit = expert_gemm_fp8_misfit,
      .slower = never_slower,
      .tiling = expert_gemm_fp8::tiling,
      .tile_columns_and_k = expert_gemm_fp8_tile,
      .policy = [](Role, int32_t cluster_size) { return str_cat(expert_gemm_fp8::default_policy(cluster_size)); },
      .ctas_per_multiprocessor = 1,
      .why = why,
  };
}

// In the order of preference.
constexpr std::array kKernels = {
    few_rows_kernel(WeightFormat::dense, "expert_gemm_rows",
                    "16-bit weights, few rows an expert: weights are read once, by even shares of their bytes"),
    KernelRow{
        .id = KernelId::expert_gemm,
        .name = "expert_gemm",
        .format = WeightFormat::dense,
        .tile_rows = expert_gemm::kTileRows,
        .row_granule = 64,  // a warpgroup's: one without rows is left out
        .makes_plan = false,
        .misfit = expert_gemm_misfit,
        .slower = never_slower,
        .tiling = expert_gemm::tiling,
        .tile_columns_and_k = expert_gemm_tile,
        .policy = [](Role role,
                     int32_t cluster_size) { return str_cat(expert_gemm::default_policy(role, cluster_size)); },
        .ctas_per_multiprocessor = 1,
        .why = "16-bit weights, any number of rows: the largest tile that two warpgroups hold",
    },
    few_rows_kernel(WeightFormat::fp8_block, "expert_gemm_rows_fp8",
                    "e4m3 weights in blocks, few rows an expert: weights are read once, the intermediate quantised by "
                    "who ends a block"),
    fp8_kernel(WeightFormat::fp8_block, "expert_gemm_fp8",
               "e4m3 weights in blocks, any number of rows: tokens quantised once, the intermediate as it is made"),
    few_rows_kernel(WeightFormat::fp8_channel, "expert_gemm_rows_fp8_channel",
                    "e4m3 weights with a scale each row, few rows an expert: weights are read once"),
    fp8_kernel(WeightFormat::fp8_channel, "expert_gemm_fp8_channel",
               "e4m3 weights with a scale each row, any number of rows: it multiplies the finished sum"),
};

// nullptr where the row can be taken. No allocation: asked at every run of a layer.
const char* refusal(const KernelRow& row, const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                    const char* wish) {
  if (wish != nullptr && row.name != wish) return "another kernel was asked for";
  if (row.format != config.weight_format) return "its weights have another format";
  if (const char* misfit = row.misfit(config, num_tokens, device)) return misfit;
  return wish != nullptr ? nullptr : row.slower(config, num_tokens);
}

[[noreturn]] void throw_all_refused(const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                                    const char* wish) {
  std::string reasons;
  for (const KernelRow& row : kKernels) {
    reasons += str_cat(reasons.empty() ? "" : "; ", row.name, ": ", refusal(row, config, num_tokens, device, wish));
  }
  throw Error("kernel", wish == nullptr ? "no kernel for this layer" : "'" + std::string(wish) + "'",
              "a kernel that can run it (" + reasons + ")");
}

const KernelRow& first_accepted(const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                                const char* wish) {
  for (const KernelRow& row : kKernels) {
    if (refusal(row, config, num_tokens, device, wish) == nullptr) return row;
  }
  throw_all_refused(config, num_tokens, device, wish);
}

}  // namespace

std::span<const KernelRow> kernel_rows() { return kKernels; }

KernelChoice select_kernel(const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                           const char* wish) {
  KernelChoice choice{&first_accepted(config, num_tokens, device, wish), {}};
  for (const KernelRow& row : kKernels) {
    if (&row == choice.row) continue;
    const char* reason = refusal(row, config, num_tokens, device, wish);
    choice.refused.push_back({&row, reason != nullptr ? reason : "a row before it is taken"});
  }
  return choice;
}

ResolvedLaunch resolve_launch(const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                              const LaunchPolicy& wish) {
  require_range("cluster_size", wish.cluster_size, 1, grouped::kMaxClusterSize);
  require_range("back_every", wish.back_every, 0, INT32_MAX);
  if (wish.num_ctas != 0) require_range("num_ctas", wish.num_ctas, 1, INT32_MAX);
  ResolvedLaunch launch;
  launch.kernel = &first_accepted(config, num_tokens, device, wish.kernel);
  launch.order = wish.order;
  const int32_t resident = device.num_multiprocessors * launch.kernel->ctas_per_multiprocessor;
  launch.num_ctas = wish.num_ctas != 0 ? wish.num_ctas : resident;
  if (launch.kernel->makes_plan) {  // even shares, in the order of the experts: no order, pairs or ends to choose
    launch.order = batching::TaskOrder::natural;
    launch.num_ctas = std::min(launch.num_ctas, resident);
    return launch;
  }
  // A lone CTA has no partner.
  launch.cluster_size = launch.num_ctas == 1 || !device.runs_pairs ? 1 : wish.cluster_size;
  launch.back_every = wish.back_every;
  return launch;
}

std::vector<std::pair<std::string, std::string>> describe_launch(const LayerConfig& config,
                                                                 const ResolvedLaunch& launch) {
  const auto gemm = [&](Role role) {
    return str_cat(launch.kernel->name, ": ", launch.kernel->policy(role, launch.cluster_size));
  };
  const char* const unit = launch.cluster_size > 1 ? " clusters" : " CTAs";
  std::string order = str_cat(batching::task_order_name(launch.order), " over ", launch.num_ctas, " CTAs");
  if (launch.cluster_size > 1) order += str_cat(" in clusters of ", launch.cluster_size);
  if (launch.back_every > 0) order += str_cat("; 1 of every ", launch.back_every, unit, " from the back");
  const char* const by_itself = "by each CTA of the products for itself";
  return {{"plan", launch.kernel->makes_plan ? by_itself : str_cat(kernels::moe_plan::default_policy())},
          {"GEMM 1", gemm(first_role(config))},
          {"GEMM 2", gemm(Role::down)},
          {"combine", str_cat(kernels::combine::default_policy())},
          {"order", order}};
}

std::vector<std::string> describe_choice(const KernelChoice& choice) {
  std::vector<std::string> lines = {str_cat(choice.row->name, ", chosen: ", choice.row->why)};
  for (const KernelRefusal& refused : choice.refused)
    lines.push_back(str_cat(refused.row->name, ", refused: ", refused.reason));
  return lines;
}

}  // namespace tessera::moe
