// Gather, add, maximum: a convolution of known tokens, bound by the reads of its table.
//
//   task   a width; costly ones first, so that the launch ends on cheap tiles
//   tile   threads neighbouring (record, chunk) pairs of one slice of filters
//   thread one record, 8 filters: S - K + 1 windows, each the sum of K table rows, their maximum in registers
//
//   flat tiles    | width 9: slice 0: records ... | slice 1: records ... | ... | width 7: slice 0 ...
//   rows in L2      frequent tokens x 9 taps x 512 bytes, read again by every record of the slice
//
// Nothing is shared between threads: no barrier, no shared memory. The K loads of a window do not depend on each other,
// and narrow filters load several windows at once; only the adds are in order.
#pragma once

#include <cstdint>

#include "cuda/cta/cached_chunk.cuh"
#include "cuda/cta/operand.cuh"
#include "cuda/cta/operand_chunk.cuh"
#include "cuda/kernels/gather_pool/launch.h"
#include "cuda/kernels/gather_pool/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/warp.cuh"
#include "tessera/batching/decode.h"

namespace tessera::kernels::gather_pool {

inline constexpr Policy kPolicy = default_policy();

struct Params {
  const int32_t* rows;     // [N, S]
  cta::OperandView table;  // [rows * num_taps, stride]
  const float* bias;       // [num_widths * F]
  cta::OperandView out;    // [N, stride]
  int64_t num_records;     // N
  int32_t positions;       // S
  int32_t filters;         // F
  int32_t num_widths;
  int32_t row_chunks;              // of a table row: stride / 8
  int32_t token_chunks;            // of a token's rows: num_taps * stride / 8
  int32_t slice_chunks;            // of a slice of filters
  int32_t tiles_per_slice;         // tiles of one slice of one width
  int32_t tile_end[kMaxWidths];    // tile prefix over ranks
  int32_t task_order[kMaxWidths];  // rank -> width
  int32_t widths[kMaxWidths];      // K
  int32_t first_tap[kMaxWidths];   // of the width among a token's rows
};

// What one thread reads for one width.
struct Column {
  const cta::OperandView& table;
  const int32_t* rows;  // [S] of the record
  int64_t first_chunk;  // of the width's first tap, in the rows of token 0
  int32_t row_chunks;
  int32_t token_chunks;
  int32_t num_windows;

  __device__ int64_t chunk_idx(int32_t row, int32_t tap) const {
    return first_chunk + static_cast<int64_t>(row) * token_chunks + tap * row_chunks;
  }
};

using Values = float[cta::kChunkElements];

__device__ inline void take_maximum(Values& best, const Values& sum) {
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) best[i] = ptx::max_or_nan(best[i], sum[i]);
}

template <cta::Operand kKind>
__device__ inline void add_chunk(Values& sum, const cta::Chunk<kKind>& chunk) {
  Values values;
  cta::unpack(chunk, values);
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) sum[i] = __fadd_rn(sum[i], values[i]);
}

// Windows [first, first + kWindows): all their rows are loaded before the first is added.
template <cta::Operand kKind, int kWidth, int kWindows>
__device__ inline void pool_windows(const Column& column, int32_t first, Values& best) {
  int32_t row[kWindows + kWidth - 1];
#pragma unroll
  for (int i = 0; i < kWindows + kWidth - 1; ++i) row[i] = __ldg(&column.rows[first + i]);
  cta::Chunk<kKind> chunk[kWindows][kWidth];
#pragma unroll
  for (int window = 0; window < kWindows; ++window) {
#pragma unroll
    for (int tap = 0; tap < kWidth; ++tap)
      chunk[window][tap] = cta::load_chunk<kKind>(column.table, column.chunk_idx(row[window + tap], tap));
  }
#pragma unroll
  for (int window = 0; window < kWindows; ++window) {
    Values sum = {};
#pragma unroll
    for (int tap = 0; tap < kWidth; ++tap) add_chunk(sum, chunk[window][tap]);
    take_maximum(best, sum);
  }
}

template <cta::Operand kKind, int kWidth>
__device__ inline void pool_width(const Column& column, Values& best) {
  constexpr int kWindows = windows_at_a_time(kPolicy, kWidth);
  int32_t window = 0;
  for (; window + kWindows <= column.num_windows; window += kWindows)
    pool_windows<kKind, kWidth, kWindows>(column, window, best);
  if constexpr (kWindows > 1) {
    for (; window < column.num_windows; ++window) pool_windows<kKind, kWidth, 1>(column, window, best);
  }
}

