#include "moe/kernels.h"

#include <array>
#include <cstring>

#include "cuda/kernels/combine/policy.h"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/kernels/moe_plan/policy.h"
#include "moe/formats.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

namespace expert_gemm = kernels::expert_gemm;
using grouped::Role;

const char* expert_gemm_misfit(const LayerConfig& config, const LaunchDevice&) {
  return config.dtype == DType::f32 ? "its products are of bf16 or f16" : nullptr;
}

std::pair<int32_t, int32_t> expert_gemm_tile(Role role, int32_t cluster_size) {
  const expert_gemm::Policy policy = expert_gemm::default_policy(role, cluster_size);
  return {policy.tile_columns, policy.tile_k};
}

// In the order of preference.
constexpr std::array kKernels = {
    KernelRow{
        .id = KernelId::expert_gemm,
        .name = "expert_gemm",
        .format = WeightFormat::dense,
        .tile_rows = expert_gemm::kTileRows,
        .most_rows_an_expert = 0,
        .misfit = expert_gemm_misfit,
        .tiling = expert_gemm::tiling,
        .tile_columns_and_k = expert_gemm_tile,
        .policy = [](Role role,
                     int32_t cluster_size) { return str_cat(expert_gemm::default_policy(role, cluster_size)); },
        .why = "16-bit weights, any number of rows: the largest tile that two warpgroups hold",
    },
};

// nullptr where the row can be taken. No allocation: asked at every run of a layer.
const char* refusal(const KernelRow& row, const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                    const char* wish) {
  if (wish != nullptr && row.name != wish) return "another kernel was asked for";
  if (row.format != config.weight_format) return "its weights have another format";
  if (row.most_rows_an_expert != 0 && num_tokens > row.most_rows_an_expert)
    return "an expert may get more rows than it is meant for";
  return row.misfit(config, device);
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
  launch.num_ctas = wish.num_ctas != 0 ? wish.num_ctas : device.num_multiprocessors;
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
  return {{"plan", str_cat(kernels::moe_plan::default_policy())},
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
