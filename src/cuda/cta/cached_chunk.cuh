// Eight neighbouring values of an operand through L1: for data that is read again, by other threads or soon.
//
// A view's stride is a multiple of 8 elements, so its rows are whole chunks: chunk c of row r is chunk number
// r * (stride / 8) + c of the view, whatever the number of columns.
#pragma once

#include <cstdint>

#include "cuda/core/operand.h"
#include "cuda/cta/operand_chunk.cuh"

namespace tessera::cta {

inline constexpr int kChunkElements = 8;

template <Operand kKind>
using Chunk = OperandChunk<kKind, kChunkElements>;

constexpr int64_t num_chunks(int64_t columns) { return (columns + kChunkElements - 1) / kChunkElements; }

// As data that nothing writes while the kernel runs.
template <Operand kKind>
__device__ inline Chunk<kKind> load_chunk(const OperandView& view, int64_t chunk_idx) {
  Chunk<kKind> chunk;
#pragma unroll
  for (int plane = 0; plane < num_planes(kKind); ++plane) {
    const uint32_t* source = chunk_address<kKind>(view, plane, chunk_idx * kChunkElements);
#pragma unroll
    for (int i = 0; i < Chunk<kKind>::kWords; i += 4) {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(source + i));
      chunk.words[plane][i] = bits.x;
      chunk.words[plane][i + 1] = bits.y;
      chunk.words[plane][i + 2] = bits.z;
      chunk.words[plane][i + 3] = bits.w;
    }
  }
  return chunk;
}

}  // namespace tessera::cta
