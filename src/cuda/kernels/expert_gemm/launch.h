// Expert GEMM, host side: out[r, :] = act(A[r, :] * W[e]^T + bias[e]) for every routed row r of every expert e.
//
//   GEMM 1:  args.a = x [T, H], args.weight [E, 2I, H] (gated) or [E, I, H], args.out [R, I]
//   GEMM 2:  args.a = intermediate [max_rows, I], args.weight [E, H, I], args.out [R, H]
//
// Everything about routing comes from the plan, on the device: no host read, capturable. The plan must have been built
// with the same tiling (see tiling()). Nothing is allocated. Enqueued on `stream`; returns before it has run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/marks.h"
#include "cuda/core/plan_view.h"
#include "cuda/kernels/expert_gemm/tiling.h"
#include "tessera/core/activation.h"
#include "tessera/core/dtype.h"

namespace tessera::kernels::expert_gemm {

struct Args {
  Role role;
  DType dtype;  // bf16 or f16: of A, weights, bias and out
  cta::PlanView plan;
  int32_t num_experts;  // E
  int32_t max_rows;     // rows that A (GEMM 2) may have: T * k
  int32_t k;            // H for GEMM 1, I for GEMM 2; a multiple of 8
  int32_t n;            // I for GEMM 1, H for GEMM 2; a multiple of 8
  const void* a;        // tokens or intermediate rows
  const void* weight;
  const void* bias;  // null: none
  void* out;
  Activation activation;
  bool interleaved = false;             // gated weight and bias: gate row 0, up row 0, gate row 1, ...
  bool up_first = false;                // gated weight and bias: all up rows, then all gate rows
  int32_t num_shared_experts = 0;       // S: experts num_experts.. of the plan, S * I wide together, without bias
  const void* shared_weight = nullptr;  // GEMM 1: [2 S I, H] or [S I, H]; GEMM 2: [H, S I]
  gpu::KernelMarks* marks = nullptr;    // [1] or null: none
};

// How to launch. `num_ctas` 0 means one a multiprocessor; any number >= 1 computes everything, with the same bits.
struct LaunchOptions {
  int32_t num_ctas = 0;
  int32_t cluster_size = 2;
  int32_t back_every = 0;
  bool overlap_previous = true;  // programmatic dependent launch: the prologue overlaps the previous kernel's end
};

// Whether the current device can run clusters of this size with the kernel's shared memory.
bool clusters_fit(DType dtype, int32_t cluster_size);

void launch(const Args& args, const LaunchOptions& options, cudaStream_t stream);

}  // namespace tessera::kernels::expert_gemm
