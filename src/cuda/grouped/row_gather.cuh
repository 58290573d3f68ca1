// Gathers rows by index into the stages of a ring, 16 bytes a cp.async: what GEMM 1's tokens need.
//
// A stage's rows are 128 bytes in the layout of cta/smem_layout.cuh, whatever the elements are.
#pragma once

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::grouped {

// Rows in global memory, and which of them each routed row is.
struct RowSource {
  const void* rows;          // [T, row_bytes], 16-byte aligned
  const int32_t* row_index;  // [R]; null where select is told
  int32_t row_bytes;         // a multiple of 16
};

// A thread's part of the gather: chunk lane % 8 (16 bytes) of row lane / 8 of every row quad that its warp copies; warp
// w takes the quads w, w + warps, ... of the tile. A warp that issues one instruction at a time is what limits the
// gather, so addresses are kept as pointers that advance by a step, and quads are predicated only in tiles that are not
// full. Rows past the tile's last keep what the stage held: they only reach accumulator rows that are never stored.
template <int kTileRows, int kWarps>
class RowGather {
 public:
  static constexpr int kStageBytes = kTileRows * cta::kSwizzleRowBytes;

  // `stages` is the ring's rows, kStageBytes a stage. One of kWarps warps.
  __device__ RowGather(const void* stages, const RowSource& source, int warp) : source_(source) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    chunk_ = lane % kChunks;
    first_row_ = warp * kQuadRows + lane / kChunks;
    target_ = cta::smem_address(stages) + cta::swizzled_offset(first_row_, chunk_);
  }

  __device__ void select(const TileSlot& tile) {
    select(tile.num_rows, [&](int row) {
      return static_cast<const char*>(source_.rows) +
             source_.row_index[tile.row_begin + row] * int64_t{source_.row_bytes};
    });
  }

  // row_of(i): where row i of the tile begins in global memory.
  template <class RowOf>
  __device__ void select(int32_t num_rows, RowOf row_of) {
    num_rows_ = num_rows;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int row = first_row_ + i * kRowStep;
      const char* const begin = row < num_rows_ ? row_of(row) : static_cast<const char*>(source_.rows);
      address_[i] = begin + chunk_ * cta::kChunkBytes;
    }
  }

  // Copies the next 128 bytes of each row, of which `bytes_left` (16 or more) exist, the others being zero.
  __device__ void load(int stage, int bytes_left) { load_at(stage * kStageBytes, bytes_left); }

  // The same to a place so many bytes behind the first.
  __device__ void load_at(int offset, int bytes_left) {
    const uint32_t stage_target = target_ + offset;
    if (num_rows_ == kTileRows && bytes_left >= cta::kSwizzleRowBytes) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (i < kQuads - 1 || kFullQuads || first_row_ + i * kRowStep < kTileRows)
          ptx::cp_async_16(place(stage_target, i), address_[i]);
      }
    } else {
      const bool exists = chunk_ * cta::kChunkBytes < bytes_left;
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (first_row_ + i * kRowStep < num_rows_)
          ptx::cp_async_16_or_zero(place(stage_target, i), exists ? address_[i] : source_.rows, exists);
      }
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) address_[i] += cta::kSwizzleRowBytes;
  }

 private:
  static constexpr int kChunks = cta::kSwizzleRowBytes / cta::kChunkBytes;
  static constexpr int kQuadRows = 32 / kChunks;
  static constexpr int kRowStep = kQuadRows * kWarps;
  static constexpr int kQuads = (kTileRows + kRowStep - 1) / kRowStep;
  static constexpr bool kFullQuads = kQuads * kRowStep == kTileRows;

  // i odd moves half a swizzle atom: the row's place in the atom changes by 4, so chunk bit 2 flips.
  __device__ static uint32_t place(uint32_t stage_target, int i) {
    const uint32_t row_zero = (i * kRowStep) % 8 == 0 ? stage_target : stage_target ^ (4 * cta::kChunkBytes);
    return row_zero + i * kRowStep * cta::kSwizzleRowBytes;
  }

  const RowSource source_;
  int chunk_;
  int first_row_;
  int num_rows_ = 0;
  uint32_t target_;
  const char* address_[kQuads];
};

}  // namespace tessera::grouped
