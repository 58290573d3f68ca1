// What the multiplying warps do with each unit of a CTA.
#pragma once

#include "cuda/kernels/expert_gemm_rows/consume.cuh"
#include "cuda/kernels/expert_gemm_rows/consume_e4m3.cuh"
#include "cuda/kernels/expert_gemm_rows/context.cuh"

namespace tessera::kernels::expert_gemm_rows {

template <class C, int kColumns>
__device__ inline void compute_unit(const Context<C>& context, const Unit& unit, RingPosition& at, Handover& handover) {
  ptx::Fragment<kColumns> acc;
  const SlabRows<C> slab(context, unit);  // asks for the bias before the products
  if constexpr (C::kQuantized) {
    multiply_blocks<C>(context, unit, at, acc);
  } else {
    multiply<C>(context, at, slab.exists[0], acc);
  }
  finish<C>(context.problem, slab, acc);
  if constexpr (C::kQuantized && C::kRole != Role::down) {
    store_quantized<C>(context, unit, slab, acc, handover);
  } else {
    store<C>(context, unit, slab, acc);
  }
}

template <class C>
__device__ inline void compute(const Context<C>& context) {
  RingPosition at;
  Handover handover;
  auto walk = context.walk();
  for (Unit unit; walk.next(unit);) {
    if (unit.num_rows <= 8) {
      compute_unit<C, 8>(context, unit, at, handover);
    } else if (unit.num_rows <= 16) {
      compute_unit<C, 16>(context, unit, at, handover);
    } else if (unit.num_rows <= 32) {
      compute_unit<C, 32>(context, unit, at, handover);
    } else {
      compute_unit<C, 64>(context, unit, at, handover);
    }
  }
}

}  // namespace tessera::kernels::expert_gemm_rows
