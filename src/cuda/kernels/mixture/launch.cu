#include "cuda/kernels/mixture/launch.h"

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/mixture/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::mixture {
namespace {

void validate_experts(const char* argument, int32_t num_experts) {
  if (num_experts < 1 || num_experts > kMaxExperts)
    throw Error(argument, str_cat(num_experts), str_cat("1..", kMaxExperts));
}

void validate(const WeighArgs& args) {
  if (args.num_records < 0) throw Error("weigh num_records", str_cat(args.num_records), "at least 0");
  if (args.num_features < 1) throw Error("weigh num_features", str_cat(args.num_features), "at least 1");
  validate_experts("weigh num_experts", args.num_experts);
  cuda::check_operand("weigh h", args.h, args.num_records, args.num_features);
  cuda::check_pointer("weigh weight", args.weight, alignof(float));
  cuda::check_pointer("weigh bias", args.bias, alignof(float));
  cuda::check_pointer("weigh router_weights", args.router_weights, alignof(float));
}

void validate(const CombineArgs& args) {
  if (args.num_records < 0) throw Error("combine num_records", str_cat(args.num_records), "at least 0");
  if (args.expert_size < 1) throw Error("combine expert_size", str_cat(args.expert_size), "at least 1");
  validate_experts("combine num_experts", args.num_experts);
  if (args.rows.kind == cta::Operand::split) throw Error("combine rows", "split", "f16, bf16 or f32");
  cuda::check_operand("combine rows", args.rows, 0, args.expert_size);
  cuda::check_operand("combine out", args.out, args.num_records, args.expert_size);
  cuda::check_pointer("combine router_weights", args.router_weights, alignof(float));
}

}  // namespace

void weigh(const WeighArgs& args, cudaStream_t stream) {
  if (args.num_records == 0) return;
  validate(args);
  WeighParams params{};
  params.h = args.h;
  params.weight = args.weight;
  params.bias = args.bias;
  params.router_weights = args.router_weights;
  params.topk_ids = args.topk_ids;
  params.threshold = args.threshold;
  params.num_records = args.num_records;
  params.num_features = args.num_features;
  params.num_experts = args.num_experts;
  params.aligned_weight =
      args.num_features % cta::kChunkElements == 0 && reinterpret_cast<uintptr_t>(args.weight) % sizeof(float4) == 0;
  const auto launch_kind = [&](void (*kernel)(WeighParams)) {
    cuda::launch_overlapping(kernel, (args.num_records + kRecords - 1) / kRecords, kThreads, params, stream);
  };
  switch (args.h.kind) {
    case cta::Operand::f16: return launch_kind(weigh_kernel<cta::Operand::f16>);
    case cta::Operand::bf16: return launch_kind(weigh_kernel<cta::Operand::bf16>);
    case cta::Operand::split: return launch_kind(weigh_kernel<cta::Operand::split>);
    case cta::Operand::f32: return launch_kind(weigh_kernel<cta::Operand::f32>);
  }
}

void combine(const CombineArgs& args, cudaStream_t stream) {
  if (args.num_records == 0) return;
  validate(args);
  CombineParams params{};
  params.rows = args.rows;
  params.token_row = args.token_row;
  params.router_weights = args.router_weights;
  params.output_bias = args.output_bias;
  params.out = args.out;
  params.record_chunks = static_cast<int32_t>(cta::num_chunks(args.expert_size));
  params.num_chunks = args.num_records * params.record_chunks;
  params.num_experts = args.num_experts;
  params.expert_size = args.expert_size;
  params.relu = args.relu;
  const auto launch_kind = [&](void (*kernel)(CombineParams)) {
    cuda::launch_overlapping(kernel, (params.num_chunks + kPolicy.combine_threads - 1) / kPolicy.combine_threads,
                             kPolicy.combine_threads, params, stream);
  };
  switch (args.rows.kind) {
    case cta::Operand::f16: return launch_kind(combine_kernel<cta::Operand::f16>);
    case cta::Operand::bf16: return launch_kind(combine_kernel<cta::Operand::bf16>);
    default: return launch_kind(combine_kernel<cta::Operand::f32>);
  }
}

}  // namespace tessera::kernels::mixture
