#include "cuda/kernels/expert_gemm_rows/launch.h"

#include <cuda/std/type_traits>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/grouped/tensor_maps.h"
#include "cuda/kernels/expert_gemm_rows/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::expert_gemm_rows {
namespace {

// What a kernel is compiled for beside its role.
template <class Element_, bool kMarked_>
struct Tuning {
  using Element = Element_;
  static constexpr bool kMarked = kMarked_;  // see cta/mark.cuh
};

template <auto kValue>
using Constant = ::cuda::std::integral_constant<decltype(kValue), kValue>;

// Calls function(role as a constant, Tuning) with the compiled instance for these; each of them is in this file.
template <class Function>
void with_instance(DType dtype, Role role, bool marked, Function&& function) {
  const auto with_tuning = [&](auto tuning) {
    switch (role) {
      case Role::gate_up: return function(Constant<Role::gate_up>{}, tuning);
      case Role::up_only: return function(Constant<Role::up_only>{}, tuning);
      default: return function(Constant<Role::down>{}, tuning);
    }
  };
  const auto with_element = [&](auto element) {
    using Element = decltype(element);
    return marked ? with_tuning(Tuning<Element, true>{}) : with_tuning(Tuning<Element, false>{});
  };
  return dtype == DType::bf16 ? with_element(__nv_bfloat16{}) : with_element(__half{});
}

void validate(const Problem& problem, Role role, const LaunchOptions& options) {
  if (problem.dtype == DType::f32) throw Error("expert GEMM dtype", "f32", "bf16 or f16");
  const auto require_width = [](const char* name, int32_t value) {
    if (value <= 0 || value % 8 != 0) throw Error(name, str_cat(value), "a positive multiple of 8");
  };
  require_width("expert GEMM hidden_size", problem.hidden_size);
  require_width("expert GEMM intermediate_size", problem.intermediate_size);
  const void* const rows = role == Role::down ? problem.intermediate : problem.tokens;
  for (const void* pointer : {rows, problem.weight(role), problem.bias(role), problem.shared_weight(role),
                              static_cast<const void*>(problem.out(role))}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0)
      throw Error("expert GEMM argument", "a misaligned pointer", "16-byte alignment");
  }
  TESSERA_CHECK(problem.routing.num_experts <= kMaxExperts, problem.routing.num_experts);
  TESSERA_CHECK(problem.routing.pairs() <= kPolicy.max_pairs, problem.routing.pairs());
  TESSERA_CHECK(options.num_ctas >= 1, options.num_ctas);
  // Units are numbered in 32 bits, times the number of CTAs.
  const int64_t most_passes = problem.routing.num_experts + problem.routing.pairs() / kPolicy.max_columns;
  const int64_t most_slabs = problem.out_columns(role) / 8;
  TESSERA_CHECK(most_passes * most_slabs * options.num_ctas < int64_t{1} << 32, most_slabs, options.num_ctas);
}

}  // namespace

void launch(const Problem& problem, Role role, const LaunchOptions& options, cudaStream_t stream) {
  if (problem.max_rows == 0) return;
  validate(problem, role, options);
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
  with_instance(problem.dtype, role, options.marks != nullptr, [&](auto constant, auto tuning) {
    constexpr auto* kernel = &expert_gemm_rows_kernel<constant, decltype(tuning)>;
    cuda::allow_shared_memory<kernel>(kPolicy.shared_bytes);
    cuda::launch_overlapping(kernel, options.num_ctas, kThreads, params, stream, kPolicy.shared_bytes);
  });
}

}  // namespace tessera::kernels::expert_gemm_rows
