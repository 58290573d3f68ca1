#include "cuda/kernels/expert_gemm_rows/launch.h"

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/grouped/instances.cuh"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/grouped/validation.h"
#include "cuda/kernels/expert_gemm_rows/kernel.cuh"
#include "tessera/core/check.h"

namespace tessera::kernels::expert_gemm_rows {
namespace {

// What a kernel is compiled for beside its role.
template <class Element_, class Operand_, Scales kScales_, bool kMarked_>
struct Tuning {
  using Element = Element_;
  using Operand = Operand_;
  static constexpr Scales kScales = kScales_;
  static constexpr bool kMarked = kMarked_;  // see cta/mark.cuh
};

// Calls function(role as a constant, Tuning) with the compiled instance for these; each of them is in this file.
template <class Function>
void with_instance(const Problem& problem, Role role, bool is_marked, Function&& function) {
  grouped::with_element(problem.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto with_scales = [&](auto operand, auto scales) {
      grouped::with_bool(is_marked, [&](auto marked) {
        grouped::with_role(
            role, [&](auto constant) { function(constant, Tuning<Element, decltype(operand), scales, marked>{}); });
      });
    };
    if (problem.operand_bytes != 1) return with_scales(element, grouped::Constant<Scales::none>{});
    const __nv_fp8_e4m3 code{};
    if (problem.weight_rows_scaled) return with_scales(code, grouped::Constant<Scales::weight_rows>{});
    if (problem.quantized_when_read) return with_scales(code, grouped::Constant<Scales::blocks_when_read>{});
    with_scales(code, grouped::Constant<Scales::blocks>{});
  });
}

void validate_run(const Problem& problem, Role role, const LaunchOptions& options) {
  grouped::validate(problem, role);
  TESSERA_CHECK(problem.routing.num_experts <= kMaxExperts, problem.routing.num_experts);
  TESSERA_CHECK(problem.routing.pairs() <= kPolicy.max_pairs, problem.routing.pairs());
  TESSERA_CHECK(!problem.round_like_engines, problem.round_like_engines);
  TESSERA_CHECK(options.num_ctas >= 1, options.num_ctas);
  // Units are numbered in 32 bits, times the number of CTAs.
  const int64_t most_passes = problem.routing.num_experts + problem.routing.pairs() / kPolicy.max_columns;
  const int64_t most_slabs = problem.out_columns(role) / 8;
  TESSERA_CHECK(most_passes * most_slabs * options.num_ctas < int64_t{1} << 32, most_slabs, options.num_ctas);
}

}  // namespace

void launch(const Problem& problem, Role role, const LaunchOptions& options, cudaStream_t stream) {
  if (problem.max_rows == 0) return;
  validate_run(problem, role, options);
  Params params{};
  params.problem = problem;
  params.options = options;
  const int32_t slab_columns = role == Role::gate_up ? grouped::kSlabRows / 2 : grouped::kSlabRows;
  const auto slabs_of_expert = static_cast<uint32_t>((problem.out_columns(role) + slab_columns - 1) / slab_columns);
  for (int slabs = 1; slabs <= kPolicy.unit_slabs; ++slabs) {
    params.units_of_pass[slabs - 1] =
        (slabs_of_expert + static_cast<uint32_t>(slabs) - 1) / static_cast<uint32_t>(slabs);
    params.weights[slabs - 1] = grouped::slab_map(problem, role, slabs);
    params.shared_weights[slabs - 1] = grouped::shared_slab_map(problem, role, slabs);
  }
  params.rows = grouped::a_map(problem, role, 1);
  with_instance(problem, role, options.marks != nullptr, [&](auto constant, auto tuning) {
    constexpr auto* kernel = &expert_gemm_rows_kernel<constant, decltype(tuning)>;
    cuda::allow_shared_memory<kernel>(kPolicy.shared_bytes);
    cuda::launch_overlapping(kernel, options.num_ctas, kThreads, params, stream, kPolicy.shared_bytes);
  });
}

}  // namespace tessera::kernels::expert_gemm_rows