// Any width: the sum of a window continues over groups of taps.
template <cta::Operand kKind>
__device__ inline void pool_wide(const Column& column, int32_t width, Values& best) {
  constexpr int kTaps = kPolicy.taps_in_flight;
  for (int32_t window = 0; window < column.num_windows; ++window) {
    Values sum = {};
    for (int32_t first = 0; first < width; first += kTaps) {
      cta::Chunk<kKind> chunk[kTaps];
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        const int32_t tap = first + i;
        if (tap < width)
          chunk[i] = cta::load_chunk<kKind>(column.table, column.chunk_idx(__ldg(&column.rows[window + tap]), tap));
      }
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        if (first + i < width) add_chunk(sum, chunk[i]);
      }
    }
    take_maximum(best, sum);
  }
}

// The branch is uniform in the CTA: a tile has one width.
template <cta::Operand kKind>
__device__ inline void pool(const Column& column, int32_t width, Values& best) {
  static_assert(kPolicy.max_unrolled_width == 10);
  switch (width) {
    case 1: return pool_width<kKind, 1>(column, best);
    case 2: return pool_width<kKind, 2>(column, best);
    case 3: return pool_width<kKind, 3>(column, best);
    case 4: return pool_width<kKind, 4>(column, best);
    case 5: return pool_width<kKind, 5>(column, best);
    case 6: return pool_width<kKind, 6>(column, best);
    case 7: return pool_width<kKind, 7>(column, best);
    case 8: return pool_width<kKind, 8>(column, best);
    case 9: return pool_width<kKind, 9>(column, best);
    case 10: return pool_width<kKind, 10>(column, best);
    default: return pool_wide<kKind>(column, width, best);
  }
}

// Bias and ReLU after the maximum (the same value: both are monotonic), then the row's part of `out`.
__device__ inline void finish(const Params& params, int64_t record, int32_t task, int32_t first_filter, Values& best) {
  const int32_t count = min(cta::kChunkElements, params.filters - first_filter);
  const int64_t column = static_cast<int64_t>(task) * params.filters + first_filter;
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) {
    if (i >= count) break;
    const float value = __fadd_rn(best[i], __ldg(&params.bias[column + i]));
    best[i] = ptx::max_or_nan(value, 0.0f);
  }
  const int64_t index = record * params.out.stride + column;
  if (params.filters % cta::kChunkElements == 0) {
    cta::store_operands(params.out, index, best);
    return;
  }
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) {
    if (i < count) cta::store_operand(params.out, index + i, best[i]);
  }
  const int64_t num_columns = static_cast<int64_t>(params.num_widths) * params.filters;
  if (column + count < num_columns) return;
  const int64_t row_end = record * params.out.stride + cta::num_chunks(num_columns) * cta::kChunkElements;
  for (int64_t padding = index + count; padding < row_end; ++padding) cta::store_operand(params.out, padding, 0.0f);
}

template <cta::Operand kKind>
__global__ void __launch_bounds__(kPolicy.threads, kKind == cta::Operand::f32 ? kPolicy.min_ctas_f32 : kPolicy.min_ctas)
    gather_pool_kernel(const __grid_constant__ Params params) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const batching::TileCoord rank =
      batching::decode({params.tile_end, params.num_widths}, static_cast<int32_t>(blockIdx.x));
  const int32_t task = params.task_order[rank.task_idx];
  const int32_t slice = rank.tile_idx / params.tiles_per_slice;
  const int64_t pair =
      static_cast<int64_t>(rank.tile_idx - slice * params.tiles_per_slice) * kPolicy.threads + threadIdx.x;
  const int64_t record = pair / params.slice_chunks;
  const int32_t chunk = slice * params.slice_chunks + static_cast<int32_t>(pair - record * params.slice_chunks);
  const int32_t first_filter = chunk * cta::kChunkElements;
  if (record >= params.num_records || first_filter >= params.filters) return;
  const int32_t width = params.widths[task];
  const Column column{params.table,
                      params.rows + record * params.positions,
                      static_cast<int64_t>(params.first_tap[task]) * params.row_chunks + chunk,
                      params.row_chunks,
                      params.token_chunks,
                      params.positions - width + 1};
  Values best;
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) best[i] = -INFINITY;
  pool<kKind>(column, width, best);
  finish(params, record, task, first_filter, best);
}

}  // namespace tessera::kernels::gather_pool
