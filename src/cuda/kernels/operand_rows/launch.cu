#include "cuda/kernels/operand_rows/launch.h"

#include <algorithm>
#include <limits>

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/operand_rows/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::operand_rows {
namespace {

// CTAs for `num_warps` warps of work.
unsigned ctas_of(int64_t num_warps) {
  const int64_t ctas = (num_warps + kPolicy.warps - 1) / kPolicy.warps;
  TESSERA_CHECK(ctas <= std::numeric_limits<int32_t>::max(), ctas);
  return static_cast<unsigned>(ctas);
}

int32_t ceil_div(int32_t value, int32_t divisor) { return (value + divisor - 1) / divisor; }

// 4 positions a thread where every channel of every record starts on a 16-byte boundary.
int32_t vector_width(int32_t positions) { return positions % 4 == 0 ? 4 : 1; }

ConvertParams convert_params(const ConvertArgs& args) {
  const int32_t thread_columns = args.positions / vector_width(args.positions);  // threads side by side along S
  ConvertParams params{};
  params.embeddings = args.embeddings;
  params.rows = args.rows;
  params.finite = args.finite;
  params.channels = args.channels;
  params.positions = args.positions;
  params.num_groups = static_cast<int32_t>(args.rows.stride / kGroupChannels);
  params.position_lanes = thread_columns >= 3 ? kPolicy.position_lanes : thread_columns;
  params.position_tiles = ceil_div(thread_columns, params.position_lanes);
  params.tiles_per_record = params.position_tiles * ceil_div(params.num_groups, kLanes / params.position_lanes);
  params.num_tiles = args.num_records * params.tiles_per_record;
  return params;
}

}  // namespace

void convert_embeddings(const ConvertArgs& args, cudaStream_t stream) {
  if (args.num_records < 0) throw Error("convert_embeddings num_records", str_cat(args.num_records), "0 or more");
  if (args.num_records == 0) return;
  if (args.channels < 1) throw Error("convert_embeddings channels", str_cat(args.channels), "1 or more");
  if (args.positions < 1 || args.positions > kMaxPositions)
    throw Error("convert_embeddings positions", str_cat(args.positions), str_cat("1 to ", kMaxPositions));
  cuda::check_pointer("convert_embeddings embeddings", args.embeddings, 16);
  cuda::check_pointer("convert_embeddings finite", args.finite, 1);
  cuda::check_operand("convert_embeddings rows", args.rows, args.num_records * args.positions, args.channels);
  TESSERA_CHECK(args.rows.stride <= std::numeric_limits<int32_t>::max(), args.rows.stride);

  TESSERA_CUDA_CHECK(cudaMemsetAsync(args.finite, 1, static_cast<size_t>(args.num_records), stream));
  const ConvertParams params = convert_params(args);
  // No programmatic launch: the kernel has the memset before it, which must be complete.
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas_of(params.num_tiles));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  if (vector_width(args.positions) == 4) {
    TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, convert_kernel<4>, params));
  } else {
    TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, convert_kernel<1>, params));
  }
}

void gather_tokens(const GatherArgs& args, cudaStream_t stream) {
  if (args.num_rows < 0) throw Error("gather_tokens num_rows", str_cat(args.num_rows), "0 or more");
  if (args.num_rows == 0) return;
  cuda::check_pointer("gather_tokens ids", args.ids, alignof(int32_t));
  cuda::check_operand("gather_tokens table", args.table, 1, 1);
  cuda::check_operand("gather_tokens rows", args.rows, args.num_rows, 1);
  TESSERA_CHECK(args.rows.kind == args.table.kind, static_cast<int>(args.rows.kind), static_cast<int>(args.table.kind));
  TESSERA_CHECK(args.rows.stride == args.table.stride, args.rows.stride, args.table.stride);
  const int64_t chunk_elements = static_cast<int64_t>(sizeof(uint4)) / cta::element_bytes(args.rows.kind);
  TESSERA_CHECK(args.rows.stride / chunk_elements <= std::numeric_limits<int32_t>::max() / 2, args.rows.stride);

  GatherParams params{};
  params.ids = args.ids;
  params.table = static_cast<const uint4*>(args.table.data);
  params.rows = static_cast<uint4*>(args.rows.data);
  params.table_plane = args.table.plane_stride / chunk_elements;
  params.rows_plane = args.rows.plane_stride / chunk_elements;
  params.row_chunks = static_cast<int32_t>(args.rows.stride / chunk_elements);
  params.row_segments = ceil_div(params.row_chunks, kSegmentChunks);
  params.num_segments = args.num_rows * params.row_segments;
  params.num_planes = cta::num_planes(args.rows.kind);

  cuda::launch_overlapping(gather_kernel, ctas_of(params.num_segments), kThreads, params, stream);
}

}  // namespace tessera::kernels::operand_rows
