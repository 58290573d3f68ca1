#include "cuda/kernels/gather_pool/launch.h"

#include <algorithm>
#include <limits>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/gather_pool/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::gather_pool {
namespace {

constexpr int32_t kMaxPositions = 512;
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

void validate(const Args& args) {
  if (args.num_records < 0) throw Error("gather_pool num_records", str_cat(args.num_records), "at least 0");
  if (args.positions < 1 || args.positions > kMaxPositions)
    throw Error("gather_pool positions", str_cat(args.positions), str_cat("1..", kMaxPositions));
  if (args.filters < 1) throw Error("gather_pool filters", str_cat(args.filters), "at least 1");
  if (args.num_widths < 1 || args.num_widths > kMaxWidths)
    throw Error("gather_pool num_widths", str_cat(args.num_widths), str_cat("1..", kMaxWidths));
  for (int32_t w = 0; w < args.num_widths; ++w) {
    if (args.widths[w] < 1 || args.widths[w] > args.positions)
      throw Error(str_cat("gather_pool widths[", w, "]"), str_cat(args.widths[w]), str_cat("1..", args.positions));
  }
  if (args.table.kind == cta::Operand::split) throw Error("gather_pool table", "split", "f16, bf16 or f32");
  cuda::check_operand("gather_pool table", args.table, 0, args.filters);
  cuda::check_operand("gather_pool out", args.out, args.num_records,
                      static_cast<int64_t>(args.num_widths) * args.filters);
  cuda::check_pointer("gather_pool rows", args.rows, alignof(int32_t));
  cuda::check_pointer("gather_pool bias", args.bias, alignof(float));
}

// Tasks by falling cost of a tile: (S - K + 1) * K rows; ties by number. In place, because a launch allocates nothing.
void order_heavy_first(Params& params) {
  const auto cost = [&](int32_t task) { return (params.positions - params.widths[task] + 1) * params.widths[task]; };
  for (int32_t w = 0; w < params.num_widths; ++w) params.task_order[w] = w;
  std::sort(params.task_order, params.task_order + params.num_widths,
            [&](int32_t a, int32_t b) { return cost(a) != cost(b) ? cost(a) > cost(b) : a < b; });
}

Params make_params(const Args& args) {
  Params params{};
  params.rows = args.rows;
  params.table = args.table;
  params.bias = args.bias;
  params.out = args.out;
  params.num_records = args.num_records;
  params.positions = args.positions;
  params.filters = args.filters;
  params.num_widths = args.num_widths;
  int32_t num_taps = 0;
  for (int32_t w = 0; w < args.num_widths; ++w) {
    params.widths[w] = args.widths[w];
    params.first_tap[w] = num_taps;
    num_taps += args.widths[w];
  }
  const int64_t row_chunks = args.table.stride / cta::kChunkElements;
  if (row_chunks > kMaxInt32 / num_taps)
    throw Error("gather_pool table", str_cat("stride ", args.table.stride), "less than 2^34 elements a token");
  params.row_chunks = static_cast<int32_t>(row_chunks);
  params.token_chunks = num_taps * params.row_chunks;

  // Slices as even as they can be: 38 chunks are 19 + 19, not 32 + 6.
  const int64_t chunks = cta::num_chunks(args.filters);
  const int64_t num_slices = (chunks + kPolicy.max_slice_chunks - 1) / kPolicy.max_slice_chunks;
  params.slice_chunks = static_cast<int32_t>((chunks + num_slices - 1) / num_slices);
  const int64_t most_records = (kMaxInt32 / (args.num_widths * num_slices)) * kPolicy.threads / params.slice_chunks;
  if (args.num_records > most_records)
    throw Error("gather_pool num_records", str_cat(args.num_records), str_cat("at most ", most_records));
  const int64_t tiles_per_slice = (args.num_records * params.slice_chunks + kPolicy.threads - 1) / kPolicy.threads;
  params.tiles_per_slice = static_cast<int32_t>(tiles_per_slice);
  const int64_t tiles_per_width = tiles_per_slice * num_slices;
  for (int32_t rank = 0; rank < args.num_widths; ++rank)
    params.tile_end[rank] = static_cast<int32_t>(tiles_per_width * (rank + 1));
  order_heavy_first(params);
  return params;
}

}  // namespace

void launch(const Args& args, cudaStream_t stream) {
  if (args.num_records == 0) return;
  validate(args);
  const Params params = make_params(args);
  const auto launch_kind = [&](void (*kernel)(Params)) {
    cuda::launch_overlapping(kernel, params.tile_end[params.num_widths - 1], kPolicy.threads, params, stream);
  };
  switch (args.table.kind) {
    case cta::Operand::f16: return launch_kind(gather_pool_kernel<cta::Operand::f16>);
    case cta::Operand::bf16: return launch_kind(gather_pool_kernel<cta::Operand::bf16>);
    default: return launch_kind(gather_pool_kernel<cta::Operand::f32>);
  }
}

}  // namespace tessera::kernels::gather_pool
