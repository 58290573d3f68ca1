// Neighbouring values of an OperandView at once: vector loads and stores of 2, 4 or 8 of them.
//
//   OperandChunk<kKind, kCount>   the stored bits of kCount neighbours, plane by plane, as a vector load brings them
//   load_chunk_once               starts the loads; unpacking waits for them, so load all chunks before the first
//   pack_chunk, unpack            rounding to nearest even, and back; unpack gives hi + lo of a split
//
// `index` = row * stride + column, a multiple of kCount: with 16-byte aligned views and strides of multiples of 8 every
// access is aligned.
#pragma once

#include <cstdint>

#include "cuda/core/operand.h"
#include "cuda/cta/element.cuh"

namespace tessera::cta {

template <Operand kKind, int kCount>
struct OperandChunk {
  static constexpr int kWords = kCount * static_cast<int>(element_bytes(kKind)) / 4;
  uint32_t words[num_planes(kKind)][kWords];
};

// Past L1 and first to leave L2: for data that nobody reads again.
template <int kWords>
__device__ inline void load_words_once(const uint32_t* source, uint32_t (&words)[kWords]) {
  static_assert(kWords == 1 || kWords == 2 || kWords % 4 == 0);
  if constexpr (kWords == 1) words[0] = __ldcs(source);
  if constexpr (kWords == 2) {
    const uint2 bits = __ldcs(reinterpret_cast<const uint2*>(source));
    words[0] = bits.x;
    words[1] = bits.y;
  }
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(source + i));
      words[i] = bits.x;
      words[i + 1] = bits.y;
      words[i + 2] = bits.z;
      words[i + 3] = bits.w;
    }
  }
}

template <int kWords>
__device__ inline void store_words(uint32_t* target, const uint32_t (&words)[kWords]) {
  static_assert(kWords == 1 || kWords == 2 || kWords % 4 == 0);
  if constexpr (kWords == 1) target[0] = words[0];
  if constexpr (kWords == 2) *reinterpret_cast<uint2*>(target) = make_uint2(words[0], words[1]);
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4)
      *reinterpret_cast<uint4*>(target + i) = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }
}

// Where the word of element `index` of a plane lies.
template <Operand kKind>
__device__ inline uint32_t* chunk_address(const OperandView& view, int plane, int64_t index) {
  const int64_t element = plane == 0 ? index : view.plane_stride + index;
  return reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(view.data) + element * element_bytes(kKind));
}

template <Operand kKind, int kCount>
__device__ inline OperandChunk<kKind, kCount> load_chunk_once(const OperandView& view, int64_t index) {
  OperandChunk<kKind, kCount> chunk;
#pragma unroll
  for (int plane = 0; plane < num_planes(kKind); ++plane)
    load_words_once(chunk_address<kKind>(view, plane, index), chunk.words[plane]);
  return chunk;
}

template <Operand kKind, int kCount>
__device__ inline void store_chunk(const OperandView& view, int64_t index, const OperandChunk<kKind, kCount>& chunk) {
#pragma unroll
  for (int plane = 0; plane < num_planes(kKind); ++plane)
    store_words(chunk_address<kKind>(view, plane, index), chunk.words[plane]);
}

template <Operand kKind, int kCount>
__device__ inline void unpack(const OperandChunk<kKind, kCount>& chunk, float (&values)[kCount]) {
  if constexpr (kKind == Operand::f32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = __uint_as_float(chunk.words[0][i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      float2 pair;
      if constexpr (kKind == Operand::bf16) {
        pair = unpack2(__nv_bfloat16{}, chunk.words[0][i]);
      } else {
        pair = unpack2(__half{}, chunk.words[0][i]);
      }
      if constexpr (kKind == Operand::split) {
        const float2 low = unpack2(__half{}, chunk.words[1][i]);
        pair.x += low.x;
        pair.y += low.y;
      }
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

template <Operand kKind, int kCount>
__device__ inline OperandChunk<kKind, kCount> pack_chunk(const float (&values)[kCount]) {
  OperandChunk<kKind, kCount> chunk;
  if constexpr (kKind == Operand::f32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) chunk.words[0][i] = __float_as_uint(values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float first = values[2 * i], second = values[2 * i + 1];
      if constexpr (kKind == Operand::bf16) {
        chunk.words[0][i] = pack2(__nv_bfloat16{}, first, second);
      } else {
        chunk.words[0][i] = pack2(__half{}, first, second);
      }
      if constexpr (kKind == Operand::split) {
        const float2 high = unpack2(__half{}, chunk.words[0][i]);
        chunk.words[1][i] = pack2(__half{}, first - high.x, second - high.y);
      }
    }
  }
  return chunk;
}

// Rounds and stores kCount neighbours of a view whose kind is known at run time only.
template <int kCount>
__device__ inline void store_operands(const OperandView& view, int64_t index, const float (&values)[kCount]) {
  switch (view.kind) {
    case Operand::f16: return store_chunk(view, index, pack_chunk<Operand::f16>(values));
    case Operand::bf16: return store_chunk(view, index, pack_chunk<Operand::bf16>(values));
    case Operand::split: return store_chunk(view, index, pack_chunk<Operand::split>(values));
    case Operand::f32: return store_chunk(view, index, pack_chunk<Operand::f32>(values));
  }
}

// |value| as a number that orders like the magnitude, infinity above every number and NaN above infinity: unlike a
// floating-point maximum, a maximum of these loses no NaN.
__device__ inline uint32_t magnitude_bits(float value) { return __float_as_uint(value) & 0x7FFFFFFFu; }

// magnitude_bits of the largest number that is within the kind: 65504 for fp16, the last that does not round to
// infinity for bf16, the largest finite number for fp32.
__host__ __device__ constexpr uint32_t largest_magnitude_bits(Operand kind) {
  return kind == Operand::f32 ? 0x7F7FFFFFu : kind == Operand::bf16 ? 0x7F7F7FFFu : 0x477FE000u;
}

}  // namespace tessera::cta
