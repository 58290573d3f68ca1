// Eight neighbouring values of an OperandView at a time: 16 bytes of each 16-bit plane, 32 bytes of fp32.
//
// A view's stride is a multiple of 8 elements, so its rows are whole chunks: chunk c of row r is chunk number
// r * (stride / 8) + c of the view, whatever the number of columns.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/core/operand.h"
#include "cuda/cta/element.cuh"

namespace tessera::cta {

inline constexpr int kChunkElements = 8;

constexpr int64_t num_chunks(int64_t columns) { return (columns + kChunkElements - 1) / kChunkElements; }

// The bits of a chunk in registers: several can be loaded before the first is converted.
template <Operand kKind>
struct Chunk {
  static constexpr int kWords = kKind == Operand::f16 || kKind == Operand::bf16 ? 1 : 2;

  uint4 words[kWords];

  // Through L1, as data that nothing writes while the kernel runs.
  __device__ static Chunk load(const OperandView& view, int64_t chunk_idx) {
    const uint4* data = static_cast<const uint4*>(view.data);
    Chunk chunk;
    if constexpr (kKind == Operand::f32) {
      chunk.words[0] = __ldg(data + 2 * chunk_idx);
      chunk.words[1] = __ldg(data + 2 * chunk_idx + 1);
    } else {
      chunk.words[0] = __ldg(data + chunk_idx);
      if constexpr (kKind == Operand::split)
        chunk.words[1] = __ldg(data + view.plane_stride / kChunkElements + chunk_idx);
    }
    return chunk;
  }

  // Exact, but for a split, whose two halves are added.
  __device__ void unpack(float (&values)[kChunkElements]) const {
    if constexpr (kKind == Operand::f32) {
      unpack_f32(words[0], &values[0]);
      unpack_f32(words[1], &values[4]);
    } else if constexpr (kKind == Operand::bf16) {
      unpack_16(__nv_bfloat16{}, words[0], values);
    } else {
      unpack_16(__half{}, words[0], values);
    }
    if constexpr (kKind == Operand::split) {
      float low[kChunkElements];
      unpack_16(__half{}, words[1], low);
#pragma unroll
      for (int i = 0; i < kChunkElements; ++i) values[i] = __fadd_rn(values[i], low[i]);
    }
  }

 private:
  __device__ static void unpack_f32(uint4 word, float* values) {
    values[0] = __uint_as_float(word.x);
    values[1] = __uint_as_float(word.y);
    values[2] = __uint_as_float(word.z);
    values[3] = __uint_as_float(word.w);
  }
  template <class Element>
  __device__ static void unpack_16(Element element, uint4 word, float (&values)[kChunkElements]) {
    const uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack2(element, pairs[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
};

template <class Element>
__device__ inline uint4 pack_chunk(Element element, const float (&values)[kChunkElements]) {
  return make_uint4(pack2(element, values[0], values[1]), pack2(element, values[2], values[3]),
                    pack2(element, values[4], values[5]), pack2(element, values[6], values[7]));
}

// Rounds to nearest even, as store_operand does.
__device__ inline void store_chunk(const OperandView& view, int64_t chunk_idx, const float (&values)[kChunkElements]) {
  uint4* data = static_cast<uint4*>(view.data);
  switch (view.kind) {
    case Operand::f16: data[chunk_idx] = pack_chunk(__half{}, values); return;
    case Operand::bf16: data[chunk_idx] = pack_chunk(__nv_bfloat16{}, values); return;
    case Operand::f32: {
      float4* floats = static_cast<float4*>(view.data) + 2 * chunk_idx;
      floats[0] = make_float4(values[0], values[1], values[2], values[3]);
      floats[1] = make_float4(values[4], values[5], values[6], values[7]);
      return;
    }
    case Operand::split: {
      float low[kChunkElements];
#pragma unroll
      for (int i = 0; i < kChunkElements; ++i) low[i] = __fsub_rn(values[i], __half2float(__float2half_rn(values[i])));
      data[chunk_idx] = pack_chunk(__half{}, values);
      data[view.plane_stride / kChunkElements + chunk_idx] = pack_chunk(__half{}, low);
      return;
    }
  }
}

}  // namespace tessera::cta
